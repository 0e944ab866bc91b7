"""Chats whose rendered prompt has an exact number of tokens and shares no beginning with any other."""

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.tokenizer import encode_prompt, load_tokenizer

Chat = list[dict[str, str]]

REQUEST = "Write a long story with these words."
_WORD = re.compile(r"Ġ[a-z]{3,}")


class Prompts:
    """Chats for the model in a directory; each has random words in its system prompt, and no two are alike."""

    def __init__(self, model: Path, seed: int = 0) -> None:
        self._tokenizer = load_tokenizer(str(model))
        self._words = sorted(token[1:] for token in self._tokenizer.get_vocab() if _WORD.fullmatch(token))
        self._random = random.Random(seed)

    def chats(self, num_tokens: int) -> Iterator[Chat]:
        """Endlessly many, each of `num_tokens` tokens with all that the chat template adds."""
        num_words = num_tokens - self.count(self._chat(()))
        while True:
            chat = self._chat(self._random.choices(self._words, k=num_words))
            assert self.count(chat) == num_tokens
            yield chat

    def count(self, chat: Chat) -> int:
        """Tokens of the rendered prompt."""
        return len(encode_prompt(self._tokenizer, chat))

    def render(self, chat: Chat) -> str:
        """The prompt as the template writes it, for a server that has no templates of its own."""
        return str(self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    def _chat(self, words: Sequence[str]) -> Chat:
        text = "".join(f" {word}" for word in words)
        return [{"role": "system", "content": f"Words:{text}"}, {"role": "user", "content": REQUEST}]
