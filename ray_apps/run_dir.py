"""The contract of a run directory, on a disk or on S3: plain files that say what is complete.

    run/
        receipt.json                    what the run was made of
        WRITER                          the command and the workers that took the run over last
        metrics.jsonl                   one line per step and per event; on S3 in parts, metrics-*.jsonl
        tensorboard/
        checkpoints/step-00000040/      complete: its COMPLETE marker lists each file's size and SHA-256
        checkpoints/.step-00000060.1f3a.aside/     one being written; never read

On a disk a checkpoint is written aside, then marked, then renamed. On S3, which cannot rename, it is written in place
under a name of its own (step-00000060-1f3a) and is complete once the marker is there. Whatever kills a process in
between, the newest complete checkpoint is found.

Of several writers the last that took the run over goes on. The others find out when they look, at the latest before
they commit. One that looks just before it is too late does no harm either: on a disk a checkpoint gets its name, and
loses it, at once and whole; on S3 none counts as complete without each of its files, and old ones are removed only by
a writer that still is one after its marker is there.
"""

import hashlib
import json
import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.errors import ConfigError, RunError
from data_prep.folder import Folder

logger = logging.getLogger(__name__)

MARKER, DAMAGED = "COMPLETE", "DAMAGED"
RECEIPT_NAME = "receipt.json"
ENVIRONMENT = "environment"
"""In a receipt, what the run was begun with; it may go on with something else."""
STOP, WRITER = "STOP", "WRITER"
PART_BYTES = 256 * 1024
PART_INTERVAL_S = 5.0

Files = dict[str, dict[str, Any]]
"""Name → {"bytes", "sha256"}."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose marker is whole and whose files have the sizes it lists."""

    step: int
    folder: Folder
    files: Files
    eval_loss: float | None

    def damage(self, names: Iterable[str] | None = None) -> str | None:
        """What is wrong with the bytes of the named files, or of all; None if their SHA-256 are those of the marker."""
        for name in self.files if names is None else names:
            with self.folder.reading(name) as stream:
                if _sha256(stream) != self.files[name]["sha256"]:
                    return f"{name} has another SHA-256 than when it was written"
        return None


class RunDir:
    """The files of one training run."""

    def __init__(self, path: object) -> None:
        self.folder = Folder(str(path))
        self.checkpoints = self.folder / "checkpoints"
        self.tensorboard = self.folder / "tensorboard"
        self._lines: list[str] = []
        self._part = ""
        self._written_at = 0.0

    def take_over(self, launch: str, workers: str | None = None) -> None:
        """Let a command, and then its `workers`, alone write checkpoints from now on."""
        process = f"process {os.getpid()} on {socket.gethostname()}"
        self.folder.make()
        self.folder.write(WRITER, json.dumps({"launch": launch, "workers": workers, "process": process}))

    def lost_to(self, writer: str) -> str | None:
        """How a command or its workers lost the run to others; None if they did not."""
        text = self.folder.read(WRITER)
        if text is None:
            return f"{self.folder} was removed, or is not seen by {socket.gethostname()}: it has no file {WRITER}"
        known = json.loads(text)
        return None if writer in known.values() else f"{self.folder} was taken over by {known['process']}"

    def _check_writer(self, writer: str) -> None:
        if lost := self.lost_to(writer):
            raise OSError(lost)

    def aside(self, step: int, writer: str) -> Folder:
        """Where the workers `writer` write the checkpoint of `step` before it is complete."""
        return self.checkpoints / (
            f"{_name(step)}-{writer}" if self.folder.is_remote else f".{_name(step)}.{writer}.aside"
        )

    def begin_checkpoint(self, step: int, writer: str) -> Folder:
        """An empty place to write the checkpoint of `step` to; remains of interrupted saves are removed.

        Raises:
            OSError: others have taken the run over.
        """
        self._check_writer(writer)
        for name in self.checkpoints.folders():
            if name.startswith(".step-") or self._is_remains(name):
                self._remove(name)
        aside = self.aside(step, writer)
        aside.make()
        return aside

    def _is_remains(self, name: str) -> bool:
        """Whether it has the name of a checkpoint and is neither complete nor condemned.

        Asked just before it is removed: whoever has taken the run over meanwhile may complete it at any time.
        """
        folder, step = self.checkpoints / name, _step(name)
        is_ours = step is not None and (self.folder.is_remote or name == _name(step))
        return is_ours and DAMAGED not in folder.sizes() and isinstance(_read_marker(folder), str)

    def _remove(self, name: str) -> None:
        """Remove a checkpoint or remains; on a disk the name goes first, so that none is ever seen without a part."""
        if not self.folder.is_remote:
            removed = f".step-{uuid.uuid4().hex}.removed"
            try:
                self.checkpoints.move_file(name, removed)
            except FileNotFoundError:  # it has just been committed, or another removes it
                return
            name = removed
        (self.checkpoints / name).remove()

    def commit_checkpoint(
        self,
        step: int,
        writer: str,
        files: Files,
        *,
        eval_loss: float | None = None,
        keep_last: int = 2,
        keep_best: int = 0,
    ) -> Checkpoint:
        """Mark the checkpoint complete and put it in place; then remove what need not stay.

        The newest `keep_last` stay, and the `keep_best` of the lowest loss on the rows held out. One that is complete
        already is never replaced.

        Raises:
            OSError: others have taken the run over, or a file is not there as it was written.
        """
        aside = self.aside(step, writer)
        self._check_writer(writer)
        if missing := _missing(aside, files):
            raise OSError(f"{aside}: {missing}")
        aside.write(MARKER, json.dumps({"step": step, "eval_loss": eval_loss, "files": files}, indent=1))
        committed = Checkpoint(step, aside, files, eval_loss) if self.folder.is_remote else self._rename(step, aside)
        try:
            self._check_writer(writer)
            self._remove_old(keep_last, keep_best)
        except OSError as error:  # the new one is complete, whatever becomes of the old
            logger.warning("%s: an old checkpoint cannot be removed: %s", self.checkpoints, error)
        return committed

    def _rename(self, step: int, aside: Folder) -> Checkpoint:
        """Give a marked checkpoint its name, unless one that is complete has it."""
        target = self.checkpoints / _name(step)
        if isinstance(_read_marker(target), dict):
            aside.remove()
        else:
            if _name(step) in self.checkpoints.folders():
                self._remove(_name(step))
            aside.commit_as(target)
        marker = _read_marker(target)
        if isinstance(marker, str):
            raise OSError(f"{target}: {marker}")
        return Checkpoint(step, target, marker["files"], marker.get("eval_loss"))

    def _remove_old(self, keep_last: int, keep_best: int) -> None:
        complete = self.complete_checkpoints()
        judged = sorted((c.eval_loss, -c.step, c.folder.place) for c in complete if c.eval_loss is not None)
        stay = {c.folder.place for c in complete[:keep_last]} | {place for *_, place in judged[:keep_best]}
        for checkpoint in complete:
            if checkpoint.folder.place not in stay:
                self._remove(checkpoint.folder.place.rpartition("/")[2])

    def complete_checkpoints(self) -> list[Checkpoint]:
        """All complete checkpoints, the newest first. Their bytes are not read."""
        return sorted(self._complete(), key=lambda checkpoint: checkpoint.step, reverse=True)

    def latest_checkpoint(self) -> Checkpoint | None:
        """The newest complete checkpoint, if there is one. Its bytes are not read."""
        return next(iter(self.complete_checkpoints()), None)

    def best_checkpoint(self) -> Checkpoint | None:
        """The complete checkpoint of the lowest loss on the rows held out, if one was measured."""
        judged = [c for c in self.complete_checkpoints() if c.eval_loss is not None]
        return min(judged, key=lambda c: (c.eval_loss, -c.step), default=None)

    def _complete(self) -> Iterator[Checkpoint]:
        for name in self.checkpoints.folders():
            if (step := _step(name)) is None:
                continue
            folder = self.checkpoints / name
            found = _read_marker(folder)
            if isinstance(found, str):
                logger.warning("checkpoint %s is incomplete (%s) and is passed over", folder, found)
            else:
                yield Checkpoint(step, folder, found["files"], found.get("eval_loss"))

    def condemn(self, checkpoint: Checkpoint, damage: str) -> None:
        """Take a damaged checkpoint out of those that are complete, and say so; its files stay."""
        checkpoint.folder.move_file(MARKER, DAMAGED)
        message = f"checkpoint {checkpoint.folder} is damaged ({damage}) and is passed over"
        logger.warning(message)
        self.append_metrics({"event": "warning", "time": time.time(), "message": message})

    def check_replaceable(self) -> None:
        """Refuse to start over in a place that holds something else than a run.

        Raises:
            ConfigError: naming it.
        """
        if not self.folder.is_empty(but_for=f".{RECEIPT_NAME}.") and not self.has_receipt():
            raise ConfigError(
                f"train.run_dir: {str(self.folder)!r} has no {RECEIPT_NAME}: it is not ours to replace; "
                "choose another path"
            )

    def remove(self) -> None:
        """Remove the run, its receipt last: killed on the way, it is still known for a run.

        Raises:
            ConfigError: something else is there.
        """
        self.check_replaceable()
        for name in self.folder.folders():
            (self.folder / name).remove()
        for name in self.folder.sizes():
            if name != RECEIPT_NAME:
                self.folder.remove_file(name)
        self.folder.remove()

    def has_receipt(self) -> bool:
        """Whether a run was begun here."""
        return self.folder.read(RECEIPT_NAME) is not None

    def read_receipt(self) -> dict[str, Any] | None:
        """What the run is made of."""
        text = self.folder.read(RECEIPT_NAME)
        return None if text is None else dict(json.loads(text))

    def check_receipt(self, receipt: Mapping[str, Any], environment: Mapping[str, Any] | None = None) -> None:
        """Write the receipt of a new run, or refuse to continue a run that was made of something else.

        `environment`: what the run begins with, which is written down and may change.

        Raises:
            RunError: naming each setting that differs.
        """
        known = self.read_receipt()
        if known is None:
            whole = {**receipt, **({ENVIRONMENT: environment} if environment else {})}
            self.folder.make()
            self.folder.write(RECEIPT_NAME, json.dumps(whole, indent=2, sort_keys=True) + "\n")
        elif changed := differences({k: v for k, v in known.items() if k != ENVIRONMENT}, receipt):
            raise RunError(
                f"train.run_dir: {str(self.folder)!r} holds a run made with other settings: {', '.join(changed)}; "
                "choose another run_dir, or start over with --fresh"
            )

    def ask_to_stop(self, launch: str = "") -> None:
        """Ask the run, if it is that of `launch`, or whosever it is, to save and end after the step under way."""
        self.folder.write(STOP, launch)

    def is_asked_to_stop(self) -> bool:
        """Whether somebody asked who may: one that has lost the run to another launch may not."""
        asked = self.folder.read(STOP)
        return asked is not None and (not asked or self.lost_to(asked) is None)

    def forget_to_stop(self) -> None:
        """Take an earlier request back."""
        self.folder.remove_file(STOP)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one line to the metrics. On S3 a step's line may wait for `PART_INTERVAL_S`; an event's does not."""
        line = json.dumps(record) + "\n"
        if not self.folder.is_remote:
            self.folder.append("metrics.jsonl", line)
            return
        if not self._part or sum(map(len, self._lines)) > PART_BYTES:
            self._part, self._lines = f"metrics-{time.time_ns() // 1000:020d}.jsonl", []
        self._lines.append(line)
        if "event" in record or time.monotonic() - self._written_at > PART_INTERVAL_S:
            self.folder.write(self._part, "".join(self._lines))
            self._written_at = time.monotonic()

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every whole line of the metrics; a line cut off by a kill is left out."""
        names = sorted(name for name in self.folder.sizes() if re.fullmatch(r"metrics(-\d+)?\.jsonl", name))
        records = []
        for line in "".join(self.folder.read(name) or "" for name in names).splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        # On S3 each process that writes has parts of its own.
        return sorted(records, key=lambda record: record.get("time", 0.0)) if self.folder.is_remote else records


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`name (before → now)` for each setting that differs."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return [
        f"{name} ({old.get(name)!r} → {new.get(name)!r})"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting by its dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _step(name: str) -> int | None:
    found = re.fullmatch(r"step-(\d{8})(-\w+)?", name)
    return int(found[1]) if found else None


def _sha256(stream: Any) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 22):
        digest.update(chunk)
    return digest.hexdigest()


def _read_marker(folder: Folder) -> dict[str, Any] | str:
    """The marker of a complete checkpoint, or what keeps it from being complete."""
    text = folder.read(MARKER)
    if text is None:
        return f"no {MARKER} marker"
    try:
        marker = json.loads(text)
        return _missing(folder, marker["files"]) or dict(marker)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"unreadable {MARKER} marker"


def _missing(folder: Folder, files: Files) -> str | None:
    """The first of the files that is not there with its size, if any."""
    sizes = folder.sizes()
    for name, file in files.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != int(file["bytes"]):
            return f"{name} has {sizes[name]} bytes instead of {file['bytes']}"
    return None
