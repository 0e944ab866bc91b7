import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.engine.native.sampling import Sampler, make_generator, truncate
from ray_apps.engine.native.sampling import draw as draw_one
from ray_apps.engine.protocol import SamplingParams

weights = st.lists(st.integers(1, 50), min_size=1, max_size=20)
CPU = torch.device("cpu")


def draw(logits: torch.Tensor, seed: int | None = 0, **sampling: float) -> list[int]:
    params = SamplingParams(max_tokens=1, seed=seed, **sampling)
    generator = make_generator(params, CPU)
    return [draw_one(logits, params, generator) for _ in range(40)]


@given(weights=weights, top_p=st.floats(0, 0.99))
def test_the_nucleus_is_the_smallest_set_of_likeliest_tokens_that_reaches_top_p(
    weights: list[int], top_p: float
) -> None:
    probabilities = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    kept = truncate(probabilities, SamplingParams(max_tokens=1, top_p=top_p))
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


def kept(logits: torch.Tensor, **sampling: float) -> set[int]:
    probabilities = torch.softmax(logits, dim=-1)
    return set(truncate(probabilities, SamplingParams(max_tokens=1, **sampling)).nonzero().flatten().tolist())


def test_top_k_and_min_p_leave_out_the_unlikely() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04]).log()
    assert kept(logits, top_k=2) == {0, 1}
    assert kept(logits, min_p=0.45) == {0, 1, 2}
    assert kept(logits, min_p=1.0) == {0}
    assert kept(logits, top_k=3, top_p=0.7) == {0, 1}  # 0.4 + 0.3 of 0.9
    assert kept(logits, top_k=99) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("sampling", [{"top_p": 0.999}, {"top_p": 0.3}, {"min_p": 0.9}, {"min_p": 0.01}])
def test_in_a_large_vocabulary_the_same_tokens_are_kept(sampling: dict[str, float]) -> None:
    """Whether they are among the likeliest ones that are looked at first, or not."""
    logits = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) / 10
    probabilities = torch.softmax(logits, dim=-1)
    order = probabilities.sort(descending=True)
    if "min_p" in sampling:
        expected = int((order.values >= sampling["min_p"] * order.values[0]).sum())
    else:
        expected = int((order.values.cumsum(-1) - order.values < sampling["top_p"]).sum())
    found = kept(logits, **sampling)
    assert abs(len(found) - expected) <= 1  # a sum in another order
    assert found >= set(order.indices[: expected - 1].tolist())


def sampler(prompt: tuple[int, ...] = (), **sampling: Any) -> Sampler:
    return Sampler(SamplingParams(max_tokens=9, temperature=0, **sampling), prompt, CPU)


def chosen(sampler: Sampler, logits: list[float], count: int) -> list[int]:
    return [sampler.choose(torch.tensor(logits)).token for _ in range(count)]


def test_penalties_count_what_the_answer_has() -> None:
    assert chosen(sampler(presence_penalty=1.5), [3.0, 2.0, 1.0], 4) == [0, 1, 0, 0]
    assert chosen(sampler(frequency_penalty=0.6), [3.0, 2.0, 1.0], 5) == [0, 0, 1, 0, 1]


def test_the_repetition_penalty_counts_the_prompt_too() -> None:
    assert chosen(sampler((0,), repetition_penalty=2.0), [3.0, 2.0], 1) == [1]
    assert chosen(sampler((1,), repetition_penalty=2.0), [-1.0, -0.8], 1) == [0]


def test_a_bias_is_added() -> None:
    assert chosen(sampler(logit_bias=((2, 5.0), (0, -100.0))), [3.0, 2.0, 1.0], 1) == [2]


def test_log_probabilities_are_those_of_the_model_itself() -> None:
    biased = sampler(logit_bias=((2, 5.0),), logprobs=2)
    told = biased.choose(torch.tensor([0.5, 0.3, 0.2]).log()).logprob
    assert told is not None
    assert told.token_id == 2
    assert told.logprob == pytest.approx(math.log(0.2))
    assert told.likeliest == (pytest.approx((0, math.log(0.5))), pytest.approx((1, math.log(0.3))))
    assert sampler().choose(torch.zeros(3)).logprob is None
    none_of_the_likeliest = sampler(logprobs=0).choose(torch.zeros(4)).logprob
    assert none_of_the_likeliest is not None
    assert none_of_the_likeliest.likeliest == ()


@given(
    temperature=st.sampled_from([1e-5, 1e-4, 1.0, 2.0]),
    repetition_penalty=st.sampled_from([0.01, 10.0]),
    penalty=st.sampled_from([-2.0, 2.0]),
    bias=st.sampled_from([-100.0, 100.0]),
    top_p=st.sampled_from([0.0, 1e-300, 1.0]),
    min_p=st.sampled_from([0.0, 1e-300, 1.0]),
    size=st.sampled_from([1e-30, 1.0, 1e4]),
)
def test_a_token_is_drawn_at_every_extreme_that_the_api_admits(
    temperature: float,
    repetition_penalty: float,
    penalty: float,
    bias: float,
    top_p: float,
    min_p: float,
    size: float,
) -> None:
    sampling = SamplingParams(
        max_tokens=1,
        temperature=temperature,
        top_p=top_p,
        min_p=min_p,
        presence_penalty=penalty,
        frequency_penalty=penalty,
        repetition_penalty=repetition_penalty,
        logit_bias=((0, bias), (1, bias)),
    )
    sampler = Sampler(sampling, (0, 2), CPU)
    for _ in range(5):
        assert 0 <= sampler.choose(size * torch.tensor([1.0, -1.0, 0.5, -0.5])).token < 4
