"""Chats with an evaluation question are found, whatever its case and marks; others are not."""

from pathlib import Path

import pytest

from data_prep.contamination import EvaluationQuestions, load_questions
from data_prep.conversation import Conversation, Message, Role
from data_prep.errors import DataError

LONG = "How can I improve my time management skills when I work from home?"
SHORT = "Who was Genghis Khan really?"


def found(text: str, *questions: str) -> str | None:
    chat = Conversation("x", (Message(Role.USER, text), Message(Role.ASSISTANT, "Well.")))
    return EvaluationQuestions(questions or (LONG, SHORT), 8).found_in(chat)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        (LONG, LONG),
        ("Please tell me: how can i improve my TIME management skills, thanks", LONG),
        ("improve my time management skills when I work on Mondays", LONG),
        ("How can I improve my cooking skills when I work from home?", None),
        ("who was genghis khan, really", SHORT),
        ("Who was Genghis Khan?", None),
        ("", None),
    ],
)
def test_a_shared_run_of_words_or_a_short_question_whole_is_found(text: str, question: str | None) -> None:
    assert found(text) == question


def test_chinese_counts_by_character() -> None:
    assert found("请问如何提高我的时间管理能力？谢谢", "如何提高我的时间管理能力?") == "如何提高我的时间管理能力?"
    assert found("如何提高我的写作能力？", "如何提高我的时间管理能力?") is None


def test_a_question_of_a_few_words_is_no_mark() -> None:
    assert found("Hello there!", "Hello there!") is None


def test_questions_are_read_from_every_form(tmp_path: Path) -> None:
    (tmp_path / "fastchat.jsonl").write_text('{"question_id": 1, "text": "a", "category": "generic"}\n\n')
    (tmp_path / "mt.jsonl").write_text('{"question_id": 81, "turns": ["b", "c"]}\n')
    (tmp_path / "plain.txt").write_text("d\n\ne\n")
    names = ("fastchat.jsonl", "mt.jsonl", "plain.txt")
    assert load_questions([str(tmp_path / name) for name in names]) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ('{"id": 1}', "line 2: expected an object with a text"),
        ("[1]", "line 2: expected"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "questions.jsonl").write_text(f'{{"text": "a"}}\n{line}\n')
    with pytest.raises(DataError, match=message):
        load_questions([str(tmp_path / "questions.jsonl")])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: No such file"):
        load_questions([str(tmp_path / "nowhere.jsonl")])
