"""The `spot` section of a recipe: where a cluster may be, what runs on it, and what it may cost."""

import re
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from data_prep.config import DiskPath, Settings
from ray_apps.spot.job import JobSettings
from ray_apps.spot.policy import PolicySettings


class SpotConfig(Settings):
    """One cluster, in one zone at a time."""

    name: str = Field("vicuna-ray", pattern=r"^[a-z0-9][a-z0-9-]*$")
    """What the names of its clusters begin with; an underscore and the zone follow."""
    template: DiskPath = "cluster.yaml"
    """The cluster file. Region, zone, name, number of workers and what they are bought as are put in."""
    zones: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(min_length=1)
    """By region: the zones it may be in."""
    node_type: str = "gpu"
    """Of the workers, in the template."""
    instance_type: str | None = None
    """Of the workers, instead of the template's."""
    max_usd_per_hour: float | None = Field(None, gt=0)
    """What one spot worker may cost, instead of the template's `MaxPrice`."""
    instance_profiles: dict[str, str] = Field(default_factory=dict)
    """By node type of the template: the IAM instance profile of its machines, for access to `store`."""
    num_workers: int = Field(1, ge=1)
    """Workers that a cluster must have to be up."""
    min_workers: int | None = Field(None, ge=1)
    """Workers with which an elastic run goes on; with fewer the cluster counts as lost. All if not given."""
    start_timeout_s: float = Field(1800.0, gt=0)
    """How long they may take after the head is there, and once they are lost until others come."""
    store: str | None = None
    """An `s3://` path for what outlives a region: dataset, run, notices, model. A job needs it."""
    store_region: str | None = None
    """Where that is. Bringing data from there, and saves to it, cost egress in other regions; not counted if not
    given."""
    max_failures: int = Field(2, ge=0)
    """How often in a row a job may fail, with all its machines there and no new checkpoint, and is started again."""
    job: JobSettings = JobSettings()
    """How long the work takes."""
    policy: PolicySettings = PolicySettings()
    """Which machines it takes. `max_cost_usd` and `deadline_h` are limits: at them all is stopped and taken down."""
    egress: DiskPath | None = None
    """CSV of `from_region,to_region,price_usd_per_gb`."""
    rates: DiskPath | None = None
    """YAML of on-demand rates in USD per hour: `us-west-2: {p4d.24xlarge: 32.77}`. Without a rate of its type in its
    region no machine is taken on demand."""
    head_usd_per_hour: float = Field(0.0, ge=0)
    """What the head costs."""
    cooldown_s: float = Field(900.0, ge=0)
    """How long a zone is let alone that failed."""
    poll_s: float = Field(10.0, gt=0)
    """Seconds between two looks at the cluster."""
    give_up_h: float | None = Field(None, ge=0)
    """Hours without machines after which it gives up. None: it waits."""
    state: DiskPath | None = None
    """What the launcher knows; `artifacts/spot-NAME.json` if not given. With it, it goes on after it was killed."""

    @field_validator("store")
    @classmethod
    def _is_on_s3(cls, store: str | None) -> str | None:
        if store is not None and not re.fullmatch(r"s3://[\w.-]+/[\w./=+-]*\w/?", store):
            raise ValueError(f"{store!r} is not valid; expected s3://bucket/key, of letters, digits and ./=+-_")
        return store if store is None else store.rstrip("/")

    @model_validator(mode="after")
    def _zones_are_in_their_regions(self) -> Self:
        for region, zones in self.zones.items():
            if wrong := [zone for zone in zones if not zone.startswith(region)]:
                raise ValueError(f"zones.{region}: {wrong[0]!r} is not in this region; expected as {region}a")
        return self

    @model_validator(mode="after")
    def _there_is_time_for_the_work(self) -> Self:
        least_h, deadline_h = self.job.work_h + self.job.cold_start_h, self.policy.deadline_h
        if deadline_h is not None and deadline_h < least_h:
            raise ValueError(
                f"policy.deadline_h: {deadline_h:g} is not valid; job.work_h and job.cold_start_h take {least_h:g} h"
            )
        return self

    @property
    def state_path(self) -> str:
        """Where the state is."""
        return self.state or f"artifacts/spot-{self.name}.json"

    @property
    def least_workers(self) -> int:
        """Workers with which the cluster does not count as lost."""
        return min(self.min_workers or self.num_workers, self.num_workers)

    @property
    def run_dir(self) -> str | None:
        """Where the run is."""
        return self.store and f"{self.store}/run"

    @property
    def notices(self) -> str | None:
        """Where watchers write what they were told."""
        return self.store and f"{self.store}/notices"
