"""What a model directory says of the language of its chats: tokenizer, chat template, how an answer ends."""

from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from data_prep.chat_template import ChatTemplate
from data_prep.tokenizer import check_template, encoders_of


def write_language(directory: Path, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
    """Write `tokenizer` with `template` to a model directory, and the generation config that goes with them.

    One that is there keeps what it says of sampling and special tokens.

    Raises:
        ConfigError: the tokenizer lacks special tokens of the template.
    """
    check_template(template, tokenizer)
    tokenizer.chat_template = template.jinja(opens_with_bos=bool(encoders_of(tokenizer).for_templates.bos))
    tokenizer.save_pretrained(directory)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    fields = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": pad}
    path = directory / "generation_config.json"
    generation = GenerationConfig.from_pretrained(directory) if path.exists() else GenerationConfig(**fields)
    generation.stop_strings = list(template.stop_strings) or None
    generation.save_pretrained(directory)
