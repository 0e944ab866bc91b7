"""Recorded availability and prices of spot machines: one CSV file per zone, `date,available,spot_usd_per_hour`."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from data_prep.errors import DataError

COLUMNS = ("date", "available", "spot_usd_per_hour")
_ZONE = re.compile(r"(?P<region>[a-z]{2}(-[a-z]+)+-\d)(?P<letter>[a-z])")


@dataclass(frozen=True)
class Trace:
    """Of one zone: for each step of `step_h` hours whether there was a machine, and its price in dollars per hour."""

    zone: str
    start: datetime
    step_h: float
    available: tuple[bool, ...]
    usd_per_hour: tuple[float, ...]

    @property
    def region(self) -> str:
        """The zone without its letter, where it looks like one of AWS's; otherwise the zone."""
        return region_of(self.zone)

    def scaled(self, by: float) -> "Trace":
        """With prices so many times as high."""
        return replace(self, usd_per_hour=tuple(by * usd for usd in self.usd_per_hour))

    def window(self, start_h: float, hours: float) -> "Trace":
        """The part from `start_h` on that covers `hours`; DataError if the trace ends before."""
        first = round(start_h / self.step_h)
        last = first + int(-(-hours // self.step_h))
        if last > len(self.available):
            covered = len(self.available) * self.step_h
            raise DataError(
                f"{self.zone}: the trace covers {covered:.1f} h; {start_h:.1f} to {start_h + hours:.1f} h were asked"
            )
        return replace(self, available=self.available[first:last], usd_per_hour=self.usd_per_hour[first:last])


def region_of(zone: str) -> str:
    """`us-east-1` of `us-east-1c`."""
    found = _ZONE.fullmatch(zone)
    return found["region"] if found else zone


def read_traces(paths: Sequence[Path]) -> list[Trace]:
    """Read the traces of several zones, which must be of the same times.

    The zone is the file's name up to its first `_` or its end: `us-east-1c_v100.csv` is of `us-east-1c`.

    Raises:
        DataError: a file is missing or malformed (file and line are named), or the traces do not fit together.
    """
    traces = [read_trace(path) for path in paths]
    for trace, path in zip(traces, paths, strict=True):
        first = traces[0]
        if (trace.start, trace.step_h, len(trace.available)) != (first.start, first.step_h, len(first.available)):
            raise DataError(
                f"{path}: it is not of the same times as {paths[0]}: start, step and number of rows must agree"
            )
        if [other.zone for other in traces].count(trace.zone) > 1:
            raise DataError(f"{path}: there are two traces of {trace.zone}")
    return traces


def read_trace(path: Path) -> Trace:
    """Read one trace; see `read_traces`."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file: {error}") from None
    missing = [name for name in COLUMNS if rows and name not in rows[0]]
    if missing or len(rows) < 2:
        wrong = f"there is no column {missing[0]!r}" if missing else "it has fewer than two rows"
        raise DataError(f"{path}: {wrong}; expected the columns {','.join(COLUMNS)}")
    times, available, prices = zip(*(_read_row(row, f"{path}:{line}") for line, row in enumerate(rows, 2)), strict=True)
    usual = sorted(after - before for before, after in pairwise(times))[(len(times) - 1) // 2]
    for line, (before, after) in enumerate(pairwise(times), 3):
        if not usual / 2 < after - before < 2 * usual:
            raise DataError(f"{path}:{line}: date: {after} follows {before}, where rows are {usual} apart")
    step = (times[-1] - times[0]) / (len(times) - 1)
    zone = path.name.split(".")[0].split("_")[0]
    return Trace(zone, times[0], step.total_seconds() / 3600, tuple(available), tuple(prices))


def _read_row(row: Mapping[str, str | None], where: str) -> tuple[datetime, bool, float]:
    date, available, price = (row[name] or "" for name in COLUMNS)
    try:
        time = datetime.fromisoformat(date)
    except ValueError:
        raise DataError(f"{where}: date: {date!r} is not valid; expected one like 2023-02-15 22:08:16") from None
    if available not in ("0", "1"):
        raise DataError(f"{where}: available: {available!r} is not valid; expected 0 or 1")
    try:
        usd = float(price)
    except ValueError:
        usd = -1.0
    if not 0 < usd < float("inf"):
        raise DataError(f"{where}: spot_usd_per_hour: {price!r} is not valid; expected dollars, more than 0")
    return time, available == "1", usd
