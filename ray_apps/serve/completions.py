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
        streams=bool(request.stream),
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
        self._beginning = beginning
        self._may_skip_space = True
        self._offset = 0

    def describe(self, scored: Iterable[ScoredToken]) -> CompletionLogprobs | None:
        """The next tokens; None if there are none."""
        told = CompletionLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
        for one in scored:
            told.text_offset.append(self._offset)
            told.tokens.append(_spell(one))
            told.token_logprobs.append(one.logprob)
            told.top_logprobs.append(_top(one))
            self._offset += self._width(one)
        return told if told.tokens else None

    def _width(self, one: ScoredToken) -> int:
        """How many characters the token has in the text.

        A special one has none, unless the prompt spells it out. A space that a tokenizer writes before a text, or after
        a special token, may not be there.
        """
        if one.special:
            is_there = self._beginning.startswith(one.special, self._offset)
            self._may_skip_space |= is_there
            return len(one.special) if is_there else 0
        text = self._decoder.decode(one.token)
        skips_space = self._may_skip_space and text.startswith(" ") and self._has_no_space()
        self._may_skip_space &= not text
        return len(text) - skips_space

    def _has_no_space(self) -> bool:
        return self._beginning[self._offset : self._offset + 1] not in ("", " ")


def _top(one: ScoredToken) -> dict[str, float] | None:
    """The likeliest tokens and the one that is there. Of several that are spelled alike, the likeliest counts."""
    if one.logprob is None:
        return None
    top: dict[str, float] = {}
    for other in (*one.likeliest, one):
        assert other.logprob is not None
        top.setdefault(_spell(other), other.logprob)
    return top


def _spell(one: ScoredToken) -> str:
    """A token as OpenAI spells it: one that is no whole character by its bytes."""
    try:
        return one.special or one.token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in one.token)
