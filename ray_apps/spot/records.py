"""Notices as files: one JSON file each, in a folder on a disk that all see or on S3, for whoever launches machines."""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from data_prep.folder import Folder
from ray_apps.spot.notices import Machine, Notice

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """A notice, the machine that got it, and what was done.

    `seen_at`: seconds since 1970. `node`: the Ray node's name or address. `drain_deadline`: what Ray was told, in the
    same seconds. `drained`: ids of the Ray nodes that were drained, empty until Ray has accepted it.
    """

    cloud: str
    machine: Machine
    node: str
    notice: Notice
    seen_at: float
    drain_deadline: float | None = None
    drained: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the machine."""
        return self.machine.instance or self.node

    @property
    def file_name(self) -> str:
        """The same for what is known of one notice earlier and later."""
        return re.sub(r"[^\w.-]", "_", f"{self.cloud}-{self.name}-{self.notice.id}") + ".json"


def write_record(place: str, record: Record) -> None:
    """Write it, over what was known of the same notice before.

    Raises:
        OSError: the place cannot be written to.
    """
    folder = Folder(place)
    folder.make()
    folder.write(record.file_name, json.dumps(asdict(record), indent=1) + "\n")


def read_records(place: str) -> list[Record]:
    """All that were written there, the oldest first. What is no record is passed over with a warning.

    Raises:
        OSError: the place cannot be read.
    """
    return sorted(_read(Folder(place)), key=lambda record: record.seen_at)


def _read(folder: Folder) -> Iterator[Record]:
    for name in folder.sizes():
        if not name.endswith(".json"):
            continue
        try:
            values: dict[str, Any] = json.loads(folder.read(name) or "")
            nested = {"machine": Machine(**values["machine"]), "notice": Notice(**values["notice"])}
            yield Record(**{**values, **nested, "drained": tuple(values["drained"])})
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s/%s is no record of a notice: %s", folder, name, error)


class NewNotices:
    """Notices of machines' ends as they come, each given once. `place`: as for `read_records`; None has none."""

    def __init__(self, place: str | None) -> None:
        self._place = place
        self._known: set[str] = set()

    def __call__(self, since: float) -> list[Record]:
        """Those seen since a time, in seconds since 1970, and not given before; none while they cannot be read."""
        try:
            records = read_records(self._place) if self._place else []
        except (OSError, ValueError) as error:  # pyarrow raises either
            logger.warning("notices cannot be read: %s", error)
            return []
        new = [record for record in records if record.file_name not in self._known and record.seen_at >= since]
        self._known |= {record.file_name for record in new}
        return [record for record in new if not record.notice.advisory]
