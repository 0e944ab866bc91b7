"""Ways in which a run ends that trying again would not mend.

RunError
└── WouldFailAgain
    ├── Diverged
    ├── SameErrorAgain
    ├── SavesFailed
    └── TakenOver
"""

from data_prep.errors import RunError


class WouldFailAgain(RunError):  # noqa: N818 - named for what it is
    """Every rank raises it at the same step. Also recorded as the run's last event."""


class Diverged(WouldFailAgain):
    """Loss or gradients are no longer finite."""


class SameErrorAgain(WouldFailAgain):
    """An error of what is computed came twice on the same rank at the same step."""


class SavesFailed(WouldFailAgain):
    """No checkpoint could be saved, several times in a row."""


class TakenOver(WouldFailAgain):
    """Another command, or other workers, go on with the run. Nothing is recorded: the run is theirs."""
