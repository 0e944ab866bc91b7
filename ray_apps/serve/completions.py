"""`POST /v1/completions`: from a request to a job, and from pieces of answers to a completion or to chunks."""

import codecs
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

from ray_apps.serve.answers import Deltas, Header, sampling_of, usage_of, whole
from ray_apps.serve.jobs import Delta, Job, Prompt, ScoredToken, TextPrompt
from ray_apps.serve.protocol.completion_request import CompletionRequest
from ray_apps.serve.protocol.completion_response import Completion, CompletionChoice, CompletionLogprobs


def make_job(request: CompletionRequest, request_id: str, adapter: str | None = None) -> Job:
    """What the request asks the backend to do."""
    return Job(
        request_id,
        as_prompts(request.prompt),
        request.answer_limit,
        sampling_of(request, logprobs=request.logprobs),
        request.num_answers,
        echo=bool(request.echo),
        adapter=adapter,
        param="prompt",
    )


def as_prompts(prompts: Iterable[str | tuple[int, ...]]) -> tuple[Prompt, ...]:
    """Texts and ids as prompts."""
    return tuple(TextPrompt(one) if isinstance(one, str) else one for one in prompts)


async def complete(header: Header, deltas: Deltas, num_answers: int) -> Completion:
    """Wait for the whole of all answers."""
    answers, usage = await whole(deltas, num_answers)
    choices = [_joined(index, answer) for index, answer in enumerate(answers)]
    return Completion(**vars(header), choices=choices, usage=usage)


def _joined(index: int, answer: list[Delta]) -> CompletionChoice:
    text = "".join(delta.text for delta in answer)
    scored = [one for delta in answer for one in delta.logprobs]
    logprobs = _Offsets(text).describe(scored)
    return CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=answer[-1].finish_reason)


async def chunks(
    header: Header, deltas: Deltas, *, include_usage: bool, counts_on_the_way: bool = False
) -> AsyncGenerator[Completion, None]:
    """The pieces as chunks."""
    offsets: dict[int, _Offsets] = {}
    async with aclosing(deltas):
        async for delta in deltas:
            logprobs = offsets.setdefault(delta.index, _Offsets(delta.text)).describe(delta.logprobs)
            choice = CompletionChoice(
                index=delta.index, text=delta.text, logprobs=logprobs, finish_reason=delta.finish_reason
            )
            yield Completion(**vars(header), choices=[choice], usage=usage_of(delta) if counts_on_the_way else None)
    if include_usage:
        yield Completion(**vars(header), choices=[], usage=usage_of(delta))


class _Offsets:
    """Where each token begins in the text of an answer that begins with `beginning`, in characters."""

    def __init__(self, beginning: str) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._skips_space = not beginning.startswith(" ")
        self._offset = 0

    def describe(self, scored: Iterable[ScoredToken]) -> CompletionLogprobs | None:
        """The next tokens; None if there are none."""
        told = CompletionLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
        for one in scored:
            told.text_offset.append(self._offset)
            told.tokens.append(_spell(one.token))
            told.token_logprobs.append(one.logprob)
            told.top_logprobs.append(_top(one))
            text = self._decoder.decode(one.token)
            if text:
                self._offset += len(text) - (self._skips_space and text.startswith(" "))
                self._skips_space = False
        return told if told.tokens else None


def _top(one: ScoredToken) -> dict[str, float] | None:
    """The likeliest tokens and the one that is there. Of several that are spelled alike, the likeliest counts."""
    if one.logprob is None:
        return None
    top: dict[str, float] = {}
    for other in (*one.likeliest, one):
        assert other.logprob is not None
        top.setdefault(_spell(other.token), other.logprob)
    return top


def _spell(token: bytes) -> str:
    """A token as OpenAI spells it: one that is no whole character by its bytes."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
