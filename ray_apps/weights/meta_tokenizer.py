"""A SentencePiece model as a tokenizer of `transformers`, with the same ids for the same text."""

from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import AddedToken, decoders, normalizers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from data_prep.errors import ModelError

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes for a space."""


def convert_tokenizer(file: Path, directory: Path, max_length: int) -> None:
    """Write the tokenizer of Meta's `tokenizer.model` to a model directory, and keep the file beside it.

    It begins a text with BOS, and puts a space before it as SentencePiece does, whether it begins with one or not.

    Raises:
        ModelError: it is no SentencePiece model.
    """
    with TemporaryDirectory() as place:
        (Path(place) / "tokenizer.model").write_bytes(file.read_bytes())
        try:
            read = LlamaTokenizer.from_pretrained(place, add_bos_token=True)
        except Exception as error:
            raise ModelError(f"{file}: no SentencePiece model: {error}") from None
    backend = read.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.pre_tokenizer = None
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials.values()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **specials, model_max_length=max_length, clean_up_tokenization_spaces=False
    )
    tokenizer.save_pretrained(directory)
    (directory / "tokenizer.model").write_bytes(file.read_bytes())
