import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from ray_apps.engine.native.packing import can_pack, pack
from ray_apps.models import load_causal_lm

BF16 = pytest.mark.skipif(not can_pack(), reason="this CPU has no products of bf16 in oneDNN")


@BF16
@pytest.mark.parametrize("num_tokens", [1, 16, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_gives_what_the_layer_gave(num_tokens: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 160, bias=bias).bfloat16().requires_grad_(False)
    packed = nn.ModuleList([copy.deepcopy(layer)])
    states = torch.randn(1, num_tokens, 96).bfloat16()
    assert pack(packed) == 1
    expected = nn.functional.linear(states.float(), layer.weight.float(), layer.bias.float() if bias else None)
    torch.testing.assert_close(packed[0](states).float(), expected, rtol=1e-2, atol=1e-2)


@BF16
def test_a_model_s_embedding_stays_where_its_last_layer_shares_it(tiny_model_dir: Path) -> None:
    plain, packed = (load_causal_lm(tiny_model_dir, dtype="bfloat16", device="cpu").eval() for _ in range(2))
    num_layers = sum(type(module) is nn.Linear for module in plain.modules())
    assert pack(packed) == num_layers
    assert packed.dtype == torch.bfloat16
    ids = torch.arange(20, 60)[None]
    with torch.inference_mode():
        torch.testing.assert_close(packed(ids).logits, plain(ids).logits, rtol=2e-2, atol=2e-2)


def test_layers_in_another_type_are_left_alone() -> None:
    layer = nn.Linear(8, 8)
    weight = layer.weight
    assert pack(nn.ModuleList([layer])) == 0
    assert layer.weight is weight
