"""What is wrong with a message or a chat, each check a pure function with a named reason.

A bad answer is masked where the rest of its chat is good: it stays as context and is not trained on. A chat is dropped
where nothing is left to train on, or where the fault lies in the chat as a whole.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from data_prep.config import FilterSettings
from data_prep.conversation import Conversation, DropReason, Message, Role

# What services wrote in place of an answer.
_ERROR = re.compile(
    r"""^\W*(
        too\ many\ requests
      | something\ went\ wrong\W*($|please|if|try)
      | (an?\ )?(network\ )?error\ occurred\ (during|while|please)
      | an\ error\ occurred\.
      | network\ error\W*$
      | there\ was\ an\ error\ generating\ a\ response
      | the\ server\ (had\ an\ error|is\ (currently\ )?overloaded)
      | our\ (systems|servers)\ are\ (a\ bit\ )?(busy|overloaded)
      | hmm\W*something\ seems\ to\ have\ gone\ wrong
      | (this|the)\ conversation\ is\ too\ long
      | (the\ )?message\ you\ submitted\ was\ too\ long
      | only\ one\ message\ at\ a\ time
      | you('ve|\ have)\ reached\ (the|our|your)\ (\w+\ ){0,2}(cap|limit)
      | rate\ limit\ (reached|exceeded)
      | chatgpt\ is\ at\ capacity
      | \{"?detail"?:
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_MAX_ERROR_CHARACTERS = 400  # a longer text that begins so is an answer about errors
_PLUGIN = re.compile(r"^(?i:used|using|finished|browsing)\b[^\n]{0,60}\n+(REQUEST|RESPONSE|\{)")
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})")
_ITEM = re.compile(r"^(?P<indent>[ \t]*)(?P<number>\d{1,3})[.)][ \t]+\S")
_DIGITS = re.compile(r"(\d)\1*")
_MIN_LINES = 8  # fewer lines repeat by chance
UNKNOWN_LANGUAGE = "un"
_LANGUAGE_MESSAGES, _LANGUAGE_CHARACTERS = 4, 500  # what a language is judged by

_NON_PRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ue000-\uf8ff\ufffd-\uffff\U000f0000-\U0010ffff]+")
_VISIBLE = re.compile("[^\\s\u00ad\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]")

MessageCheck = Callable[[str, FilterSettings], bool]


def is_error_message(text: str, settings: FilterSettings) -> bool:
    """Whether a service wrote this in place of an answer: a rate limit, a failure, a capacity notice."""
    return settings.error_messages and len(text) <= _MAX_ERROR_CHARACTERS and _ERROR.match(text) is not None


def has_blocked_phrase(text: str, settings: FilterSettings) -> bool:
    """Whether one of the configured phrases occurs, in whatever case."""
    if not settings.blocked_phrases:
        return False
    folded = text.casefold()
    return any(phrase.casefold() in folded for phrase in settings.blocked_phrases)


def has_digit_run(text: str, settings: FilterSettings) -> bool:
    """Whether one digit is repeated more than `max_digit_run` times in a row."""
    longest = settings.max_digit_run
    return longest is not None and any(len(run[0]) > longest for run in _DIGITS.finditer(text))


def has_broken_list(text: str, settings: FilterSettings) -> bool:
    """Whether a numbered list gives two items that follow each other the same number, as in `1. … 1. …`.

    Code blocks are not looked at. Text at the margin between two items ends a list; blank and indented lines do not.
    """
    if not settings.broken_lists or text.count("\n") == 0:
        return False
    last: dict[int, str] = {}
    fence = ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if fence:
            closes = mark is not None and mark[1].startswith(fence) and not line[mark.end() :].strip()
            fence = "" if closes else fence
            continue
        if mark is not None:
            fence = mark[1]
            continue
        item = _ITEM.match(line)
        if item is None:
            if line.strip() and not line[0].isspace():
                last.clear()
            continue
        indent, number = len(item["indent"]), item["number"]
        if last.get(indent) == number:
            return True
        last = {depth: seen for depth, seen in last.items() if depth < indent} | {indent: number}
    return False


def is_plugin_output(text: str, settings: FilterSettings) -> bool:
    """Whether the text is what a plugin was asked and answered, `Used NAME`, `REQUEST`, `RESPONSE`."""
    return settings.plugin_chats and _PLUGIN.match(text) is not None


def is_empty(text: str, settings: FilterSettings) -> bool:
    """Whether nothing of the text can be seen."""
    return settings.empty_answers and _VISIBLE.search(text) is None


def is_non_printable(text: str, settings: FilterSettings) -> bool:
    """Whether more than the allowed share of characters are controls, private, or stand for undecodable bytes."""
    most = settings.max_non_printable
    if most is None:
        return False
    return sum(len(run[0]) for run in _NON_PRINTABLE.finditer(text)) > most * len(text)


def has_repeated_lines(text: str, settings: FilterSettings) -> bool:
    """Whether more than the allowed share of its lines, blank ones aside, stood there before."""
    most = settings.max_repeated_lines
    if most is None or text.count("\n") < _MIN_LINES:
        return False
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    return len(lines) >= _MIN_LINES and len(lines) - len(set(lines)) > most * len(lines)


MESSAGE_CHECKS: dict[DropReason, MessageCheck] = {
    DropReason.EMPTY_ANSWER: is_empty,
    DropReason.ERROR_MESSAGE: is_error_message,
    DropReason.BLOCKED_PHRASE: has_blocked_phrase,
    DropReason.PLUGIN: is_plugin_output,
    DropReason.DIGIT_RUN: has_digit_run,
    DropReason.BROKEN_LIST: has_broken_list,
    DropReason.NON_PRINTABLE: is_non_printable,
    DropReason.REPEATED_LINES: has_repeated_lines,
}


def message_fault(text: str, settings: FilterSettings) -> DropReason | None:
    """The first fault of an answer, in the order of `MESSAGE_CHECKS`; None if there is none."""
    return next((reason for reason, check in MESSAGE_CHECKS.items() if check(text, settings)), None)


def mask_bad_answers(
    conversation: Conversation, settings: FilterSettings
) -> tuple[Conversation, tuple[DropReason, ...]]:
    """Give bad answers weight 0. Also returns the reason of each answer that was masked, in order."""
    faults = [
        message_fault(message.content, settings) if message.role is Role.ASSISTANT and message.weight else None
        for message in conversation.messages
    ]
    if not any(faults):
        return conversation, ()
    messages = tuple(
        replace(message, weight=0.0) if fault else message
        for message, fault in zip(conversation.messages, faults, strict=True)
    )
    return replace(conversation, messages=messages), tuple(fault for fault in faults if fault)


def drop_reason(
    conversation: Conversation, masked: Sequence[DropReason], language: str | None, settings: FilterSettings
) -> DropReason | None:
    """Why a chat is left out as a whole; None if it is kept.

    `masked` are the reasons of its masked answers; `language` is its language code, `un` where it is unknown, None if
    it is kept in any.
    """
    if not any(message.weight for message in conversation.turns if message.role is Role.ASSISTANT):
        return masked[0] if masked else DropReason.NO_ANSWER
    if len(conversation.turns) < settings.min_turns or _num_characters(conversation) < settings.min_characters:
        return DropReason.TOO_SHORT
    if language is None:
        return None
    if settings.keep_languages and language not in settings.keep_languages:
        return DropReason.LANGUAGE
    return DropReason.LANGUAGE if language in settings.skip_languages else None


def _num_characters(conversation: Conversation) -> int:
    return sum(len(message.content) for message in conversation.turns if message.role is Role.ASSISTANT)


def detect_language(conversation: Conversation) -> str:
    """Language code of a chat's text as CLD2 judges it (`en`, `zh`, `zh-Hant`), `un` where it cannot tell."""
    import pycld2  # type: ignore[import-untyped]

    text = "\n".join(message.content[:_LANGUAGE_CHARACTERS] for message in conversation.turns[:_LANGUAGE_MESSAGES])
    try:
        reliable, _, guesses = pycld2.detect(_NON_PRINTABLE.sub("", text), isPlainText=True, bestEffort=True)
    except pycld2.error:
        return UNKNOWN_LANGUAGE
    code: str = guesses[0][1]
    return code if reliable else UNKNOWN_LANGUAGE


def repair_order(messages: Sequence[Message]) -> list[Message]:
    """Leave out answers before the first question, and a question after the last answer."""
    turns = list(messages)
    system = turns[:1] if turns and turns[0].role is Role.SYSTEM else []
    turns = turns[len(system) :]
    while turns and turns[0].role is Role.ASSISTANT:
        turns.pop(0)
    if len(turns) > 1 and turns[-1].role is Role.USER:
        turns.pop()
    return [*system, *turns]
