"""One chunk of records: read, clean, filter, split, tokenise, mask; then, without the duplicates, pack.

A chunk is the unit of work: its chats depend on its own records alone. A group of chunks is packed together: its rows
depend on its chats, and on which of them are duplicates of chats elsewhere. Pure functions; `work.py` keeps what they
give in files.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

from data_prep.chat_template import get_template
from data_prep.config import DataConfig
from data_prep.contamination import EvaluationQuestions
from data_prep.conversation import Conversation, DropReason, InvalidConversation, Message, conversation_from_record
from data_prep.dedup import Key, make_key, record_order
from data_prep.encode import EncodedChat, Memo, encode_chats
from data_prep.encoders import Encoders
from data_prep.filters import detect_language, drop_reason, mask_bad_answers, repair_order
from data_prep.html_to_markdown import html_to_markdown
from data_prep.moderation import Moderator, flag_chats
from data_prep.pack import Document, Row, make_rows
from data_prep.split import is_held_out, num_copies, split_conversation

SPLITS = ("train", "eval")
COUNTERS = ("steps", "dropped", "masked", "languages", "turns", "tokens")
NUM_SAMPLES = 10


class Item(NamedTuple):
    """One record of a chunk: its position in its file, its value, or why there is none."""

    position: int
    value: Any
    error: str | None = None


@dataclass(frozen=True)
class Chunk:
    """Records of one file that follow each other. `file` counts the files; `of_users`: they are not our own."""

    file: int
    source: str
    items: Sequence[Item]
    weight: float = 1.0
    of_users: bool = True


class Reject(NamedTuple):
    """A chat, or a part of one, that is left out."""

    source: str
    position: int
    id: str
    part: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A part of a chat in tokens, ready to be packed. `position` is that of its record; `copies` how often it comes."""

    position: int
    document: Document
    held_out: bool
    copies: int


@dataclass
class Prepared:
    """What one chunk gave. `counts` has one counter a subject; `samples`: hash of the id, position, cleaned chat."""

    chats: list[Chat] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in COUNTERS})
    samples: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)


@dataclass(frozen=True)
class Preparation:
    """What every chunk is prepared with."""

    config: DataConfig
    encoders: Encoders
    moderator: Moderator
    questions: EvaluationQuestions | None = None

    def prepare(self, chunk: Chunk) -> Prepared:
        """Turn the records of `chunk` into chats in tokens, each record into at least one, or a reject."""
        return _Work(self, chunk).run()


class _Work:
    """The steps of one chunk, in order; each yields what the next one takes, and rejects the rest."""

    def __init__(self, preparation: Preparation, chunk: Chunk) -> None:
        self.preparation, self.config, self.chunk = preparation, preparation.config, chunk
        self.result = Prepared()
        self.steps = self.result.counts["steps"]
        self.languages: dict[int, str] = {}

    def run(self) -> Prepared:
        read = list(self._read())
        judged = list(self._without_questions(self._moderated(list(self._filtered(read)))))
        self._encode(judged)
        kept = {chat.position for chat in self.result.chats}
        self._describe([(position, conversation) for position, conversation in judged if position in kept])
        return self.result

    def _reject(self, position: int, chat: str, part: int, reason: DropReason, detail: str = "") -> None:
        self.result.rejects.append(Reject(self.chunk.source, position, chat, part, reason.value, detail))
        self.result.counts["dropped"][reason.value] += 1

    def _read(self) -> Iterator[tuple[int, Conversation]]:
        """Records as conversations: repaired, and page HTML as Markdown."""
        excluded = set(self.config.exclude_ids)
        for position, value, error in self.chunk.items:
            self.steps["records"] += 1
            if error is not None:
                self._reject(position, "", 0, DropReason.UNREADABLE, error)
                continue
            try:
                conversation = conversation_from_record(value, default_id=partial(_id_of, value), repair=self._repair)
            except InvalidConversation as problem:
                identifier = value.get("id", "") if isinstance(value, Mapping) else ""
                self._reject(position, str(identifier or ""), 0, problem.reason, str(problem))
                continue
            if conversation.id in excluded:
                self._reject(position, conversation.id, 0, DropReason.EXCLUDED)
            elif self._copies(conversation) == 0:
                self._reject(position, conversation.id, 0, DropReason.NOT_SAMPLED)
            else:
                self.steps["read"] += 1
                yield position, self._clean(conversation) if value.get("conversations") else conversation

    def _repair(self, messages: Sequence[Message]) -> Sequence[Message]:
        repaired = repair_order(messages)
        self.steps["repaired"] += len(repaired) < len(messages)
        return repaired

    def _clean(self, conversation: Conversation) -> Conversation:
        messages = tuple(
            message if "<" not in message.content and "&" not in message.content else _clean_message(message)
            for message in conversation.messages
        )
        if all(new is old for new, old in zip(messages, conversation.messages, strict=True)):
            return conversation
        self.steps["html_messages"] += sum(
            new.content != old.content for new, old in zip(messages, conversation.messages, strict=True)
        )
        return replace(conversation, messages=messages)

    def _filtered(self, chats: Sequence[tuple[int, Conversation]]) -> Iterator[tuple[int, Conversation]]:
        for position, conversation in chats:
            masked, faults = mask_bad_answers(conversation, self.config.filters)
            language = detect_language(conversation)
            reason = drop_reason(masked, faults, language if self.chunk.of_users else None, self.config.filters)
            if reason is not None:
                self._reject(position, conversation.id, 0, reason, language if reason is DropReason.LANGUAGE else "")
                continue
            self.steps["filtered"] += 1
            self.result.counts["masked"].update(fault.value for fault in faults)
            self.languages[position] = language
            yield position, masked

    def _moderated(self, chats: Sequence[tuple[int, Conversation]]) -> Iterator[tuple[int, Conversation]]:
        preparation = self.preparation
        conversations = [conversation for _, conversation in chats]
        flags = flag_chats(preparation.moderator, conversations, preparation.config.moderation)
        for (position, conversation), flag in zip(chats, flags, strict=True):
            if flag is not None:
                self._reject(position, conversation.id, 0, DropReason.MODERATION, flag)
                continue
            yield position, conversation

    def _without_questions(self, chats: Iterator[tuple[int, Conversation]]) -> Iterator[tuple[int, Conversation]]:
        questions = self.preparation.questions
        for position, conversation in chats:
            question = None if questions is None else questions.found_in(conversation)
            if question is not None:
                self._reject(position, conversation.id, 0, DropReason.EVALUATION_QUESTION, question)
                continue
            self.steps["judged"] += 1
            yield position, conversation

    def _describe(self, chats: Sequence[tuple[int, Conversation]]) -> None:
        """Keys, counts and a sample of the chats of which something is kept."""
        dedup, counts = self.config.dedup, self.result.counts
        self.steps["fitted"] += len(chats)
        for position, conversation in chats:
            counts["languages"][self.languages[position]] += 1
            counts["turns"][str(len(conversation.turns))] += 1
            self._sample(position, conversation)
            if self.chunk.of_users and (dedup.exact or dedup.near is not None):
                self.result.keys.append(make_key(conversation, record_order(self.chunk.file, position), dedup))

    def _encode(self, chats: Sequence[tuple[int, Conversation]]) -> None:
        template, encoders, memo = get_template(self.config.template), self.preparation.encoders, Memo()

        def encode(batch: Sequence[Conversation]) -> list[EncodedChat]:
            return encode_chats(
                encoders, [template.render(conversation, encoders.for_templates) for conversation in batch], memo
            )

        def count(conversation: Conversation) -> int:
            return len(encode([conversation])[0].input_ids)

        whole = encode([conversation for _, conversation in chats])
        for (position, conversation), encoded in zip(chats, whole, strict=True):
            self.steps["with_lost_bytes"] += not all(
                encoders.has_tokens_for(message.content) for message in conversation.messages
            )
            if len(encoded.input_ids) <= self.config.context_length:
                self._keep(position, conversation, 0, conversation, encoded)
                continue
            parts = list(split_conversation(conversation, count, self.config.context_length))
            self.steps["split_parts"] += len(parts) - 1
            start = 0
            for part, part_encoded in zip(parts, encode(parts), strict=True):
                self._keep(position, conversation, start, part, part_encoded)
                start += len(part.turns)

    def _keep(self, position: int, whole: Conversation, start: int, part: Conversation, encoded: EncodedChat) -> None:
        most = self.config.context_length
        cut = encoded
        if len(encoded.input_ids) > most and self.config.oversize_round == "truncate_answer":
            cut = EncodedChat(encoded.input_ids[:most], encoded.weights[:most])
        if len(cut.input_ids) > most:
            self._reject(position, whole.id, start, DropReason.TOO_LONG, f"{len(encoded.input_ids)} tokens")
            return
        if not cut.weights.any():
            reason = DropReason.NO_ANSWER if len(encoded.input_ids) <= most else DropReason.TOO_LONG
            self._reject(position, whole.id, start, reason, "no trained token in this part")
            return
        if cut is not encoded:
            self.steps["truncated"] += 1
            self.steps["truncated_tokens"] += int((encoded.weights[most:] > 0).sum())
            encoded = cut
        self.result.counts["tokens"][str(_bucket(len(encoded.input_ids)))] += 1
        document = Document(part.id, encoded, self.chunk.source, start)
        held_out = is_held_out(whole.id, self.config.eval_fraction)
        self.result.chats.append(Chat(position, document, held_out, self._copies(whole)))

    def _copies(self, conversation: Conversation) -> int:
        return num_copies(conversation.id, self.chunk.weight)

    def _sample(self, position: int, conversation: Conversation) -> None:
        """Keep the chats of the smallest hashes: a sample that does not depend on how the work was shared out."""
        place = blake2b(conversation.id.encode("utf-8", "surrogatepass"), digest_size=8, person=b"sample").hexdigest()
        self.result.samples.append((place, position, conversation.to_record()))
        self.result.samples.sort(key=lambda sample: sample[:2])
        del self.result.samples[NUM_SAMPLES:]


def _id_of(record: Mapping[str, Any]) -> str:
    """The name of a record that has none: a hash of its content, which is the same wherever it lies."""
    text = json.dumps(record, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=8, person=b"record").hexdigest()


def _clean_message(message: Message) -> Message:
    return replace(message, content=html_to_markdown(message.content, message.role))


def _bucket(length: int) -> int:
    """The power of two at or below `length`."""
    return 1 << (length.bit_length() - 1)


@dataclass(frozen=True)
class Packed:
    """Rows of one group by part, and how many chats more there are since some come several times."""

    rows: dict[str, list[Row]]
    repeated: int


def leave_out(chats: Sequence[Chat], duplicates: Mapping[int, tuple[str, str]]) -> tuple[list[Chat], list[Reject]]:
    """The chats of one chunk without those at the positions of `duplicates` (reason and detail by position)."""
    rejects = [
        Reject(chat.document.source, chat.position, chat.document.id, chat.document.part, *duplicates[chat.position])
        for chat in chats
        if chat.position in duplicates
    ]
    return [chat for chat in chats if chat.position not in duplicates], rejects


def pack_chats(chats: Sequence[Chat], config: DataConfig) -> Packed:
    """Pack one group."""
    rows = {
        split: make_rows(
            [chat.document for chat in chats if chat.held_out == (split == "eval") for _ in range(chat.copies)],
            config.context_length,
            pack=config.pack,
        )
        for split in SPLITS
    }
    return Packed(rows, sum(chat.copies - 1 for chat in chats))
