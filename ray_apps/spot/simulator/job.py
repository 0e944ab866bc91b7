"""What is simulated: the work, and how long everything around it takes."""

from collections.abc import Mapping

from pydantic import Field

from ray_apps.spot.job import JobSettings
from ray_apps.spot.simulator.traces import region_of


class SimulatedJob(JobSettings):
    """A training run on machines of one kind. Prices are of all its machines together."""

    on_demand_usd_per_hour: float = Field(3.06, gt=0)
    """The same machines on demand."""
    price_scale: float = Field(1.0, gt=0)
    """By what the traces' prices are multiplied: for other machines than the traced ones, if theirs move alike."""
    save_h: float = Field(0.0, ge=0)
    """How long training stands still for a save."""
    write_h: float = Field(0.02, ge=0)
    """Until a save that has begun is complete in the object store."""
    notice_h: float = Field(2 / 60, ge=0)
    """Between the notice of a preemption and the end of the machine. With less than `save_h + write_h` there is no
    urgent checkpoint, and what was done since the last save is lost."""

    @property
    def has_urgent_saves(self) -> bool:
        """Whether a checkpoint is complete before a machine that is taken away is gone."""
        return self.notice_h >= self.save_h + self.write_h

    def move_usd(self, egress: Mapping[tuple[str, str], float], from_zone: str | None, to_zone: str) -> float:
        """Dollars for bringing the checkpoint from one zone to another; the first start has none to bring."""
        return self.egress_usd(egress, region_of(from_zone or to_zone), region_of(to_zone))
