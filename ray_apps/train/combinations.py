"""Which settings cannot be combined. Everything else is proved by a test."""

from collections.abc import Iterator

from data_prep.errors import ConfigError
from ray_apps.train.config import DeepspeedSettings, TrainConfig

ONE_PROCESS = "bitsandbytes cannot spread it over processes (its issues 1633 and 1945, accelerate's 3983)"


def check_combination(config: TrainConfig) -> None:
    """Refuse what does not work together.

    Raises:
        ConfigError: naming the field, and what would be valid.
    """
    for problem in _problems(config):
        raise ConfigError(f"train.{problem}")


def _problems(config: TrainConfig) -> Iterator[str]:
    if config.strategy != "deepspeed" and config.deepspeed != DeepspeedSettings():
        yield f"deepspeed: is not valid with train.strategy {config.strategy!r}, which has no use for it"
    if config.strategy == "deepspeed" and config.fsdp.cpu_offload:
        yield "fsdp.cpu_offload: True is not valid with train.strategy 'deepspeed'; expected deepspeed.offload"
    if config.compile and config.activation_checkpointing == "selective":
        yield (
            "compile: True is not valid with train.activation_checkpointing 'selective': what is compiled is run again "
            "as a whole; expected activation_checkpointing True or False"
        )
    if config.attention == "flash_attention_2" and config.precision == "fp32":
        yield (
            "attention: 'flash_attention_2' is not valid with train.precision 'fp32': it takes 16-bit types alone; "
            "expected 'auto' or 'sdpa'"
        )
    if config.quantize_base and config.lora is None:
        yield "quantize_base: 'nf4' is not valid without train.lora: weights of 4 bits cannot be trained"
    if config.quantize_base:
        yield from _beside_bitsandbytes(config, f"quantize_base {config.quantize_base!r}")
    if config.optimizer == "adamw_8bit":
        yield from _beside_bitsandbytes(config, "optimizer 'adamw_8bit'")


def _beside_bitsandbytes(config: TrainConfig, setting: str) -> Iterator[str]:
    if config.strategy != "fsdp":
        yield f"strategy: {config.strategy!r} is not valid with train.{setting}: {ONE_PROCESS}; expected 'fsdp'"
    if config.num_workers != 1:
        yield f"num_workers: {config.num_workers!r} is not valid with train.{setting}: {ONE_PROCESS}; expected 1"
    if config.fsdp.cpu_offload:
        yield f"fsdp.cpu_offload: True is not valid with train.{setting}, which has no shards to move"
