"""What a reader of the report looks through: questions, answers, and what each judge said of them, as plain JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from ray_apps.evaluate.records import Evaluation, Verdict, judgement
from ray_apps.evaluate.results import JudgeResults, Results

CUT = "length"
TIE = -1
Orders = dict[str, Verdict]
Place = tuple[str, int, int]
"""A question, a choice, and a repetition."""


def exhibits(evaluation: Evaluation, results: Results) -> dict[str, Any]:
    """All that was asked, answered and judged, with models, judges and questions by their numbers in the lists.

    An item is a pair of models on one question, as one judge saw it; or one model, as it was scored. `orders` are the
    verdict where the first of the pair stood first, and the one where the second did.
    """
    questions = evaluation.questions()
    index = _Index(
        {question.question_id: number for number, question in enumerate(questions)},
        {model: number for number, model in enumerate(results.models)},
    )
    items: list[dict[str, Any]] = []
    ratings: list[dict[str, Any]] = []
    for number, judge in enumerate(results.judges):
        found = _Judged(evaluation, judge, results, index)
        items += ({"judge": number, **item} for item in found.items())
        ratings += ({"judge": number, **rating} for rating in found.ratings())
    return {
        "questions": [one.model_dump(include={"question_id", "category", "turns", "references"}) for one in questions],
        "models": list(results.models),
        "judges": [judge.judge for judge in results.judges],
        "answers": _answers(evaluation, index),
        "items": sorted(items, key=lambda item: (item["question"], item["choice"], item["models"], item["judge"])),
        "ratings": ratings,
    }


class _Index:
    """Numbers of questions and models."""

    def __init__(self, questions: Mapping[str, int], models: Mapping[str, int]) -> None:
        self.questions = questions
        self.models = models


def _answers(evaluation: Evaluation, index: _Index) -> list[dict[str, Any]]:
    """By question, model and choice the turns that were answered, and which of them were cut."""
    found: dict[tuple[int, int, int], dict[int, tuple[str, bool]]] = {}
    for one in evaluation.answers():
        if one.question_id in index.questions and one.model in index.models:
            key = (index.questions[one.question_id], index.models[one.model], one.choice)
            found.setdefault(key, {})[one.turn] = (one.text, one.finish_reason == CUT)
    return [
        {"question": question, "model": model, "choice": choice, "turns": dict(sorted(turns.items()))}
        for (question, model, choice), turns in sorted(found.items())
    ]


class _Judged:
    """What one judge said, and where it said nothing."""

    def __init__(self, evaluation: Evaluation, judge: JudgeResults, results: Results, index: _Index) -> None:
        self._index = index
        self._baseline = results.baseline
        self._verdicts = [one for one in evaluation.verdicts(judge.judge) if one.prompt in judge.prompts]
        self._failed = {
            one.about: one.reason for one in evaluation.failures() if one.step == "judge" and one.model == judge.judge
        }
        self._places = self._all_places(evaluation)

    def _all_places(self, evaluation: Evaluation) -> list[Place]:
        choices = {(question_id, choice) for _, question_id, choice in evaluation.conversations()}
        repeats = range(1 + max((one.repeat for one in self._verdicts), default=0))
        return [(question_id, choice, repeat) for question_id, choice in choices for repeat in repeats]

    def items(self) -> Iterator[dict[str, Any]]:
        """Pairs, then single answers; those that were neither judged nor failed are none."""
        orders: dict[tuple[Place, tuple[str, ...]], Orders] = {}
        for one in self._verdicts:
            place = (one.question_id, one.choice, one.repeat)
            orders.setdefault((place, tuple(sorted(one.models))), {})[one.first] = one
        for place in self._places:
            for pair in combinations(self._index.models, 2):
                found = orders.get((place, pair), {})
                reasons = {first: self._failed.get(judgement(*place[:2], pair, first, place[2])) for first in pair}
                if found or any(reasons.values()):
                    yield self._pair(place, pair, found, reasons)
            for model in self._index.models:
                reason = self._failed.get(judgement(*place[:2], (model,), model, place[2]))
                if (place, (model,)) in orders or reason:
                    yield self._item(place, (model,), "scored" if (place, (model,)) in orders else "none", reason)

    def _item(self, place: Place, models: Sequence[str], outcome: str, reason: str | None = None) -> dict[str, Any]:
        return {
            "question": self._index.questions[place[0]],
            "choice": place[1],
            "repeat": place[2],
            "models": [self._index.models[model] for model in models],
            "outcome": outcome,
            "reason": reason,
        }

    def _pair(
        self, place: Place, pair: tuple[str, str], found: Orders, reasons: Mapping[str, str | None]
    ) -> dict[str, Any]:
        a, b = pair if self._baseline != pair[0] else pair[::-1]
        orders: list[dict[str, Any]] = []
        for first in (a, b):
            verdict = found.get(first)
            text = explained(verdict.text) if verdict else None
            orders.append({"winner": self._winner(verdict), "text": text, "reason": reasons[first]})
        outcome = _outcome([order["winner"] for order in orders], self._index.models[a])
        return {**self._item(place, (a, b), outcome), "orders": orders}

    def _winner(self, verdict: Verdict | None) -> int | None:
        if verdict is None or verdict.outcome is None:
            return None
        return TIE if verdict.outcome == "tie" else self._index.models[verdict.models[verdict.outcome == "b"]]

    def ratings(self) -> Iterator[dict[str, Any]]:
        """Scores of single answers."""
        for one in self._verdicts:
            if one.kind == "single" and one.question_id in self._index.questions:
                place = (one.question_id, one.choice, one.repeat)
                yield {**self._item(place, one.models, "scored"), "score": one.score, "text": explained(one.text)}


def _outcome(winners: Sequence[int | None], first: int) -> str:
    """Of the verdicts in both orders, in terms of the pair's first."""
    if None in winners:
        return "none"
    if winners[0] != winners[1]:
        return "disagree"
    return "tied" if winners[0] == TIE else "won" if winners[0] == first else "lost"


def explained(text: str) -> str:
    """A judge's reasons: those of the JSON object if it wrote one, else all of it."""
    bare = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    try:
        content = json.loads(bare)
    except ValueError:
        return text
    reasons = content.get("explanation") if isinstance(content, dict) else None
    return reasons if isinstance(reasons, str) and reasons.strip() else text
