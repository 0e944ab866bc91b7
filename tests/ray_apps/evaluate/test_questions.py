"""Question files of ours and of others."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import EvalError
from ray_apps.evaluate.questions import load_questions


def write(path: Path, *lines: Any) -> str:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return str(path)


def test_fastchat_s_form_is_read(tmp_path: Path) -> None:
    (only,) = load_questions(
        write(tmp_path / "question.jsonl", {"question_id": 1, "text": "Why?", "category": "generic"})
    )
    assert (only.question_id, only.category, only.turns, only.references) == ("1", "generic", ("Why?",), ())


def test_mt_bench_s_form_is_read_and_its_reference_answers_too(tmp_path: Path) -> None:
    first = {"question_id": 111, "category": "math", "turns": ["1+1?", "and 1?"], "reference": ["2", "3"]}
    second = {"question_id": 81, "category": "writing", "turns": ["a", "b"]}
    name = write(tmp_path / "question.jsonl", first, "", second)
    assert [question.references for question in load_questions(name)] == [("2", "3"), ()]
    answers = {"question_id": 111, "answer_id": "x", "choices": [{"index": 0, "turns": ["two", "three"]}]}
    write(tmp_path / "gpt-4.jsonl", answers)
    given = load_questions(name, references=tmp_path / "gpt-4.jsonl")
    assert [question.references for question in given] == [("two", "three"), ()]


def test_of_each_category_the_first(tmp_path: Path) -> None:
    lines = [{"question_id": n, "category": "ab"[n % 2], "text": "x"} for n in range(7)]
    name = write(tmp_path / "q.jsonl", *lines)
    assert [question.question_id for question in load_questions(name, per_category=2)] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{"], r"q\.jsonl: line 1: it is no JSON"),
        ([{"question_id": 1, "category": "a"}], r"line 1: turns: Field required"),
        ([{"question_id": 1, "text": "x"}], r"line 1: category: Field required"),
        ([{"category": "a", "text": "x"}], r"line 1: question_id: Field required"),
        ([{"question_id": 1, "category": "a", "turns": []}], r"line 1: turns: Tuple should have at least 1 item"),
        ([{"question_id": 1, "category": "a", "turns": ["x", " "]}], r"line 1: turns: one is empty"),
        ([{"question_id": 1, "category": "a", "text": "x", "reference": ["1", "2"]}], r"references: 2 for 1 turns"),
        (["[1]"], r"line 1: expected an object"),
        ([{"question_id": 1, "category": "a", "text": "x"}, {"question_id": "1", "category": "b", "text": "y"}],
         r"q\.jsonl: question_id '1' is there twice"),
        ([""], r"q\.jsonl: it holds no questions"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, lines: list[Any], words: str) -> None:
    with pytest.raises(EvalError, match=words):
        load_questions(write(tmp_path / "q.jsonl", *lines))


def test_an_absent_file_is_told_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"questions: .*none\.jsonl: No such file.*valid: .*or a file of JSON lines"):
        load_questions(str(tmp_path / "none.jsonl"))
