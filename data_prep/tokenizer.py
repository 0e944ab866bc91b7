"""A model's tokenizer: loaded, checked, described, and the ids of a prompt.

A special token enters as an id, only where a template wrote it. The same spelling typed by a person is encoded as
ordinary text, so a typed text can neither end a turn nor open one.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data_prep.chat_template import ChatTemplate
from data_prep.encode import encode_chats
from data_prep.encoders import Encoders
from data_prep.errors import ConfigError, ModelError
from data_prep.model_template import render_messages
from data_prep.storage import TOKENIZER_FILES, local_model


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `model`: a directory, an `s3://` path or a hub id.

    Raises:
        ModelError: there is none, it has no end token, or it is not of the fast kind (only those give offsets).
    """
    directory = local_model(model, TOKENIZER_FILES)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except StrictDataclassError as error:
        raise ModelError(f"model {model!r}: config.json: {error.__cause__ or error}") from None
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {model!r}: no usable tokenizer: {str(error).splitlines()[0]}") from None
    if not tokenizer.is_fast:
        raise ModelError(f"model {model!r}: its tokenizer has no fast version (tokenizer.json)")
    if tokenizer.eos_token is None:
        raise ModelError(f"model {model!r}: its tokenizer names no end token (eos_token)")
    return tokenizer


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """What makes ids comparable: a hash of vocabulary, merges, normalisation and special tokens. 16 hex digits."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):
        description.pop(state, None)
    specials = {"bos": tokenizer.bos_token, "eos": tokenizer.eos_token}
    text = json.dumps([description, specials], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that `Encoders` needs of a tokenizer, as JSON."""
    opened = tokenizer("a").input_ids
    opens_with_bos = bool(opened) and tokenizer.bos_token_id is not None and opened[0] == tokenizer.bos_token_id
    added = tokenizer.added_tokens_decoder.items()
    description = {
        "tokenizer": json.loads(tokenizer.backend_tokenizer.to_str()),
        "specials": [[index, token.content, token.lstrip, token.rstrip] for index, token in added if token.special],
        "eos": tokenizer.eos_token,
        "bos": tokenizer.bos_token if opens_with_bos else "",
    }
    return json.dumps(description)


@lru_cache(maxsize=8)
def encoders_of(tokenizer: PreTrainedTokenizerBase) -> Encoders:
    """The encoders of a tokenizer, made once."""
    return Encoders(describe(tokenizer))


def check_template(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a template whose special tokens the tokenizer lacks.

    Raises:
        ConfigError: naming the template and the missing tokens.
    """
    missing = [token for token in template.required_tokens if token not in encoders_of(tokenizer).specials]
    if missing:
        raise ConfigError(
            f"template: {template.name!r} needs the special tokens {', '.join(missing)}, which the tokenizer lacks"
        )


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches the spelling of any special token, the longest first."""
    spellings = sorted(encoders_of(tokenizer).specials, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spellings)) if spellings else r"(?!)")


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
) -> list[int]:
    """Ids of `messages` rendered by the tokenizer's own chat template, ready for the assistant's answer.

    `tools`: what the assistant may call, as OpenAI describes it.

    Raises:
        ModelError: the tokenizer has no chat template.
        ValueError: the template refuses the messages; the message is the template's own.
    """
    rendered = render_messages(tokenizer, messages, special_pattern(tokenizer), tools=tools)
    ids: list[int] = encode_chats(encoders_of(tokenizer), [rendered])[0].input_ids.tolist()
    return ids
