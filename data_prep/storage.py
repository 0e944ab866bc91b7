"""Files on a disk or on S3, through one filesystem; write aside, then commit.

`AWS_ENDPOINT_URL` points `s3://` at another S3-compatible service. Credentials come from the environment only.
"""

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any

from pyarrow import fs

from data_prep.errors import ConfigError, ModelError, VicunaError

MODEL_FILES = ("*.json", "*.jinja", "*.model", "*.safetensors", "*.txt")
_MAKING_S = 3600  # no process takes as long from one line to the next
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
TOKENIZER_FILES = ("*.json", "*.jinja", "tokenizer.model", "*.txt")


def is_remote(path: str) -> bool:
    """Whether `path` is on object storage rather than on a disk."""
    return "://" in path


def open_filesystem(path: str, **options: Any) -> tuple[fs.FileSystem, str]:
    """The filesystem that holds `path`, and the path within it. `options` are those of pyarrow's `S3FileSystem`.

    Raises:
        VicunaError: the scheme is neither a plain path nor `s3://`.
    """
    if not is_remote(path):
        return fs.LocalFileSystem(), str(Path(path).absolute())
    scheme, _, inner = path.partition("://")
    if scheme != "s3":
        raise VicunaError(f"{path}: unknown scheme {scheme!r}; valid: a local path or s3://bucket/key")
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION", "us-east-1")
        return fs.S3FileSystem(endpoint_override=endpoint, region=region, **options), inner.rstrip("/")
    return fs.S3FileSystem(region=_region_of(inner.partition("/")[0]), **options), inner.rstrip("/")


@cache
def _region_of(bucket: str) -> str:
    """Where a bucket is, which need not be where this machine is. Raises OSError if there is no such bucket."""
    return str(fs.resolve_s3_region(bucket))


def file_state(path: str) -> tuple[int, str]:
    """Size in bytes of a file, and a hash of its content, or on object storage of its time of change."""
    filesystem, inner = open_filesystem(path)
    info = filesystem.get_file_info(inner)
    if is_remote(path):
        return info.size, hashlib.sha256(f"{info.size} {info.mtime_ns}".encode()).hexdigest()
    with Path(path).open("rb") as file:
        return info.size, hashlib.file_digest(file, "sha256").hexdigest()


def local_model(model: str, patterns: tuple[str, ...] = MODEL_FILES, marker: str = "config.json") -> Path:
    """A local directory with the files of `model` that match `patterns`.

    `model` is a directory, an `s3://` path, or a hub id such as `org/name`. Remote files are copied once into the
    user's cache; a changed file upstream gets a new copy. `marker`: the file without which it is none.

    Raises:
        ModelError: nothing is there, or it cannot be reached.
    """
    if is_remote(model):
        return _fetch(model, patterns, marker)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / marker).is_file():
            raise ModelError(f"model {model!r}: the directory has no {marker}")
        return path
    if not is_hub_id(model):
        raise ModelError(f"model {model!r}: no such directory")
    return _from_hub(model, patterns)


def is_hub_id(model: str) -> bool:
    """Whether `model` has the form of a hub id, `org/name`, and is no path into a directory called `org`."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", model) is not None and not Path(model).parent.is_dir()


def _from_hub(model: str, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(patterns)))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"model {model!r}: not a directory here, and the hub did not give it: {reason}") from None


def _fetch(uri: str, patterns: tuple[str, ...], marker: str) -> Path:
    try:
        return _copy_once(uri, patterns, marker)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {uri!r}: {str(error).splitlines()[0]}") from None


def _copy_once(uri: str, patterns: tuple[str, ...], marker: str) -> Path:
    filesystem, root = open_filesystem(uri)
    found = filesystem.get_file_info(fs.FileSelector(root))
    files = [info for info in found if info.is_file and any(fnmatch(info.base_name, pattern) for pattern in patterns)]
    if not any(info.base_name == marker for info in files):
        raise ModelError(f"model {uri!r}: there is no {marker} at that path")
    state = repr(sorted((info.path, info.size, info.mtime_ns) for info in files))
    target = cache_directory() / hashlib.sha256(f"{uri} {state}".encode()).hexdigest()[:16]
    if not target.is_dir():
        with written_aside(target) as aside:
            for info in files:
                fs.copy_files(info.path, str(aside / info.base_name), filesystem, fs.LocalFileSystem())
    return target


def cache_directory() -> Path:
    """Where copies of remote models are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "vicuna-ray" / "models"


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Give a directory beside `target` to write into; rename it to `target` when the block ends well.

    An existing `target` is replaced at the end. After an error nothing is left behind. The files are flushed to the
    disk before the rename, so that `target` is never seen half-written, not even after a power cut.
    """
    with scratch_beside(target) as aside:
        yield aside
        commit_directory(aside, target)


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """Give a directory beside `target` that is gone when the block ends.

    What killed processes left of theirs is removed first.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(target)
    name = f".{target.name}.{uuid.uuid4().hex[:8]}"
    making, aside = target.with_name(f"{name}.making"), target.with_name(f"{name}.aside")
    making.mkdir()
    held = os.open(making, os.O_RDONLY)
    try:
        _lock(held)
        making.rename(aside)  # only now may others look at it
        yield aside
    finally:
        os.close(held)
        for left in (making, aside):
            shutil.rmtree(left, ignore_errors=True)


def _clear_leftovers(target: Path) -> None:
    """Those of processes that are gone: the lock of one that lives cannot be had."""
    asides = f".{escape(target.name)}.{'[0-9a-f]' * 8}.aside"
    for path in target.parent.glob(asides):
        with suppress(OSError):
            held = os.open(path, os.O_RDONLY)
            if _lock(held):
                shutil.rmtree(path, ignore_errors=True)
            os.close(held)
    for path in target.parent.glob(f".{escape(target.name)}.{'[0-9a-f]' * 8}.making"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _MAKING_S:
                path.rmdir()
    for path in target.parent.glob(f"{asides}.old"):
        if target.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:  # killed before the new one had its name
            path.rename(target)


def _lock(descriptor: int) -> bool:
    """Whether the lock could be had. It lasts until the descriptor is closed, or its process ends however it ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def check_replaceable(target: Path, marker: str, field: str) -> None:
    """Refuse to replace what was not written by this project: `target` must be absent, empty, or hold `marker`.

    Raises:
        ConfigError: naming `field` and the path.
    """
    if not target.exists() or (target / marker).exists():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise ConfigError(f"{field}: {str(target)!r} has no {marker}: it is not ours to replace; choose another path")


def commit_directory(aside: Path, target: Path) -> None:
    """Flush `aside` to the disk and rename it to `target`, replacing what was there, which is then removed.

    Where the system can exchange two names at once, there is a `target` at every moment.
    """
    flush_directory(aside)
    old = aside.with_name(aside.name + ".old")
    with uninterrupted():
        if not target.exists():
            aside.rename(target)
        elif _exchange(aside, target):
            aside.rename(old)
        else:
            try:
                target.rename(old)
                aside.rename(target)
            except BaseException:
                if not target.exists():
                    old.rename(target)
                raise
        flush(target.parent)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C does nothing while the block runs; it should be short."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _exchange(one: Path, other: Path) -> bool:
    """Give each the other's name at once (Linux's renameat2); whether that can be done here."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    done = libc.renameat2(_HERE, os.fsencode(one.absolute()), _HERE, os.fsencode(other.absolute()), _EXCHANGE)
    return int(done) == 0


def flush_directory(directory: Path) -> None:
    """Force all that is in a directory to the disk."""
    for path in [*directory.rglob("*"), directory]:
        flush(path)


def flush(path: Path) -> None:
    """Force a file's bytes, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new, never a part. Its directory must be there."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.aside")
    try:
        aside.write_text(text)
        flush(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
