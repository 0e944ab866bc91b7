"""What every engine that runs a model owes to whoever asks it, held against plain transformers."""

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from ray_apps.engine.native.sampling import Sampler
from ray_apps.engine.protocol import (
    Engine,
    GenerationRequest,
    SamplingError,
    SamplingParams,
    TokenDelta,
    UnsupportedError,
)
from ray_apps.models import load_causal_lm
from tests import tiny

PROMPT = tuple((7 * index) % 400 + 20 for index in range(90))
END = 1


def write_model(directory: Path, **config: object) -> Path:
    """A tiny model whose greedy answers vary, with heads of a size that every engine has kernels for."""
    fields = {"head_dim": 32, "tie_word_embeddings": False, "initializer_range": 0.2, "dtype": "float32"}
    return tiny.write_model(directory, **{**fields, **config})


def reference(directory: Path) -> PreTrainedModel:
    return load_causal_lm(directory, dtype="float32", device="cpu").eval()


def request(prompt: tuple[int, ...] = PROMPT, max_tokens: int = 20, **sampling: Any) -> GenerationRequest:
    return GenerationRequest("id", prompt, SamplingParams(max_tokens, **{"temperature": 0, **sampling}))


async def answer(engine: Engine, asked: GenerationRequest) -> list[TokenDelta]:
    return [delta async for delta in engine.generate(asked)]


def ids(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def text(deltas: list[TokenDelta]) -> str:
    return "".join(delta.text for delta in deltas)


@torch.no_grad()
def plain(model: PreTrainedModel, asked: GenerationRequest) -> list[int]:
    """What our sampler takes from transformers' logits, one whole pass for each token."""
    sampler = Sampler(asked.sampling, asked.prompt_ids, torch.device("cpu"))
    found: list[int] = []
    while len(found) < asked.sampling.max_tokens and END not in found:
        logits = model(torch.tensor([[*asked.prompt_ids, *found]])).logits[0, -1]
        found.append(sampler.choose(logits).token)
    return found


@torch.no_grad()
def logprobs(model: PreTrainedModel, tokens: tuple[int, ...]) -> torch.Tensor:
    return model(torch.tensor([tokens])).logits[0].float().log_softmax(dim=-1)


class EngineContract:
    """Its heirs have the fixtures `engine`, and `model`: the same one in transformers, in fp32."""

    async def test_greedy_answers_are_those_of_transformers(self, engine: Engine, model: PreTrainedModel) -> None:
        asked = request()
        expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=20, do_sample=False)[0, len(PROMPT) :]
        assert ids(await answer(engine, asked)) == expected.tolist()
        assert len(set(expected.tolist())) > 5

    @pytest.mark.parametrize(
        "sampling",
        [
            {"repetition_penalty": 1.4},
            {"presence_penalty": 1.5},
            {"frequency_penalty": 1.5},
            {"logit_bias": ((30, 4.0), (31, 4.0), (END, -100.0))},
            {"temperature": 1.0, "top_k": 1},
            {"temperature": 1.0, "top_p": 1e-6},
            {"temperature": 1.0, "top_p": 0.0},
            {"temperature": 1e-6, "top_k": 10**23},
            {"temperature": 1.0, "min_p": 1.0},
        ],
    )
    async def test_what_changes_the_choice_changes_it_as_with_our_sampler(
        self, engine: Engine, model: PreTrainedModel, sampling: dict[str, Any]
    ) -> None:
        asked = request(**sampling)
        assert ids(await answer(engine, asked)) == plain(model, asked)

    async def test_who_joins_or_leaves_never_changes_another_s_tokens(
        self, engine: Engine, model: PreTrainedModel
    ) -> None:
        prompts = [PROMPT[: 10 + 9 * number] for number in range(8)]
        expected = [plain(model, request(prompt, 5 + 2 * number)) for number, prompt in enumerate(prompts)]

        async def leave(prompt: tuple[int, ...]) -> None:
            async with aclosing(engine.generate(request(prompt, 300, ignore_eos=True))) as deltas:
                await anext(deltas)

        asked = [answer(engine, request(prompt, 5 + 2 * number)) for number, prompt in enumerate(prompts)]
        found = await asyncio.gather(*asked, *(leave(prompt[::-1]) for prompt in prompts[:4]))
        assert [ids(deltas) for deltas in found[:8]] == expected  # type: ignore[arg-type]

    async def test_equal_seeds_give_equal_answers(self, engine: Engine) -> None:
        seeds = (-1, -1, 2, None, None)
        found = [ids(await answer(engine, request(temperature=1.0, seed=seed))) for seed in seeds]
        assert found[0] == found[1]
        assert len({*map(tuple, found)}) == 4

    async def test_an_answer_ends_where_it_is_to(self, engine: Engine) -> None:
        usual = await answer(engine, request(logit_bias=((END, -100.0),)))
        whole, tokens = text(usual), ids(usual)
        assert usual[-1].finish_reason == "length"
        stop = whole[3:5]
        stopped = await answer(engine, request(stop=(stop,), logit_bias=((END, -100.0),)))
        assert (text(stopped), stopped[-1].finish_reason) == (whole[: whole.index(stop)], "stop")
        at_token = await answer(engine, request(stop_token_ids=(tokens[6], 10**6), logit_bias=((END, -100.0),)))
        assert ids(at_token) == tokens[: tokens.index(tokens[6]) + 1]
        assert at_token[-1].finish_reason == "stop"
        ended = await answer(engine, request(logit_bias=((END, 100.0),)))
        assert (ids(ended), text(ended), ended[-1].finish_reason) == ([END], "", "stop")
        ignored = await answer(engine, request(max_tokens=3, ignore_eos=True, logit_bias=((END, 100.0),)))
        assert (ids(ignored), ignored[-1].finish_reason) == ([END] * 3, "length")

    @pytest.mark.parametrize("seed", range(4))
    async def test_no_character_is_broken(self, engine: Engine, seed: int) -> None:
        for delta in await answer(engine, request(max_tokens=60, temperature=2.0, seed=seed)):
            delta.text.encode()
            assert "\ufffd" not in delta.text

    async def test_log_probabilities_are_the_model_s_own(self, engine: Engine, model: PreTrainedModel) -> None:
        asked = request(max_tokens=8, temperature=1.0, seed=1, logprobs=3, repetition_penalty=1.5, ignore_eos=True)
        found = await answer(engine, asked)
        expected = logprobs(model, (*PROMPT, *ids(found)))[len(PROMPT) - 1 :]
        scored = [one for delta in found for one in delta.logprobs]
        assert [one.token_id for one in scored] == ids(found)
        for row, one in zip(expected, scored, strict=False):
            assert one.logprob == pytest.approx(float(row[one.token_id]), abs=1e-3)
            assert [token for token, _ in one.likeliest] == row.topk(3).indices.tolist()
            assert [value for _, value in one.likeliest] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)

    async def test_a_prompt_is_scored(self, engine: Engine, model: PreTrainedModel) -> None:
        expected = logprobs(model, PROMPT)
        await answer(engine, request())
        (only,) = await answer(engine, replace(request(max_tokens=0), prompt_logprobs=2))
        assert (only.token_ids, only.text, only.finish_reason) == ((), "", "length")
        first, *_ = await answer(engine, replace(request(max_tokens=4), prompt_logprobs=2))
        for scored in (only.prompt_logprobs, first.prompt_logprobs):
            assert tuple(one.token_id for one in scored) == PROMPT[1:]
            for row, one in zip(expected, scored, strict=False):
                assert one.logprob == pytest.approx(float(row[one.token_id]), abs=1e-3)
                assert [token for token, _ in one.likeliest] == row.topk(2).indices.tolist()

    async def test_an_answer_follows_a_schema(self, engine: Engine) -> None:
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 22, 333]}}}
        schema |= {"required": ["ok", "n"], "additionalProperties": False}
        found = await answer(engine, request(max_tokens=300, temperature=1.0, seed=3, json_schema=json.dumps(schema)))
        assert found[-1].finish_reason == "stop"
        assert json.loads(text(found)).keys() == {"ok", "n"}

    async def test_what_cannot_be_done_is_refused_by_name(self, engine: Engine) -> None:
        with pytest.raises(SamplingError, match="wizard") as wrong:
            engine.check_sampling(SamplingParams(1, json_schema='{"type": "wizard"}'))
        assert wrong.value.param == "response_format"
        with pytest.raises(SamplingError, match="valid: 0 to") as unknown:
            engine.check_sampling(SamplingParams(1, logit_bias=((10**6, 1.0),)))
        assert unknown.value.param == "logit_bias"
        with pytest.raises(UnsupportedError, match="'nobody'"):
            await answer(engine, replace(request(), adapter="nobody"))

    async def test_closing_an_answer_frees_its_place(self, engine: Engine) -> None:
        asked = request(max_tokens=400, temperature=1.5, ignore_eos=True)
        before = engine.stats()
        async with aclosing(engine.generate(asked)) as deltas:
            await anext(deltas)
            assert engine.stats().num_running == 1
        await answer(engine, request(max_tokens=1))
        after = engine.stats()
        assert (after.num_running, after.num_waiting) == (0, 0)
        assert after.num_prompt_tokens - before.num_prompt_tokens == 2 * len(PROMPT)
        assert after.num_generated_tokens - before.num_generated_tokens < 300

    async def test_what_was_read_is_not_read_again(self, engine: Engine) -> None:
        long = PROMPT * 4
        await answer(engine, request(long, 2))
        cached = engine.stats().num_cached_tokens
        again = await answer(engine, request(long, 2))
        assert again[0].num_cached >= 256
        assert engine.stats().num_cached_tokens - cached == again[0].num_cached
