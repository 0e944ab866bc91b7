"""Our requests in vLLM's words, and its log probabilities in ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from ray_apps.engine.language import Language
from ray_apps.engine.protocol import GenerationRequest, TokenLogprob

_GREEDY_BELOW = 1e-5
_NO_SEED = -1
"""What vLLM reads as no seed at all."""


def to_vllm(request: GenerationRequest, language: Language) -> SamplingParams:
    """What vLLM is to sample for `request`.

    Texts and stop strings are worked out here from its tokens, as those of every engine are. vLLM has no `top_p` of 0,
    which leaves the likeliest token, and no whole number of more than 64 bits.

    Raises:
        VLLMValidationError: vLLM does not take a value.
    """
    sampling = request.sampling
    takes_likeliest = sampling.temperature < _GREEDY_BELOW or not sampling.top_p
    ends = () if sampling.ignore_eos else language.end_ids
    stop_ids = {token for token in (*ends, *sampling.stop_token_ids) if 0 <= token < language.vocab_size}
    return SamplingParams(
        max_tokens=max(1, sampling.max_tokens),
        temperature=0 if takes_likeliest else sampling.temperature,
        top_p=sampling.top_p or 1.0,
        top_k=min(sampling.top_k, language.vocab_size),
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        seed=2**63 - 1 if sampling.seed == _NO_SEED else sampling.seed,
        stop_token_ids=sorted(stop_ids),
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.logprobs,
        prompt_logprobs=request.prompt_logprobs,
        structured_outputs=_structure(sampling.json_schema),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _structure(json_schema: str | None) -> StructuredOutputsParams | None:
    return None if json_schema is None else StructuredOutputsParams(json=json_schema)


def token_logprob(token_id: int, scored: Mapping[int, Any], num_likeliest: int | None) -> TokenLogprob:
    """Of a token, from vLLM's `scored`: the likeliest ones and the token itself, by id."""
    likeliest = sorted(((token, one.logprob) for token, one in scored.items()), key=lambda pair: -pair[1])
    return TokenLogprob(token_id, scored[token_id].logprob, tuple(likeliest[: num_likeliest or 0]))


def prompt_scores(request: GenerationRequest, scored: Sequence[Mapping[int, Any] | None]) -> tuple[TokenLogprob, ...]:
    """Those of a prompt's tokens from the second on; vLLM has none for the first."""
    return tuple(
        token_logprob(token, one, request.prompt_logprobs)
        for token, one in zip(request.prompt_ids, scored, strict=True)
        if one is not None
    )
