"""From a config to the strategy it names, with the base in it."""

import torch
import torch.distributed as dist

from ray_apps.model_dir import local_model_dir
from ray_apps.models import load_causal_lm
from ray_apps.train.attention import choose_attention
from ray_apps.train.config import TrainConfig
from ray_apps.train.state import seed_rank
from ray_apps.train.strategies.base import Strategy


def build_strategy(config: TrainConfig, device: torch.device) -> Strategy:
    """Load the base and hand it to the strategy that `config` names."""
    seed_rank(config.seed, 0)  # fresh adapters must be the same on every rank
    model = load_causal_lm(
        local_model_dir(config.model), device="cpu", attn_implementation=choose_attention(config.attention, device)
    )
    strategy = _choose(config, device)
    strategy.wrap(model)
    seed_rank(config.seed, dist.get_rank())
    return strategy


def _choose(config: TrainConfig, device: torch.device) -> Strategy:
    if config.strategy == "deepspeed":
        from ray_apps.train.strategies.deepspeed import DeepspeedStrategy

        return DeepspeedStrategy(config, device)
    from ray_apps.train.strategies.fsdp import FsdpStrategy

    return FsdpStrategy(config, device)
