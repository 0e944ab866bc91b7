import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from ray_apps.train.block_attention import QUERIES, causal_attention


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    return scaled_dot_product_attention(
        query[None], key[None], value[None], is_causal=True, scale=scale, enable_gqa=True
    )[0]


def results(attend: object, *inputs: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = attend(*(leaf.to(dtype) for leaf in leaves), 0.3)  # type: ignore[operator]
    (output.float() * torch.arange(output.numel()).view(output.shape).sin()).sum().backward()
    return [output.float(), *(leaf.grad for leaf in leaves)]  # type: ignore[list-item]


@pytest.mark.parametrize("tokens", [1, 5, QUERIES - 1, QUERIES, QUERIES + 1, 3 * QUERIES + 7])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("largest", [1.0, 20.0])
def test_it_is_causal_attention(tokens: int, heads: int, kv_heads: int, largest: float) -> None:
    """In fp32 to rounding; in bf16 as near to fp32 as PyTorch's own kernel is, for large scores too."""
    torch.manual_seed(tokens)
    inputs = [torch.randn(number, tokens, 16).bfloat16().float() for number in (heads, kv_heads, kv_heads)]
    inputs[0] *= largest
    exact = results(reference, *inputs, dtype=torch.float32)
    for ours, expected in zip(results(causal_attention, *inputs, dtype=torch.float32), exact, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * largest)
    theirs = results(reference, *inputs, dtype=torch.bfloat16)
    for ours, others, expected in zip(
        results(causal_attention, *inputs, dtype=torch.bfloat16), theirs, exact, strict=True
    ):
        assert (ours - expected).norm() <= 2 * (others - expected).norm() + 1e-3 * expected.norm()


def test_a_view_of_a_packed_row_will_do() -> None:
    query, key, value = (torch.randn(2, 300, 8).transpose(0, 1).contiguous().transpose(0, 1) for _ in range(3))
    part = (query[:, 40:220], key[:, 40:220], value[:, 40:220])
    torch.testing.assert_close(causal_attention(*part, 0.3), reference(*part, 0.3), rtol=1e-4, atol=1e-5)


def test_the_operator_is_registered_soundly() -> None:
    inputs = [torch.randn(number, 150, 8, requires_grad=True) for number in (4, 2, 2)]
    assert set(torch.library.opcheck(causal_attention, (*inputs, 0.3)).values()) == {"SUCCESS"}
