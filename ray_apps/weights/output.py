"""Where a model directory is written to: a directory or an `s3://` path, seen whole or not at all."""

import errno
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs

from data_prep.errors import ConfigError
from data_prep.folder import Folder
from data_prep.storage import cache_directory, check_replaceable, is_remote, scratch_beside, written_aside
from ray_apps.console import stage
from ray_apps.model_dir import ORIGIN
from ray_apps.weights.tensor_files import other_files

MB, GB = 1e6, 1e9
CONFIG = "config.json"
"""No reader takes a directory for a model that does not have it."""


@contextmanager
def written_model(
    command: str, output: str, side: Path | None, total: int, **sources: str
) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """Give a directory to write a model into, and whom to tell of bytes that are done; it becomes `output` at the end.

    For `s3://` it is on this machine's disk, in the user's cache, and copied when it is whole. After an error nothing
    is left behind, and what was there before is as it was.

    Args:
        command: for `origin.json`, with `sources`.
        side: the directory of which it gets the files beside the weights.
        total: bytes that will have been told of at the end.

    Raises:
        ConfigError: at `output` is something that was not written here.
        OSError: it cannot be written.
    """
    done = 0
    with stage("weights") as shown:

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            shown.update(done, total, f"{_size(done)} of {_size(total)}")

        on_bytes(0)
        with _room(output), _written(output) as directory:
            if side is not None:
                copy_files(side, directory)
            yield directory, on_bytes
            (directory / ORIGIN).write_text(json.dumps({"command": command, **sources}, indent=2) + "\n")
            size = _size(sum(path.stat().st_size for path in directory.iterdir()))
            hint = _hint(command, directory)
        shown.finish(f"{output}: {size}{hint}")


@contextmanager
def _room(output: str) -> Iterator[None]:
    """Says of a full disk which output it has no room for."""
    try:
        yield
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
        for file in sorted(names, key=lambda file: (file == CONFIG, file != ORIGIN)):
            filesystem.move(f"{aside}/{file}", f"{target.path}/{file}")
    finally:
        if filesystem.get_file_info(aside).type != fs.FileType.NotFound:
            filesystem.delete_dir(aside)


def copy_files(source: Path, directory: Path, but_not: Set[str] = frozenset()) -> None:
    """Those beside the weights."""
    for path in other_files(source):
        if path.name not in but_not:
            shutil.copy(path, directory / path.name)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GB:.2f} GB" if num_bytes >= GB / 10 else f"{num_bytes / MB:.2f} MB"


def _hint(command: str, directory: Path) -> str:
    """What a model lacks that is made to be talked with."""
    settings = directory / "tokenizer_config.json"
    has_template = (directory / "chat_template.jinja").exists() or (
        settings.exists() and json.loads(settings.read_text()).get("chat_template")
    )
    is_for_chats = command in ("apply-delta", "merge-lora")
    return "; it has no chat template, --template gives it one" if is_for_chats and not has_template else ""
