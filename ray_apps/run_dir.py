"""The contract of a run directory: plain files that say what is complete.

    run/
        receipt.json                    what the run was made of
        metrics.jsonl                   one line per step and per event
        tensorboard/
        checkpoints/step-00000040/      a complete checkpoint: its COMPLETE marker lists every file and its size
        checkpoints/.step-00000060.aside/    one being written; never read

A checkpoint is written aside, then marked, then renamed. Whatever kills a process in between, the newest complete
checkpoint is found.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.errors import RunError
from data_prep.storage import commit_directory, write_text

logger = logging.getLogger(__name__)

MARKER = "COMPLETE"
RECEIPT_NAME = "receipt.json"


class RunDir:
    """The files of one training run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.receipt = self.path / RECEIPT_NAME
        self.tensorboard = self.path / "tensorboard"

    def aside(self, step: int) -> Path:
        """Where the checkpoint of `step` is written before it is complete."""
        return self.checkpoints / f".{_name(step)}.aside"

    def begin_checkpoint(self, step: int) -> Path:
        """An empty place to write the checkpoint of `step` to; remains of interrupted saves are removed."""
        for stale in self.checkpoints.glob(".step-*"):
            shutil.rmtree(stale)
        self.aside(step).mkdir(parents=True)
        return self.aside(step)

    def commit_checkpoint(self, step: int, keep_last: int) -> Path:
        """Mark the checkpoint of `step` complete, put it in place, and remove all but the newest `keep_last`."""
        aside = self.aside(step)
        sizes = {file.name: file.stat().st_size for file in sorted(aside.iterdir())}
        (aside / MARKER).write_text(json.dumps({"step": step, "files": sizes}, indent=1))
        target = self.checkpoints / _name(step)
        commit_directory(aside, target)
        for old in sorted(self._complete())[:-keep_last]:
            shutil.rmtree(self.checkpoints / _name(old))
        return target

    def latest_checkpoint(self) -> tuple[int, Path] | None:
        """Step and directory of the newest complete checkpoint, if there is one."""
        steps = max(self._complete(), default=None)
        return None if steps is None else (steps, self.checkpoints / _name(steps))

    def _complete(self) -> Iterator[int]:
        for directory in self.checkpoints.glob("step-*"):
            if (problem := _problem(directory)) is None:
                yield int(directory.name.removeprefix("step-"))
            else:
                logger.warning("checkpoint %s is incomplete (%s) and is passed over", directory, problem)

    def check_receipt(self, receipt: Mapping[str, Any]) -> None:
        """Write the receipt of a new run, or refuse to continue a run that was made of something else.

        Raises:
            RunError: naming each setting that differs.
        """
        if not self.receipt.exists():
            write_text(self.receipt, json.dumps(receipt, indent=2, sort_keys=True) + "\n")
            return
        before, now = dict(_flat(json.loads(self.receipt.read_text()))), dict(_flat(receipt))
        changed = [
            f"{name} ({before.get(name)!r} → {now.get(name)!r})"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise RunError(
                f"train.run_dir: {str(self.path)!r} holds a run made with other settings: {', '.join(changed)}; "
                "choose another run_dir, or start over with --fresh"
            )

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every whole line of `metrics.jsonl`; a line cut off by a kill is left out."""
        if not self.metrics.exists():
            return []
        records = []
        for line in self.metrics.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return records


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting by its dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _problem(directory: Path) -> str | None:
    """What keeps a checkpoint from being complete; None if nothing does."""
    try:
        files = json.loads((directory / MARKER).read_text())["files"]
    except FileNotFoundError:
        return f"no {MARKER} marker"
    except (ValueError, KeyError, TypeError):
        return f"unreadable {MARKER} marker"
    for name, size in files.items():
        path = directory / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None
