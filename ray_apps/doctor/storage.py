"""Whether every worker can write to a place, commit, and read what the others wrote; how fast; and if there is room.

Nothing stays behind, whatever fails. On a disk the shards lie in a folder of their own beside the path, or in the
nearest folder above it that exists; on `s3://` under the path itself, since rights often end there.
"""

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyarrow import fs

from data_prep.errors import VicunaError
from data_prep.storage import commit_directory, is_remote, open_filesystem
from ray_apps.doctor.check import Check, describe_bytes
from ray_apps.doctor.workers import Answer, Workers, failures, first_ranks
from ray_apps.run_dir import MARKER

SHARD_BYTES = 32 * 2**20
BLOCK_BYTES = 2**20
BUDGET_S = 1.0
"""A worker stops writing after that long, however little it wrote."""
TIMEOUT_S = 20.0


class StorageError(Exception):
    """What a place cannot do."""


def probe_folder(path: str) -> str:
    """A name of its own for the folder of one check of `path`."""
    name = f".vicuna-doctor-{secrets.token_hex(4)}"
    if is_remote(path):
        return f"{path.rstrip('/')}/{name}"
    place = Path(path).expanduser().absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    return str(place / name)


def aside(folder: str) -> str:
    """Where shards are written to before the commit: object storage has no rename, a marker alone commits there."""
    return folder if is_remote(folder) else f"{folder}.aside"


def write_shard(
    rank: int, world_size: int, folder: str, num_bytes: int = SHARD_BYTES, budget_s: float = BUDGET_S
) -> dict[str, Any]:
    """Write random blocks, and have the storage confirm them. Runs in each worker."""
    filesystem, place = open_filesystem(aside(folder))
    if not is_remote(folder):
        Path(place).mkdir(exist_ok=True)
    path, checksum = f"{place}/shard-{rank}", hashlib.sha256()
    block, written, seconds = bytearray(os.urandom(BLOCK_BYTES)), 0, 0.0
    started = time.perf_counter()
    with filesystem.open_output_stream(path) as stream:
        seconds += time.perf_counter() - started
        while written < num_bytes and seconds < budget_s:
            block[:8] = written.to_bytes(8, "big")  # no two blocks are alike
            checksum.update(block)
            started = time.perf_counter()
            stream.write(block)
            seconds += time.perf_counter() - started
            written += len(block)
        started = time.perf_counter()
    if not is_remote(folder):
        _confirm(path)
    seconds += time.perf_counter() - started
    return {"bytes": written, "seconds": seconds, "checksum": checksum.hexdigest()}


def _confirm(path: str) -> None:
    """Force a file to the disk and out of memory, so that reading it again is reading the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def commit(rank: int, world_size: int, folder: str) -> float:
    """Mark the shards complete, as a checkpoint is; gives the seconds that took. Runs in one worker."""
    started = time.perf_counter()
    filesystem, place = open_filesystem(aside(folder))
    with filesystem.open_output_stream(f"{place}/{MARKER}") as stream:
        stream.write(b"{}")
    if not is_remote(folder):
        commit_directory(Path(place), Path(folder))
    return time.perf_counter() - started


def read_shard(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """Read the next worker's shard, which is another node's where there are several. Runs in each worker."""
    filesystem, place = open_filesystem(folder)
    names = {info.base_name for info in filesystem.get_file_info(fs.FileSelector(place))}
    checksum, size, seconds = hashlib.sha256(), 0, 0.0
    path = f"{place}/shard-{(rank + 1) % world_size}"
    with filesystem.open_input_stream(path) as stream:
        while True:
            started = time.perf_counter()
            block = stream.read(BLOCK_BYTES)
            seconds += time.perf_counter() - started
            if not block:
                break
            checksum.update(block)
            size += len(block)
    return {"bytes": size, "seconds": seconds, "checksum": checksum.hexdigest(), "names": sorted(names)}


def remove(rank: int, world_size: int, folder: str, absent: Sequence[str] = ()) -> None:
    """Delete what the check has written; nothing there is fine.

    `absent` are prefixes on object storage that were not there before. Deleting leaves empty markers of them.
    """
    if not is_remote(folder):
        for place in (folder, aside(folder), f"{aside(folder)}.old"):
            if Path(place).exists():
                shutil.rmtree(place)
        return
    filesystem, place = open_filesystem(folder)
    for prefix in (place, *absent):
        found = filesystem.get_file_info(fs.FileSelector(prefix, recursive=True, allow_not_found=True))
        is_there = filesystem.get_file_info(prefix).type == fs.FileType.Directory
        if is_there and (prefix == place or not found):
            filesystem.delete_dir(prefix)


def absent_prefixes(folder: str) -> list[str]:
    """Prefixes above `folder` on object storage under which there is nothing, the innermost first."""
    if not is_remote(folder):
        return []
    filesystem, place = open_filesystem(folder)
    above = [part.as_posix() for part in Path(place).parents][:-2]  # without the bucket
    return [prefix for prefix in above if filesystem.get_file_info(prefix).type == fs.FileType.NotFound]


def room(rank: int, world_size: int, path: str, folder: str) -> tuple[int, int, int] | None:
    """Device number and free bytes of the disk that will hold `path`, and bytes that lie under it; None elsewhere."""
    if is_remote(path):
        return None
    holder = Path(folder).parent
    there = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
    return holder.stat().st_dev, shutil.disk_usage(holder).free, there


def check_storage(
    paths: Mapping[str, str], needed_bytes: Mapping[str, int], workers: Workers, timeout_s: float = TIMEOUT_S
) -> Iterator[Check]:
    """Write, commit, read and delete in each place; `paths` and `needed_bytes` are by field.

    Fields whose paths lie in the same folder are checked as one.
    """
    together: dict[str, list[str]] = {}
    for field, path in paths.items():
        together.setdefault(str(Path(probe_folder(path)).parent), []).append(field)
    for fields in together.values():
        name = ", ".join(fields)
        path, needed = paths[fields[0]], sum(needed_bytes.get(field, 0) for field in fields)
        try:
            measures = _measure(path, workers, timeout_s)
        except StorageError as problem:
            yield Check("storage", name, "problem", str(problem), _advice(str(problem), fields))
            continue
        yield _judge(name, path, measures, needed)


def _advice(problem: str, fields: Sequence[str]) -> str:
    elsewhere = f"or choose another place for {' and '.join(fields)}"
    if "does not see" in problem:
        return f"mount one folder on every node, {elsewhere}"
    if "space" in problem or "too large" in problem or "quota" in problem.lower():
        return f"free some space, {elsewhere}"
    return f"let this user write there from every node, {elsewhere}"


def _measure(path: str, workers: Workers, timeout_s: float) -> dict[str, float]:
    """Figures of one place. Raises StorageError."""
    if not is_remote(path):
        path = str(Path(path).expanduser().absolute())
    folder = probe_folder(path)
    try:
        absent = absent_prefixes(folder)
    except (OSError, VicunaError) as error:
        raise StorageError(f"cannot be reached: {_first_line(error)}") from None
    try:
        measures = _use(path, folder, workers, timeout_s)
        _all(workers.run(remove, folder, absent, timeout_s=timeout_s, ranks=[0]), "deleting")
        return measures
    finally:
        workers.run(remove, folder, absent, timeout_s=timeout_s, ranks=first_ranks(workers.nodes))
        with suppress(OSError):
            remove(0, 1, folder, absent)


def _use(path: str, folder: str, workers: Workers, timeout_s: float) -> dict[str, float]:
    written = _all(workers.run(write_shard, folder, timeout_s=timeout_s), "writing")
    (committed,) = _all(workers.run(commit, folder, timeout_s=timeout_s, ranks=[0]), "committing")
    expected = sorted([MARKER, *(f"shard-{rank}" for rank in range(len(written)))])
    _check_seen_here(folder, expected)
    answers = workers.run(read_shard, folder, timeout_s=timeout_s)
    read = _all(answers, "reading")
    for answer in answers:
        owner = (answer.rank + 1) % len(written)
        if answer.value["names"] != expected:
            raise StorageError(f"{answer.who} does not see what the others wrote")
        if answer.value["checksum"] != written[owner]["checksum"]:
            raise StorageError(f"{answer.who} read other bytes than rank {owner} wrote")
    (space,) = _all(workers.run(room, path, folder, timeout_s=timeout_s, ranks=[0]), "asking for free space")
    measures = {"write_mb_per_s": _rate(written), "read_mb_per_s": _rate(read), "commit_s": committed}
    return measures | ({} if space is None else dict(zip(("device", "free_bytes", "used_bytes"), space, strict=True)))


def _all(answers: Sequence[Answer], doing: str) -> list[Any]:
    """What every worker answered. Raises StorageError."""
    if told := failures(answers):
        lost = doing == "reading" and "No such file" in told
        raise StorageError(f"a worker does not see what the others wrote: {told}" if lost else f"{doing}: {told}")
    return [answer.value for answer in answers]


def _check_seen_here(folder: str, expected: list[str]) -> None:
    """This process starts and watches the run: it must see what workers write."""
    filesystem, place = open_filesystem(folder)
    found = filesystem.get_file_info(fs.FileSelector(place, allow_not_found=True))
    if sorted(info.base_name for info in found) != expected:
        raise StorageError("this machine does not see what the workers wrote")


def _rate(shards: Sequence[Mapping[str, Any]]) -> float:
    """Megabytes a second of all workers together."""
    return float(sum(shard["bytes"] for shard in shards) / max(shard["seconds"] for shard in shards) / 1e6)


def _judge(name: str, path: str, measures: dict[str, float], needed: int) -> Check:
    found = (
        f"{path}: write {measures['write_mb_per_s']:,.0f} MB/s, read {measures['read_mb_per_s']:,.0f} MB/s, "
        f"commit {measures['commit_s'] * 1e3:,.0f} ms"
    )
    if "free_bytes" not in measures:
        told = f"{found}; {describe_bytes(needed)} will be written" if needed else found
        return Check("storage", name, "ok", told, measures={**measures, "needed_bytes": needed})
    free, missing = measures["free_bytes"], max(0, needed - measures["used_bytes"])
    found += f", {describe_bytes(free)} free" + (f" of {describe_bytes(missing)} still needed" if needed else "")
    kept = {key: value for key, value in measures.items() if key != "device"} | {"needed_bytes": needed}
    if free >= missing:
        return Check("storage", name, "ok", found, measures=kept)
    advice = f"free {describe_bytes(missing - free)}, keep fewer checkpoints, or choose a larger disk"
    return Check("storage", name, "problem", found, advice, kept)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
