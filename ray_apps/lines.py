"""Files of JSON lines that only grow: each written whole and flushed before it counts.

Any number of processes may write to one file. A line that a power cut tore is skipped when it is read, and the next one
stands on a line of its own.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def append_line(path: Path, text: str) -> None:
    """Write a line to the end of the file, which is made, and flush it to the disk.

    Raises:
        OSError: it cannot be written; nothing of it stays.
    """
    line = text.encode() + b"\n"
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
            line = b"\n" + line
        try:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), end)
            raise


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """What is in the file, each line's content with words for where it is; none where there is no file.

    Lines that are torn, and so no JSON, are left out.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield f"{path}: line {number}", json.loads(line)
            except ValueError:
                continue
