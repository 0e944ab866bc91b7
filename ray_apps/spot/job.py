"""What is run on spot machines: how long it takes, and what it costs to bring it elsewhere."""

from collections.abc import Mapping

from pydantic import Field

from data_prep.config import Settings
from ray_apps.spot.pricing import egress_usd


class JobSettings(Settings):
    """A training run. Hours are of all its machines together."""

    work_h: float = Field(40.0, gt=0)
    """Hours of training, with nothing lost; `vicuna train plan` tells."""
    cold_start_h: float = Field(0.2, ge=0)
    """From asking for machines until training goes on."""
    checkpoint_gb: float = Field(50.0, ge=0)
    """What goes from one region to another on a move, 1e9 bytes each."""
    checkpoint_every_h: float = Field(1.0, gt=0)
    """Hours of training between two saves."""
    egress_usd_per_gb: float = Field(0.02, ge=0)
    """Where no list of prices says otherwise; nothing within a region."""

    def egress_usd(self, prices: Mapping[tuple[str, str], float], source: str, target: str) -> float:
        """Dollars for bringing a checkpoint from one region to another, at `prices` per GB."""
        return egress_usd(self.checkpoint_gb * 1e9, source, target, prices, self.egress_usd_per_gb)
