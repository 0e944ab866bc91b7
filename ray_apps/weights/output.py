"""Where a model directory is written to: a directory or an `s3://` path, seen whole or not at all."""

import errno
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs

from data_prep.errors import ConfigError
from data_prep.folder import Folder
from data_prep.storage import cache_directory, check_replaceable, is_remote, scratch_beside, written_aside
from ray_apps.model_dir import ORIGIN

CONFIG = "config.json"
"""No reader takes a directory for a model that does not have it."""


@contextmanager
def written_model(output: str) -> Iterator[Path]:
    """Give a directory to write a model into, which becomes `output` when the block ends well.

    For `s3://` it is on this machine's disk, in the user's cache, and copied when it is whole. After an error nothing
    is left behind, and what was there before is as it was.

    Raises:
        ConfigError: there is something that was not written here.
        OSError: it cannot be written.
    """
    try:
        with _written(output) as directory:
            yield directory
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(error.errno, f"{error.strerror}; nothing was written", output) from None


@contextmanager
def _written(output: str) -> Iterator[Path]:
    if not is_remote(output):
        target = Path(output).expanduser()
        check_replaceable(target, ORIGIN, "output")
        with written_aside(target) as directory:
            yield directory
        return
    # Parts that wait in the background for a slow network would pile up in memory.
    folder = Folder(output, background_writes=False)
    _check(folder)
    with scratch_beside(cache_directory() / "outputs" / folder.path.replace("/", "-")) as directory:
        yield directory
        _publish(directory, folder)


def _check(target: Folder) -> None:
    if "/" not in target.path:
        raise ConfigError(f"output: {target.place!r} is a whole bucket; valid: s3://bucket/key")
    if target.read(ORIGIN) is None and not target.is_empty(but_for="."):
        raise ConfigError(f"output: {target.place!r} has no {ORIGIN}: it is not ours to replace; choose another path")


def _publish(directory: Path, target: Folder) -> None:
    """Copy it beside `target`, and let the service move it from there: in between `target` has no `config.json`.

    S3 cannot rename; the service copies a file of up to 5 GB at once, which shards are far below.
    """
    parent, _, name = target.path.rpartition("/")
    filesystem, aside = target.filesystem, f"{parent}/.{name}.{uuid.uuid4().hex[:8]}.aside"
    try:
        fs.copy_files(str(directory), aside, fs.LocalFileSystem(), filesystem)
        names = {path.name for path in directory.iterdir()}
        for old in sorted({CONFIG, *target.sizes().keys() - names}):
            target.remove_file(old)
        for file in sorted(names, key=lambda file: file == CONFIG):
            filesystem.move(f"{aside}/{file}", f"{target.path}/{file}")
    finally:
        if filesystem.get_file_info(aside).type != fs.FileType.NotFound:
            filesystem.delete_dir(aside)
