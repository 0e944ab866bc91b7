"""One answer as it grows: tokens in, deltas out, and the decision when it ends. Every engine of ours builds on it."""

from collections.abc import Collection, Sequence

from ray_apps.engine.detokenize import Detokenizer, Vocabulary
from ray_apps.engine.protocol import FinishReason, SamplingParams, TokenDelta, TokenLogprob


class Answer:
    """The answer to one request.

    It ends at a token of `end_ids` unless it ignores those, at a stop token or string (the request's or one of
    `model_stop`) or at `max_tokens`. An end token gives no text.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        vocabulary: Vocabulary,
        *,
        end_ids: Collection[int],
        model_stop: Sequence[str] = (),
        strip_space: bool | None = None,
    ) -> None:
        self.finished = False
        self._max_tokens = sampling.max_tokens
        self._end_ids = {*(() if sampling.ignore_eos else end_ids), *sampling.stop_token_ids}
        self._detokenizer = Detokenizer(vocabulary, (*sampling.stop, *model_stop), strip_space=strip_space)
        self._num_tokens = 0
        self._pending: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: tuple[TokenLogprob, ...] = ()

    def push(
        self,
        token_id: int,
        logprob: TokenLogprob | None = None,
        *,
        num_cached: int = 0,
        prompt_logprobs: tuple[TokenLogprob, ...] = (),
    ) -> TokenDelta | None:
        """Take the next token; return what can be told now, if anything. After the last delta, `finished` is set.

        `prompt_logprobs`, given with the first token, are told with the first delta.
        """
        self._prompt_logprobs = self._prompt_logprobs or prompt_logprobs
        self._num_tokens += 1
        self._pending.append(token_id)
        if logprob is not None:
            self._logprobs.append(logprob)
        is_end = token_id in self._end_ids
        text = "" if is_end else self._detokenizer.push(token_id)
        reason: FinishReason | None = None
        if is_end or self._detokenizer.stopped:
            reason = "stop"
        elif self._num_tokens >= self._max_tokens:
            reason = "length"
        if reason:
            self.finished = True
            text += self._detokenizer.finish()
        return self._tell(text, reason, num_cached) if text or reason else None

    def _tell(self, text: str, reason: FinishReason | None, num_cached: int) -> TokenDelta:
        token_ids, self._pending = tuple(self._pending), []
        logprobs, self._logprobs = tuple(self._logprobs), []
        prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, ()
        return TokenDelta(text, token_ids, reason, logprobs, num_cached, prompt_logprobs)
