"""Weights of 8 or 4 bits by bitsandbytes (LLM.int8, Dettmers et al. 2022; NF4, Dettmers et al. 2023), layer by layer.

The form is the one in which transformers saves and reads them: the weights of the decoder's linear layers, but for the
head's, with the scales that give them back; everything else stays as it is.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from data_prep.errors import ModelError
from ray_apps.engine.native.loading import BITSANDBYTES, read_config
from ray_apps.engine.options import Quantization
from ray_apps.models import check_causal_lm
from ray_apps.weights.tensor_files import TensorFiles

OnBytes = Callable[[int], None]


def quantized_layers(files: TensorFiles) -> dict[str, bool]:
    """Names of the layers whose weights are quantised, and whether they lie transposed in the files, as GPT-2's do.

    Raises:
        ModelError: it is no causal language model in safetensors, is quantised already, or its layers have no weights
            under their own names.
    """
    from bitsandbytes.nn.modules import Linear4bit

    directory = files.directory
    if files.files[0].suffix != ".safetensors":
        raise ModelError(f"model {str(directory)!r}: its weights are .bin; run `vicuna weights to-safetensors` first")
    if getattr(read_config(directory), "quantization_config", None):
        raise ModelError(f"model {str(directory)!r}: its weights are quantised already")
    model = check_causal_lm(directory, quantization_config=BITSANDBYTES["nf4"])  # int8 has the same layers
    layers = {
        name: getattr(module, "source_cls", None) is Conv1D
        for name, module in model.named_modules()
        if isinstance(module, Linear4bit)
    }
    if missing := sorted(layer for layer in layers if f"{layer}.weight" not in files.specs):
        raise ModelError(f"model {str(directory)!r}: there is no {missing[0]}.weight to be quantised")
    return layers


def quantize(
    files: TensorFiles, layers: Mapping[str, bool], form: Quantization, on_bytes: OnBytes = lambda count: None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of each tensor, those of a quantised layer one after the other."""
    for name, tensor in files.stream():
        layer = name.removesuffix(".weight")
        if name != layer and layer in layers:
            weight = tensor.T.contiguous() if layers[layer] else tensor
            yield from ((f"{layer}.{part}", value) for part, value in _packed(weight, form).items())
        else:
            yield name, tensor
        on_bytes(tensor.nbytes)


def quantization_config(form: Quantization) -> dict[str, Any]:
    """What `config.json` says of it."""
    return dict(BITSANDBYTES[form].to_dict())


def _packed(weight: torch.Tensor, form: Quantization) -> dict[str, torch.Tensor]:
    """What bitsandbytes saves of a linear layer with these weights, `[out, in]`."""
    from bitsandbytes import nn

    modules: Any = nn
    rows, columns = weight.shape
    config = BITSANDBYTES[form]
    if form == "int8":
        layer = modules.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False, device="meta")
        layer.weight = modules.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        layer = modules.Linear4bit(columns, rows, bias=False, device="meta")
        layer.weight = modules.Params4bit(
            weight,
            requires_grad=False,
            quant_type=config.bnb_4bit_quant_type,
            compress_statistics=config.bnb_4bit_use_double_quant,
        )
    return dict(layer.to("cpu").state_dict())
