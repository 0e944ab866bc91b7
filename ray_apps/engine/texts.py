"""Texts that are no chats, in ids and back, as the model's tokenizer has it."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase


class Texts:
    """Encodes and decodes whole texts. Special tokens may be spelled out in them. Safe to use from any thread."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        # A copy: the file of a tokenizer may say that it cuts texts off or fills them up.
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`, by default with those tokens that the tokenizer puts around one by itself."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled out."""
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=False)
        return text
