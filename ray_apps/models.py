"""Load a causal language model from a model directory."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from data_prep.errors import ModelError

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def choose_device(device: str = "auto") -> torch.device:
    """The device that `device` names; `auto`: the GPU if there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def load_causal_lm(directory: Path, *, dtype: str = "auto", device: str = "auto", **options: Any) -> PreTrainedModel:
    """Load the model in `directory`; `dtype` `auto` keeps the type of its weights.

    `options` go to transformers' `from_pretrained`; a `device_map` or `distributed_config` of theirs says where the
    weights go. Only safetensors are read, and no code of the model's own is run.

    PyTorch's attention through cuDNN is turned off in this process: it plans anew for every length.

    Raises:
        ModelError: the files are not those of a causal language model.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            output_loading_info=True,
            dtype=DTYPES.get(dtype, "auto"),
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **options,
        )
    except StrictDataclassError as error:
        raise ModelError(f"model {str(directory)!r}: config.json: {error.__cause__ or error}") from None
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"model {str(directory)!r}: {str(error).strip().splitlines()[0]}") from None
    model, loading = loaded
    if unexpected := sorted(loading["unexpected_keys"]):
        raise ModelError(
            f"model {str(directory)!r}: config.json is not of these weights: it has no place for {len(unexpected)} "
            f"tensors, {unexpected[0]} for one"
        )
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"model {str(directory)!r}: config.json is not of these weights: {len(missing)} tensors are missing, "
            f"{missing[0]} for one"
        )
    if mismatched := sorted(loading["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise ModelError(
            f"model {str(directory)!r}: config.json is not of these weights: {len(mismatched)} tensors have another "
            f"shape, {name} for one: {list(found)} instead of {list(expected)}"
        )
    if options.keys() & {"device_map", "distributed_config"}:
        placed: PreTrainedModel = model
        return placed
    moved: PreTrainedModel = model.to(choose_device(device))
    return moved


def check_causal_lm(directory: Path, **options: Any) -> PreTrainedModel:
    """The model in `directory` without its weights (on the `meta` device), its files held against its config.

    Raises:
        ModelError: as `load_causal_lm`; only the headers of the weight files are read.
    """
    return load_causal_lm(directory, device="meta", device_map="meta", **options)
