"""Each fault is found where it is and not where it looks alike; a bad answer costs itself, not its chat."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.config import FilterSettings
from data_prep.conversation import Conversation, DropReason, Message, Role
from data_prep.filters import (
    detect_language,
    drop_reason,
    has_broken_list,
    mask_bad_answers,
    message_fault,
    repair_order,
)

DEFAULTS = FilterSettings()


def settings(**fields: Any) -> FilterSettings:
    return FilterSettings.parse(fields)


def chat(*texts: str) -> Conversation:
    roles = (Role.USER, Role.ASSISTANT)
    return Conversation("x", tuple(Message(roles[index % 2], text) for index, text in enumerate(texts)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Too many requests in 1 hour. Try again later.", DropReason.ERROR_MESSAGE),
        ("!Too many requests in 1 hour. Try again later.", DropReason.ERROR_MESSAGE),
        ("Something went wrong. If this issue persists please contact us.", DropReason.ERROR_MESSAGE),
        ("network error", DropReason.ERROR_MESSAGE),
        ("There was an error generating a response", DropReason.ERROR_MESSAGE),
        ("The server had an error while processing your request. Sorry about that!", DropReason.ERROR_MESSAGE),
        ("Our systems are a bit busy at the moment, please take a break.", DropReason.ERROR_MESSAGE),
        ("You've reached our limit of messages per hour.", DropReason.ERROR_MESSAGE),
        ("You've reached the usage cap for GPT-4, please try again after 2:04 PM.", DropReason.ERROR_MESSAGE),
        ("Network errors have several causes: cables, routers, settings.", None),
        ("Something went wrong in Rome in 476." + " It was long in coming." * 20, None),
        ("\u200b", DropReason.EMPTY_ANSWER),
        (" \n\ufeff", DropReason.EMPTY_ANSWER),
        ("!", None),
        ("Used WebPilot\n\nREQUEST\n{}", DropReason.PLUGIN),
        ("Used cars are cheaper.\nResponse times vary.", None),
        ("1. one\n1. two", DropReason.BROKEN_LIST),
        ("2. one\n\n2. two", DropReason.BROKEN_LIST),
        ("1. one\n   more of it\n1. two", DropReason.BROKEN_LIST),
        ("1. one\n2. two\n3. three", None),
        ("1. one\n   1. inner\n2. two\n   1. inner", None),
        ("1. one\n\nText between.\n\n1. another list", None),
        ("```\n1. one\n1. two\n```", None),
        ("\x00\x01\x02 abc", DropReason.NON_PRINTABLE),
        ("tabs\tand\nlines\r\n and 你好 😀", None),
        ("\ufffd" * 3 + "abc", DropReason.NON_PRINTABLE),
        ("A good answer.", None),
    ],
)
def test_faults_by_default(text: str, reason: DropReason | None) -> None:
    assert message_fault(text, DEFAULTS) == reason


@pytest.mark.parametrize(
    ("text", "fields", "reason"),
    [
        ("As an AI Language Model, I", {"blocked_phrases": ["as an ai language model"]}, DropReason.BLOCKED_PHRASE),
        ("STRASSE", {"blocked_phrases": ["straße"]}, DropReason.BLOCKED_PHRASE),
        ("fine", {"blocked_phrases": ["bad"]}, None),
        ("000000000", {"max_digit_run": 8}, DropReason.DIGIT_RUN),
        ("00000000 and 12345678901234567890", {"max_digit_run": 8}, None),
        ("same\n" * 10, {"max_repeated_lines": 0.5}, DropReason.REPEATED_LINES),
        ("\n".join(f"line {n}" for n in range(10)), {"max_repeated_lines": 0.5}, None),
        ("same\n" * 3, {"max_repeated_lines": 0.5}, None),
        ("1. one\n1. two", {"broken_lists": False}, None),
        ("network error", {"error_messages": False}, None),
        ("\x00" * 9, {"max_non_printable": None, "empty_answers": False}, None),
    ],
)
def test_faults_as_configured(text: str, fields: dict[str, Any], reason: DropReason | None) -> None:
    assert message_fault(text, settings(**fields)) == reason


def test_a_bad_answer_is_masked_and_the_rest_is_kept() -> None:
    masked, faults = mask_bad_answers(chat("a", "network error", "b", "fine"), DEFAULTS)
    assert [message.weight for message in masked.messages] == [1.0, 0.0, 1.0, 1.0]
    assert faults == (DropReason.ERROR_MESSAGE,)
    assert drop_reason(masked, faults, "en", DEFAULTS) is None


def test_what_a_user_types_is_never_a_fault() -> None:
    conversation = chat("network error", "What were you doing?")
    assert mask_bad_answers(conversation, DEFAULTS) == (conversation, ())


def test_a_chat_of_bad_answers_goes_with_its_first_reason() -> None:
    masked, faults = mask_bad_answers(chat("a", "network error", "b", "\u200b"), DEFAULTS)
    assert drop_reason(masked, faults, "en", DEFAULTS) is DropReason.ERROR_MESSAGE


@pytest.mark.parametrize(
    ("fields", "language", "reason"),
    [
        ({"min_turns": 4}, "en", DropReason.TOO_SHORT),
        ({"min_characters": 6}, "en", DropReason.TOO_SHORT),
        ({"keep_languages": ["en"]}, "de", DropReason.LANGUAGE),
        ({"keep_languages": ["en"]}, "un", DropReason.LANGUAGE),
        ({"keep_languages": ["en", "un"]}, "un", None),
        ({"skip_languages": ["de"]}, "de", DropReason.LANGUAGE),
        ({}, "de", None),
    ],
)
def test_whole_chats_are_dropped_by_length_and_language(
    fields: dict[str, Any], language: str, reason: DropReason | None
) -> None:
    assert drop_reason(chat("Hi?", "Hello"), (), language, settings(**fields)) is reason


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The weather is fine today, and we walk through the park together.", "en"),
        ("Das Wetter ist heute schön, und wir gehen zusammen durch den Park.", "de"),
        ("今天天气很好，我们一起去公园散步吧，然后回家吃饭。", "zh"),
        ("", "un"),
        ("\x00\ufffe\U0010ffff", "un"),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert detect_language(chat(text, text)) == language


@given(st.text(max_size=200))
def test_no_text_breaks_a_check(text: str) -> None:
    everything = settings(
        blocked_phrases=["x"], max_digit_run=3, max_repeated_lines=0.2, keep_languages=["en"], min_turns=4
    )
    masked, faults = mask_bad_answers(chat(text, text), everything)
    reason = drop_reason(masked, faults, detect_language(masked), everything)
    assert len(faults) <= 1
    assert reason is not None  # one round is too short for these settings, whatever it says


S, U, A = Role.SYSTEM, Role.USER, Role.ASSISTANT


@pytest.mark.parametrize(
    ("roles", "kept"),
    [
        ([U, A], [U, A]),
        ([A, U, A], [U, A]),
        ([A, A, U, A], [U, A]),
        ([U, A, U], [U, A]),
        ([S, A, U, A, U], [S, U, A]),
        ([U], [U]),
        ([A], []),
        ([U, U, A], [U, U, A]),
        ([], []),
    ],
)
def test_an_order_is_repaired_at_its_ends_alone(roles: list[Role], kept: list[Role]) -> None:
    messages = [Message(role, str(index)) for index, role in enumerate(roles)]
    assert [message.role for message in repair_order(messages)] == kept


@pytest.mark.parametrize(
    "text",
    [
        "1. Write:\n\n   ```markdown\n   1. a\n   1. b\n   ```\n\n2. Done",
        "```\n1. a\n1. b\n````\nDone",
        "~~~\n1. a\n```\n1. b\n~~~",
        "```python\n1. a\n1. b",
    ],
)
def test_lists_in_code_are_not_looked_at(text: str) -> None:
    assert not has_broken_list(text, FilterSettings())


def test_unclosed_fences_cost_no_more_than_their_length() -> None:
    assert not has_broken_list("```a\n" * 1_000_000, FilterSettings())
