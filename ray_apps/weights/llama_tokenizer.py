"""Llama's SentencePiece model as a tokenizer of `transformers`, with the same ids for the same text.

Like the slow tokenizer that Llama and Vicuna were trained with, it puts a space before a text, whether it begins with
one or not, and before what follows a special token.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data_prep.errors import ModelError

MODEL = "tokenizer.model"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes for a space."""
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CLASSES = ("LlamaTokenizer", "LLaMATokenizer", "LlamaTokenizerFast")


def convert_tokenizer(
    file: Path,
    directory: Path,
    max_length: int,
    *,
    added: Mapping[str, int] | None = None,
    specials: Mapping[str, str] | None = None,
    chat_template: str | None = None,
) -> None:
    """Write the tokenizer of Meta's `tokenizer.model` to a model directory, and keep the file beside it.

    It begins a text with BOS.

    Args:
        max_length: in tokens.
        added: tokens beside SentencePiece's own, and their ids.
        specials: what is BOS, EOS, UNK or a pad, by the names that transformers has for them, where it is not `<s>`,
            `</s>`, `<unk>` and nothing.

    Raises:
        ModelError: it is no SentencePiece model, the ids are not the next ones, or a special token is none of these.
    """
    from transformers import PreTrainedTokenizerFast

    content = file.read_bytes()
    chosen = SPECIALS | dict(specials or {})
    backend = _backend(content)
    _add_tokens(backend, added or {}, chosen)
    fields = {"chat_template": chat_template} if chat_template else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **chosen,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        **fields,
    )
    tokenizer.save_pretrained(directory)
    (directory / MODEL).write_bytes(content)


def _backend(content: bytes) -> Any:
    """What encodes as SentencePiece's model `content` does."""
    from tokenizers import decoders, normalizers
    from transformers import LlamaTokenizer

    with TemporaryDirectory() as place:
        (Path(place) / MODEL).write_bytes(content)
        try:
            read = LlamaTokenizer.from_pretrained(place, add_bos_token=True)
        except Exception as error:
            raise ModelError(f"{MODEL}: no SentencePiece model: {error}") from None
    backend = read.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.pre_tokenizer = None
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


def _add_tokens(backend: Any, added: Mapping[str, int], chosen: Mapping[str, str]) -> None:
    """Give it tokens beside SentencePiece's, say which are special, and let BOS begin a text."""
    from tokenizers import AddedToken, processors

    for token, index in sorted(added.items(), key=lambda item: item[1]):
        is_special = token in chosen.values()
        backend.add_tokens([AddedToken(token, normalized=False, special=is_special)])
        if backend.token_to_id(token) != index:
            raise ModelError(f"added_tokens.json: {token!r} has the id {index}, which is not the next one")
    for name, token in chosen.items():
        if backend.token_to_id(token) is None:
            raise ModelError(f"{name}: {token!r} is neither in {MODEL} nor in added_tokens.json")
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in chosen.values()])
    bos = chosen["bos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, backend.token_to_id(bos))]
    )


def complete_tokenizer(directory: Path) -> None:
    """Write the `tokenizer.json` that a directory with Llama's slow tokenizer lacks, if it is such a one.

    What `transformers` makes of these itself has other ids where a text begins with a space or follows a special token.

    Raises:
        ModelError: its files cannot be read, or do not go together.
    """
    settings = _read(directory / "tokenizer_config.json")
    is_slow = (directory / MODEL).is_file() and not (directory / "tokenizer.json").exists()
    if not is_slow or settings.get("tokenizer_class") not in CLASSES or settings.get("legacy") is False:
        return
    told = settings | _read(directory / "special_tokens_map.json")
    specials = {name: token for name in (*SPECIALS, "pad_token") if (token := _token(told.get(name)))}
    convert_tokenizer(
        directory / MODEL,
        directory,
        _max_length(settings),
        added=_read(directory / "added_tokens.json"),
        specials=specials,
        chat_template=settings.get("chat_template"),
    )
    for replaced in ("special_tokens_map.json", "added_tokens.json"):  # it is all in tokenizer.json now
        (directory / replaced).unlink(missing_ok=True)


def _token(told: Any) -> str | None:
    """A token as it is told: its text, or a mapping that has it."""
    text = told.get("content") if isinstance(told, dict) else told
    return text if isinstance(text, str) and text else None


def _max_length(settings: Mapping[str, Any]) -> int:
    length = settings.get("model_max_length")
    return min(int(length), 2**31) if isinstance(length, int | float) and length >= 1 else 2048


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path.name} is not readable: {error}") from None
