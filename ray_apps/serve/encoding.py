"""Between the API's prompts and tokens and those of an engine: ids one way, texts and scores the other."""

from collections.abc import Iterable

from data_prep.errors import ModelError
from ray_apps.engine.protocol import Engine, TokenDelta, TokenLogprob
from ray_apps.serve.errors import bad_request
from ray_apps.serve.jobs import ChatPrompt, Job, Prompt, ScoredToken, TextPrompt
from ray_apps.serve.tools import call_format


class Encoding:
    """Encodes for `engine`, and says what its tokens are."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def encode(self, prompt: Prompt, param: str, *, may_be_empty: bool = False) -> tuple[int, ...]:
        """The ids of a prompt, which is the field `param` of the request.

        Raises:
            ApiError: it cannot be used.
        """
        try:
            match prompt:
                case ChatPrompt():
                    token_ids = self._engine.encode_chat(prompt.messages, prompt.tools)
                case TextPrompt():
                    token_ids = self._engine.encode_text(prompt.text, add_special_tokens=prompt.add_special_tokens)
                case _:
                    self.check_ids(prompt, param)
                    token_ids = [*prompt]
        except (ModelError, ValueError) as error:
            raise bad_request(str(error), param=param) from None
        if not token_ids and not may_be_empty:
            raise bad_request(f"{param}: has no tokens; at least one is needed", param=param)
        return tuple(token_ids)

    def check_tools(self, prompt: Prompt) -> None:
        """Refuse tools, and messages about them, that the model would not see.

        Raises:
            ApiError: there are any.
        """
        if not isinstance(prompt, ChatPrompt) or call_format(self._engine.chat_template or ""):
            return
        reason = "this model's chat template has no tools, or writes calls in a way that is not known here"
        if prompt.tools:
            raise bad_request(f"tools: {reason}", param="tools")
        if any(message["role"] == "tool" or message.get("tool_calls") for message in prompt.messages):
            raise bad_request(f"messages: {reason}", param="messages")

    def check_ids(self, token_ids: Iterable[int], param: str) -> None:
        """Refuse what are no tokens of the model.

        Raises:
            ApiError: there are such.
        """
        size = self._engine.vocab_size
        if unknown := [token for token in token_ids if not 0 <= token < size]:
            raise bad_request(f"{param}: {unknown[0]} is no token; valid: 0 to {size - 1}", param=param)

    def text(self, prompt: Prompt, prompt_ids: tuple[int, ...]) -> str:
        """The prompt as it is read."""
        return prompt.text if isinstance(prompt, TextPrompt) else self._engine.decode(prompt_ids)

    def score_prompt(self, job: Job, prompt_ids: tuple[int, ...], first: TokenDelta) -> list[ScoredToken]:
        """The prompt's tokens with what the `first` piece of its answer says of them, if the job asks for scores."""
        if job.sampling.logprobs is None:
            return []
        return [self._token(prompt_ids[0], None), *map(self.score, first.prompt_logprobs)]

    def score(self, one: TokenLogprob) -> ScoredToken:
        """A token of an answer, and those that were likeliest in its place, by what they stand for."""
        likeliest = tuple(self._token(token, logprob) for token, logprob in one.likeliest)
        return self._token(one.token_id, one.logprob, likeliest)

    def _token(self, token_id: int, logprob: float | None, likeliest: tuple[ScoredToken, ...] = ()) -> ScoredToken:
        piece = self._engine.token_bytes(token_id)
        return ScoredToken(piece, logprob, likeliest, special="" if piece else self._engine.decode([token_id]))
