"""Evaluation questions that got into the chats: a model must not be trained on what it is judged by.

A chat is contaminated if it shares a run of `ngram_words` words with a question (as in Brown et al. 2020, appendix C),
or holds the whole of a question that is shorter.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.conversation import Conversation
from data_prep.errors import DataError
from data_prep.words import words

_FIELDS = ("turns", "text", "question", "prompt")
_MIN_WORDS = 4  # what is shorter, "Hello", is no mark of an evaluation


class EvaluationQuestions:
    """The questions of some evaluations, ready to be looked for."""

    def __init__(self, questions: Sequence[str], ngram_words: int) -> None:
        self._runs: defaultdict[int, dict[tuple[str, ...], str]] = defaultdict(dict)  # by their number of words
        for question in questions:
            split = tuple(words(question))
            size = min(ngram_words, len(split))
            if size >= min(_MIN_WORDS, ngram_words):
                for run in _runs(split, size):
                    self._runs[size].setdefault(run, question)

    def found_in(self, conversation: Conversation) -> str | None:
        """The first question that `conversation` contains; None if there is none."""
        for message in conversation.turns:
            split = tuple(words(message.content))
            for size, runs in self._runs.items():
                if not runs.keys().isdisjoint(_runs(split, size)):
                    return next(runs[run] for run in _runs(split, size) if run in runs)
        return None


def _runs(split: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    return zip(*(split[start:] for start in range(size)), strict=False)


def load_questions(paths: Sequence[str]) -> list[str]:
    """The questions of files: JSON lines with one of the fields `turns`, `text`, `question`, `prompt`, or plain text.

    Raises:
        DataError: naming the file, and the line that is not valid.
    """
    return [question for path in paths for question in _load(Path(path))]


def _load(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    filled = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if path.suffix not in (".json", ".jsonl"):
        return [line for _, line in filled]
    return [question for number, line in filled for question in _questions(line, f"{path}: line {number}")]


def _questions(line: str, where: str) -> list[str]:
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None
    value = next((record[name] for name in _FIELDS if name in record), None) if isinstance(record, dict) else None
    questions = [value] if isinstance(value, str) else value
    if not isinstance(questions, list) or not all(isinstance(question, str) for question in questions):
        raise DataError(f"{where}: expected an object with a text, or a list of texts, in one of {', '.join(_FIELDS)}")
    return questions
