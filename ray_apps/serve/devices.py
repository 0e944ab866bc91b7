"""How many devices a model needs."""

import json
from pathlib import Path

from data_prep.errors import ConfigError

_SHARE = 0.7
"""Of a device, for weights; keys and values take the rest."""


def needed_devices(model: str, device_bytes: int | None) -> int:
    """The fewest devices of `device_bytes` that hold the weights of `model`, so that its key heads divide evenly.

    One where that is not known here: without a GPU on this machine, or a model that is elsewhere.

    Raises:
        ConfigError: no number of devices is enough.
    """
    directory = Path(model)
    weights = sum(path.stat().st_size for path in directory.glob("*.safetensors")) if directory.is_dir() else 0
    if not device_bytes or weights <= _SHARE * device_bytes:
        return 1
    config = json.loads((directory / "config.json").read_text())
    heads = int(config.get("num_key_value_heads") or config.get("num_attention_heads") or 1)
    for size in range(2, heads + 1):
        if heads % size == 0 and weights <= size * _SHARE * device_bytes:
            return size
    raise ConfigError(
        f"args.tensor_parallel_size: the weights of {model} take {weights / 1e9:.1f} GB, too much for {heads} devices "
        f"of {device_bytes / 1e9:.1f} GB; set quantize, or device_map with num_gpus"
    )
