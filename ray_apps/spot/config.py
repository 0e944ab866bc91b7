"""The `spot` section of a recipe: where a cluster may be, and what it may cost."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from data_prep.config import DiskPath, Settings


class SpotConfig(Settings):
    """One cluster, in one zone at a time."""

    name: str = Field("vicuna-ray", pattern=r"^[a-z0-9][a-z0-9-]*$")
    """What the names of its clusters begin with; the zone follows."""
    template: DiskPath = "cluster.yaml"
    """The cluster file. Region, zone, name and number of workers are put in."""
    zones: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(min_length=1)
    """By region: the zones it may be in."""
    node_type: str = "gpu"
    """Of the workers, in the template."""
    num_workers: int = Field(1, ge=1)
    """Workers that a cluster must have to be up."""
    start_timeout_s: float = Field(1800.0, gt=0)
    """How long they may take after the head is there."""
    work_h: float = Field(1.0, gt=0)
    """Hours of work to rank places by: a price counts for all of them, moving and starting once."""
    cold_start_h: float = Field(0.2, ge=0)
    """Hours that are paid before work begins."""
    checkpoint_gb: float = Field(0.0, ge=0)
    """What is moved when a run goes on in another region, 1e9 bytes each."""
    checkpoint_region: str | None = None
    """Where the object store is; moving from there costs nothing if not given."""
    egress: DiskPath | None = None
    """CSV of `from_region,to_region,price_usd_per_gb`."""
    egress_usd_per_gb: float = Field(0.02, ge=0)
    """For pairs of regions that the file does not have."""
    rates: DiskPath | None = None
    """YAML of on-demand rates in USD per hour: `us-west-2: {p4d.24xlarge: 32.77}`."""
    head_usd_per_hour: float = Field(0.0, ge=0)
    """What the head costs, counted towards `max_cost_usd`."""
    max_cost_usd: float | None = Field(None, gt=0)
    """Nothing is started once that much was spent. What runs goes on."""
    deadline_h: float | None = Field(None, gt=0)
    """Nothing is started that long after the first start."""
    cooldown_s: float = Field(900.0, ge=0)
    """How long a zone is let alone that failed."""
    state: DiskPath = "artifacts/spot.json"
    """What the launcher knows. With it, it goes on after it was killed."""

    @model_validator(mode="after")
    def _zones_are_in_their_regions(self) -> Self:
        for region, zones in self.zones.items():
            if wrong := [zone for zone in zones if not zone.startswith(region)]:
                raise ValueError(f"zones.{region}: {wrong[0]!r} is not in this region; expected as {region}a")
        return self
