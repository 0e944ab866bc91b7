import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.engine.native.sampling import keep_nucleus, make_generator, sample_token
from ray_apps.engine.protocol import SamplingParams

weights = st.lists(st.integers(1, 50), min_size=1, max_size=20)
CPU = torch.device("cpu")


def draw(logits: torch.Tensor, seed: int | None = 0, **sampling: float) -> list[int]:
    params = SamplingParams(max_tokens=1, seed=seed, **sampling)
    generator = make_generator(params, CPU)
    return [sample_token(logits, params, generator) for _ in range(40)]


@given(weights=weights, top_p=st.floats(0, 0.99))
def test_the_nucleus_is_the_smallest_set_of_likeliest_tokens_that_reaches_top_p(
    weights: list[int], top_p: float
) -> None:
    probabilities = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    kept = keep_nucleus(probabilities, top_p)
    inside = kept > 0
    assert torch.equal(kept[inside], probabilities[inside])
    assert kept.sum() >= top_p - 1e-9
    assert kept.sum() - kept[inside].min() <= top_p + 1e-9
    assert (~inside).sum() == 0 or probabilities[~inside].max() <= kept[inside].min()


@given(weights=weights)
def test_temperature_zero_and_an_empty_nucleus_take_the_likeliest_token(weights: list[int]) -> None:
    logits = torch.tensor(weights, dtype=torch.float32)
    likeliest = {int(logits.argmax())}
    assert set(draw(logits, temperature=0)) == likeliest
    assert {weights[token] for token in draw(logits, top_p=0.0)} == {max(weights)}


def test_equal_seeds_draw_equal_tokens_and_no_seed_draws_others() -> None:
    logits = torch.zeros(1000)
    assert draw(logits, seed=7) == draw(logits, seed=7)
    assert draw(logits, seed=7) != draw(logits, seed=8)
    assert draw(logits, seed=None) != draw(logits, seed=None)


def test_every_seed_that_the_api_admits_is_taken() -> None:
    for seed in (-(2**63), -1, 0, 2**63 - 1):
        assert draw(torch.zeros(4), seed=seed) == draw(torch.zeros(4), seed=seed)


def test_a_lower_temperature_makes_the_likeliest_token_likelier() -> None:
    logits = torch.tensor([0.0, 1.0])
    assert sum(draw(logits, temperature=0.1)) > sum(draw(logits, temperature=2.0))


@pytest.mark.parametrize("temperature", [1e-300, 1e-46, 1e-38, 1e-6, 1e-5])
def test_a_tiny_temperature_takes_the_likeliest_token(temperature: float) -> None:
    assert set(draw(torch.tensor([-1e4, 1e4, 3.0]), temperature=temperature)) == {1}
