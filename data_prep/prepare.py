"""One group of records to training rows: read, clean, split, tokenise, mask, pack. A pure function but for one file.

A group is the unit of work: its rows depend on its own records alone, and they go to part-files of its own.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from data_prep.chat_template import get_template
from data_prep.config import DataConfig
from data_prep.conversation import Conversation, DropReason, InvalidConversation, Message, conversation_from_record
from data_prep.html_to_markdown import html_to_markdown
from data_prep.pack import Row, make_rows, rows_to_table
from data_prep.split import is_held_out, split_conversation
from data_prep.tokenizer import EncodedChat, encode_chats, has_tokens_for, load_tokenizer, special_tokens

SPLITS = ("train", "eval")


@dataclass
class GroupResult:
    """Rows of one group by part, and where each of its records went."""

    rows: dict[str, list[Row]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    dropped: Counter[str] = field(default_factory=Counter)
    records: int = 0
    split_parts: int = 0
    with_lost_bytes: int = 0

    def drop(self, reason: DropReason) -> None:
        """Count one conversation that is left out."""
        self.dropped[reason.value] += 1


def prepare_group(records: Sequence[Any], config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> GroupResult:
    """Turn the values of one group of records, None where a record could not be read, into rows."""
    result = GroupResult(records=len(records))
    conversations = list(_read(records, result))
    result.with_lost_bytes = sum(not _has_tokens_for(tokenizer, conversation) for conversation in conversations)
    encoded = list(_encode(conversations, config, tokenizer, result))
    for split in SPLITS:
        held_out = split == "eval"
        chats = [(part, chat) for whole, part, chat in encoded if is_held_out(whole, config.eval_fraction) == held_out]
        result.rows[split] = make_rows(chats, config.context_length, pack=config.pack)
    return result


def _read(records: Sequence[Any], result: GroupResult) -> Iterator[Conversation]:
    for record in records:
        try:
            conversation = conversation_from_record(record)
        except InvalidConversation as error:
            result.drop(error.reason)
            continue
        if not conversation.has_answer:
            result.drop(DropReason.NO_ANSWER)
        elif "conversations" in record:  # ShareGPT's form, which may hold the page's HTML
            yield replace(conversation, messages=tuple(map(_clean, conversation.messages)))
        else:
            yield conversation


def _has_tokens_for(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> bool:
    return all(has_tokens_for(tokenizer, message.content) for message in conversation.messages)


def _clean(message: Message) -> Message:
    return replace(message, content=html_to_markdown(message.content, message.role))


def _encode(
    conversations: Sequence[Conversation],
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    result: GroupResult,
) -> Iterator[tuple[str, str, EncodedChat]]:
    """The id of each chat, the id of each of its parts, and the part in tokens."""
    template, tokens = get_template(config.template), special_tokens(tokenizer)

    def encode(batch: Sequence[Conversation]) -> list[EncodedChat]:
        return encode_chats(tokenizer, [template.render(conversation, tokens) for conversation in batch])

    def count(conversation: Conversation) -> int:
        return len(encode([conversation])[0].input_ids)

    for conversation, chat in zip(conversations, encode(conversations), strict=True):
        if len(chat.input_ids) <= config.context_length:
            yield conversation.id, conversation.id, chat
            continue
        parts = list(split_conversation(conversation, count, config.context_length))
        result.split_parts += len(parts) - 1
        for part, part_chat in zip(parts, encode(parts), strict=True):
            if len(part_chat.input_ids) > config.context_length:
                result.drop(DropReason.TOO_LONG)
            elif not part.has_answer:
                result.drop(DropReason.NO_ANSWER)
            else:
                yield conversation.id, part.id, part_chat


def write_group(name: str, records: Sequence[Any], config: DataConfig, directory: Path) -> dict[str, Any]:
    """Prepare one group and write its rows to `directory/<split>/part-<name>.parquet`; returns plain counts."""
    result = prepare_group(records, config, cached_tokenizer(config.tokenizer))
    counts: dict[str, Any] = {
        "records": result.records,
        "split_parts": result.split_parts,
        "with_lost_bytes": result.with_lost_bytes,
        "dropped": dict(result.dropped),
    }
    for split, rows in result.rows.items():
        if rows:
            pq.write_table(rows_to_table(rows), directory / split / f"part-{name}.parquet", compression="zstd")
        counts[split] = {
            "rows": len(rows),
            "conversations": sum(len(row.document_ids) for row in rows),
            "tokens": sum(len(row.input_ids) for row in rows),
            "trained_tokens": sum(int((row.weights > 0).sum()) for row in rows),
        }
    return counts


@lru_cache(maxsize=2)
def cached_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `model`, loaded once a process."""
    return load_tokenizer(model)
