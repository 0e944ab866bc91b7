"""How a model reads and writes: its tokenizer and chat template, and how its answers begin and end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from data_prep.tokenizer import encode_prompt
from ray_apps.engine.answer import Answer
from ray_apps.engine.detokenize import Vocabulary, read_vocabulary
from ray_apps.engine.grammar import Grammar, Grammars
from ray_apps.engine.protocol import GenerationRequest, SamplingError, SamplingParams
from ray_apps.engine.texts import Texts


@dataclass(frozen=True)
class Language:
    """A model's tokens and texts. `vocab_size` counts its logits; the tokenizer may know fewer tokens."""

    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    vocab_size: int
    end_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    answer_opens_with_space: bool

    def new_answer(self, request: GenerationRequest) -> Answer:
        """The answer of the model to a request, before its first token."""
        opens_with_space = self.answer_opens_with_space or self.vocabulary.strips_space
        return Answer(
            request.sampling,
            self.vocabulary,
            end_ids=self.end_ids,
            model_stop=self.stop_strings,
            strip_space=opens_with_space and not request.goes_on,
        )


def read_language(tokenizer: PreTrainedTokenizerBase, config: Any, generation_config: Any) -> Language:
    """The language of a model with this tokenizer and these configs.

    Raises:
        ModelError: the tokenizer's decoder is of an unknown kind.
    """
    return Language(
        tokenizer=tokenizer,
        vocabulary=read_vocabulary(tokenizer.backend_tokenizer),
        vocab_size=int(config.get_text_config().vocab_size),
        end_ids=end_token_ids(generation_config, tokenizer),
        stop_strings=_as_tuple(getattr(generation_config, "stop_strings", None)),
        answer_opens_with_space=answer_opens_with_space(tokenizer),
    )


def end_token_ids(generation_config: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer: those of the generation config, and the tokenizer's end token."""
    named = getattr(generation_config, "eos_token_id", None)
    ids = {*_as_tuple(named), *_as_tuple(tokenizer.eos_token_id)}
    return frozenset(int(index) for index in ids)


def answer_opens_with_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes a space before an assistant's text, so that it is not part of the answer."""
    question, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    try:
        prompt = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([question, answer], tokenize=False)
    except (TemplateError, ValueError):  # No template, or one that knows no such chat.
        return False
    return str(whole).startswith(f"{prompt} a")


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


class LanguageEngine:
    """The part of an engine that takes no more than its model's language."""

    def __init__(self, language: Language) -> None:
        self._language = language
        self._texts = Texts(language.tokenizer)

    @property
    def vocab_size(self) -> int:
        """Every id of a token is below it."""
        return self._language.vocab_size

    @property
    def chat_template(self) -> str | None:
        """The model's own chat template, as Jinja; of several, that for tools."""
        tokenizer = self._language.tokenizer
        return tokenizer.get_chat_template(tools=[{}]) if tokenizer.chat_template else None

    def check_sampling(self, sampling: SamplingParams) -> None:
        """Return if there are such tokens, and such a schema can be followed."""
        if unknown := [token for token, _ in sampling.logit_bias if not 0 <= token < self.vocab_size]:
            raise SamplingError("logit_bias", f"{unknown[0]} is no token; valid: 0 to {self.vocab_size - 1}")
        self._grammar(sampling)

    def _grammar(self, sampling: SamplingParams) -> Grammar | None:
        if sampling.json_schema is None:
            return None
        try:
            return self._grammars.compile(sampling.json_schema)
        except ValueError as error:
            raise SamplingError("response_format", str(error)) from None

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._language.tokenizer, self.vocab_size, self._language.end_ids)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in a text; nothing if it is a special one."""
        pieces = self._language.vocabulary.pieces
        return pieces[token_id] if token_id < len(pieces) else b""

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Ids of `messages` by the model's own chat template."""
        return encode_prompt(self._language.tokenizer, messages, tools)

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a whole text, in which special tokens may be spelled out."""
        return self._texts.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled out."""
        return self._texts.decode(token_ids)
