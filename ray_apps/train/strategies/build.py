"""From a config to the strategy it names, with the base in it."""

from typing import Any

import torch
import torch.distributed as dist

from ray_apps.model_dir import local_model_dir
from ray_apps.models import load_causal_lm
from ray_apps.run_dir import RunDir
from ray_apps.train.attention import choose_attention
from ray_apps.train.config import TrainConfig
from ray_apps.train.receipt import check_same_base
from ray_apps.train.state import seed_rank
from ray_apps.train.strategies.base import Strategy
from ray_apps.train.strategies.prepare import compute_dtype


def build_strategy(config: TrainConfig, device: torch.device) -> Strategy:
    """Load the base and hand it to the strategy that `config` names.

    Raises:
        RunError: it is another base than the run began with.
    """
    seed_rank(config.seed, 0)  # fresh adapters must be the same on every rank
    directory = local_model_dir(config.model)
    check_same_base(RunDir(config.run_dir), directory)
    model = load_causal_lm(
        directory,
        attn_implementation=choose_attention(config.attention, device, config.precision),
        **(_quantized(config, device) if config.quantize_base else {"device": "cpu"}),
    )
    strategy = _choose(config, device)
    strategy.wrap(model)
    seed_rank(config.seed, dist.get_rank())
    return strategy


def _quantized(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """How the base is loaded in 4 bits, straight onto `device`."""
    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quantize_base,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(config),
    )
    return {"device": str(device), "device_map": {"": str(device)}, "quantization_config": four_bits}


def _choose(config: TrainConfig, device: torch.device) -> Strategy:
    if config.quantize_base or config.optimizer == "adamw_8bit":
        from ray_apps.train.strategies.single import SingleStrategy

        return SingleStrategy(config, device)
    if config.strategy == "deepspeed":
        from ray_apps.train.strategies.deepspeed import DeepspeedStrategy

        return DeepspeedStrategy(config, device)
    from ray_apps.train.strategies.fsdp import FsdpStrategy

    return FsdpStrategy(config, device)
