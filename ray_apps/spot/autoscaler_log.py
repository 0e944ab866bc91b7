"""Why a head gets no workers, from what its autoscaler tells. Pure.

Ray's older autoscaler tells the reason in `ray status`, its newer one only in its log.
"""

import re

from ray_apps.spot.aws_errors import CODES, blame_code
from ray_apps.spot.clusters import StartError, start_error

CLOCK = r"\b(\d\d):(\d\d):(\d\d)\b"
FAILED_S = 120
"""How long a failure to have workers counts; what is older may be over."""


def last_failure(told: str, node_type: str) -> StartError | None:
    """The newest failure to have machines of a type, of lines that say when and why; the first says what time it is."""
    now, *lines = [line.strip() for line in told.splitlines() if re.search(CLOCK, line)] or [""]
    told_code = rf"Node Launch Exception \((\w+)\)|\b({'|'.join(CODES)})\b"
    failure = re.compile(rf"\b{re.escape(node_type)}: .*?(?:{told_code})")
    for line in reversed(lines):
        if (found := failure.search(line)) and (_seconds(now) - _seconds(line)) % 86400 <= FAILED_S:
            return start_error(blame_code(found[1] or found[2]), line)
    return None


def _seconds(line: str) -> int:
    """The time of day in it."""
    found = re.search(CLOCK, line)
    assert found is not None
    hours, minutes, seconds = map(int, found.groups())
    return 3600 * hours + 60 * minutes + seconds
