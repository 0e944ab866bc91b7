"""Where a model directory is written to: a directory or an `s3://` path, seen whole or not at all."""

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs
from safetensors import SafetensorError

from data_prep.errors import ConfigError
from data_prep.folder import Folder
from data_prep.storage import (
    cache_directory,
    check_replaceable,
    is_remote,
    scratch_beside,
    uninterrupted,
    written_aside,
)
from ray_apps.console import stage
from ray_apps.model_dir import ORIGIN
from ray_apps.weights.tensor_files import other_files

MB, GB = 1e6, 1e9
S3_URI = re.compile(r"s3://[^/]+(/[^/]+)+")
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
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
    inputs = [value for name, value in sources.items() if name != "form"]
    with stage("weights") as shown:

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            shown.update(done, total, f"{_size(done)} of {_size(total)}")

        on_bytes(0)
        with _room(output), _written(output, inputs) as directory:
            if side is not None:
                copy_files(side, directory)
            yield directory, on_bytes
            files = sorted(path.name for path in directory.iterdir())
            origin = {"command": command, **sources, "files": files}
            (directory / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n")
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
    except SafetensorError as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}; nothing was written", output) from None


@contextmanager
def _written(output: str, inputs: Sequence[str]) -> Iterator[Path]:
    if is_remote(output):
        with _written_to_s3(output, inputs) as directory:
            yield directory
        return
    target = local_path(output, "output")
    _check_local(target, inputs)
    with written_aside(target) as directory:
        yield directory


def local_path(path: str, field: str) -> Path:
    """Absolute, with `~` and links followed.

    Raises:
        ConfigError: it is none; naming `field`.
    """
    try:
        resolved = Path(path).expanduser().resolve()
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigError(f"{field}: {path!r}: {error}") from None
    if not path or not resolved.name:
        raise ConfigError(f"{field}: {path!r} is not valid; expected a directory or s3://bucket/key")
    return resolved


def _check_local(target: Path, inputs: Sequence[str]) -> None:
    if Path.cwd().is_relative_to(target) or target.is_mount():
        raise ConfigError(f"output: {str(target)!r} is where you are, or a disk of its own; take a directory within it")
    check_replaceable(target, ORIGIN, "output")
    for source in inputs:
        place = Path(source).expanduser()
        if place.is_dir() and place.resolve().is_relative_to(target):
            raise _is_input(str(target), source)
    if target.is_dir():
        content = (target / ORIGIN).read_text() if (target / ORIGIN).is_file() else None
        _check_files(str(target), content, {path.name for path in target.iterdir()})


def _is_input(output: str, source: str) -> ConfigError:
    return ConfigError(f"output: {output!r} is or holds {source!r}, of which it is made; take another path")


def _check_files(output: str, origin: str | None, names: Set[str]) -> None:
    """Refuse to replace what no command here has written, such as a trained model, or files that came later."""
    if not names:
        return
    try:
        known = {ORIGIN, *json.loads(origin or "")["files"]}
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"output: {output!r} was not written by `vicuna weights`; take another path") from None
    if strange := sorted(names - known):
        raise ConfigError(f"output: {output!r} holds {strange[0]!r}, which was not written with it; move it")


@contextmanager
def _written_to_s3(output: str, inputs: Sequence[str]) -> Iterator[Path]:
    output = output.rstrip("/")
    if not S3_URI.fullmatch(output):
        raise ConfigError(f"output: {output!r} is not valid; expected s3://bucket/key")
    for source in inputs:
        if f"{source.rstrip('/')}/".startswith(f"{output}/"):
            raise _is_input(output, source)
    # Parts that wait in the background for a slow network would pile up in memory.
    folder = Folder(output, background_writes=False)
    bucket = folder.path.partition("/")[0]
    if folder.filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
        raise ConfigError(f"output: there is no bucket {bucket!r}")
    _check_files(output, folder.read(ORIGIN), {*folder.sizes(), *folder.folders()})
    scratch = cache_directory() / "outputs" / hashlib.sha256(output.encode()).hexdigest()[:16]
    with _room(str(cache_directory())), scratch_beside(scratch) as directory:
        yield directory
        _publish(directory, folder)


def _publish(directory: Path, target: Folder) -> None:
    """Copy it beside `target`, and let the service move it from there: in between `target` has no `config.json`.

    S3 cannot rename; the service copies a file of up to 5 GB at once, which shards are far below.

    Raises:
        OSError: it cannot be copied, and `target` is as it was; or not be moved, and the text says where it is.
    """
    parent, _, name = target.path.rpartition("/")
    aside = f"{parent}/.{name}.{uuid.uuid4().hex[:8]}.aside"
    try:
        fs.copy_files(str(directory), aside, fs.LocalFileSystem(), target.filesystem)
    except BaseException:
        _delete(aside, target.filesystem)
        raise
    try:
        with uninterrupted():  # Ctrl-C is too late now
            _move(aside, target, {path.name for path in directory.iterdir()})
    except OSError as error:
        where = f"what is missing is in s3://{aside}; run the command again"
        raise OSError(f"{target}: half replaced: {error}; {where}") from None
    _delete(aside, target.filesystem)


def _move(aside: str, target: Folder, names: Set[str]) -> None:
    for old in sorted({CONFIG, *target.sizes().keys() - names}):
        target.remove_file(old)
    for file in sorted(names, key=lambda file: (file == CONFIG, file != ORIGIN)):
        target.filesystem.move(f"{aside}/{file}", f"{target.path}/{file}")


def _delete(aside: str, filesystem: fs.FileSystem) -> None:
    if filesystem.get_file_info(aside).type != fs.FileType.NotFound:
        filesystem.delete_dir(aside)


def copy_files(source: Path, directory: Path, but_not: Set[str] = frozenset()) -> None:
    """Those beside the weights."""
    for path in other_files(source):
        if path.name not in but_not:
            shutil.copyfile(path, directory / path.name)


def take_language(source: Path, directory: Path) -> None:
    """Remove from `directory` what the tokenizer or the chat template of `source` takes the place of.

    A template of `directory` stays, if `source` has none, in a file of its own.
    """
    template = directory / "chat_template.jinja"
    if has_chat_template(source):
        template.unlink(missing_ok=True)
    elif (kept := _template_in_settings(directory)) and not template.exists():
        template.write_text(kept)
    if any((source / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        for path in [path for pattern in TOKENIZER for path in directory.glob(pattern)]:
            path.unlink()


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GB:.2f} GB" if num_bytes >= GB / 10 else f"{num_bytes / MB:.2f} MB"


def _hint(command: str, directory: Path) -> str:
    """What a model lacks that is made to be talked with."""
    if command not in ("apply-delta", "merge-lora") or has_chat_template(directory):
        return ""
    return "; it has no chat template, --template gives it one"


def has_chat_template(directory: Path) -> bool:
    """Whether there is one, in a file of its own or in the tokenizer's settings."""
    return (directory / "chat_template.jinja").exists() or _template_in_settings(directory) is not None


def _template_in_settings(directory: Path) -> str | None:
    try:
        template = json.loads((directory / "tokenizer_config.json").read_text()).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None
    return template if isinstance(template, str) and template else None
