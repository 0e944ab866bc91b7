"""Answers that follow a JSON schema: which tokens may come next, as llguidance works it out."""

from typing import Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ray_apps.engine.protocol import MAX_SCHEMA_CHARACTERS, SamplingError

# A row has four items for each property that may come next: some 2,400 optional ones, which take 50 ms for a token.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000, step_max_items=50_000, max_items_in_row=10_000, max_grammar_size=200_000
)


class Grammars:
    """Grammars over the tokens of one model. Making one takes about a second."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary_size: int, end_ids: frozenset[int]) -> None:
        fast: Any = tokenizer
        self._tokenizer: LLTokenizer = from_tokenizer(fast, n_vocab=vocabulary_size, eos_token=sorted(end_ids))
        self._brace = self._tokenizer.tokenize_str("{")

    def compile(self, schema: str) -> "Grammar":
        """The grammar of answers that follow `schema`.

        Raises:
            ValueError: it is no JSON schema, asks for what cannot be followed, or is too large; the text says which.
        """
        if len(schema) > MAX_SCHEMA_CHARACTERS:
            raise ValueError(f"the schema has {len(schema)} characters; valid: up to {MAX_SCHEMA_CHARACTERS}")
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_json_schema(schema), log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise ValueError(_first_line(matcher.get_error()))
        opened = matcher.deep_copy()
        opened.try_consume_tokens(self._brace)
        for beginning in (matcher, opened):  # Most is possible where an object begins.
            beginning.compute_logit_bias()
            if beginning.is_error():
                raise ValueError(_too_much(beginning))
        return Grammar(matcher)


class Grammar:
    """Where one answer is in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def apply(self, logits: Tensor) -> Tensor:
        """The logits `[vocabulary]`, with those of tokens that may not come next at minus infinity."""
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8).to(logits.device)
        self._check()
        return logits.masked_fill(allowed[: len(logits)] == 0, float("-inf"))

    def accept(self, token: int) -> None:
        """The answer goes on with this token."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        """Raises: SamplingError: following the grammar takes more than its limits allow."""
        if self._matcher.is_error():
            raise SamplingError("response_format", _too_much(self._matcher))


def _too_much(matcher: LLMatcher) -> str:
    return f"the schema takes more work than the limits allow: {_first_line(matcher.get_error())}"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
