"""Evaluations as tests need them, made by hand."""

from pathlib import Path
from typing import Any

from ray_apps.evaluate.questions import Question
from ray_apps.evaluate.records import Answer, Evaluation, Verdict


def answered(directory: Path, *models: str, num_questions: int = 4) -> Evaluation:
    """An evaluation in which `models` have answered, each longer than the one before."""
    evaluation = Evaluation(directory)
    questions = [
        Question(question_id=f"q{number}", category=("maths", "writing")[number % 2], turns=(f"question {number}",))
        for number in range(num_questions)
    ]
    evaluation.keep_questions(questions)
    for place, model in enumerate(models):
        for question in questions:
            evaluation.add(
                Answer(
                    question_id=question.question_id,
                    category=question.category,
                    model=model,
                    text=f"{model} answers" + "!" * place,
                    finish_reason="stop",
                    temperature=0.0,
                    max_tokens=9,
                    asked="x",
                )
            )
    return evaluation


def verdict(number: int, **fields: Any) -> Verdict:
    """A verdict on question `number`."""
    values = {"judge": "judge", "prompt": "p", "judged": "x", "text": "because", "prompt_tokens": 100}
    return Verdict(
        question_id=f"q{number}",
        category=("maths", "writing")[number % 2],
        **{"completion_tokens": 10, **values, **fields},
    )


def pair(number: int, outcomes: tuple[Any, Any], models: tuple[str, str] = ("a", "b"), **fields: Any) -> list[Verdict]:
    """Two verdicts, with the one and the other first."""
    return [
        verdict(number, kind="pair", models=models, first=first, outcome=outcome, **fields)
        for first, outcome in zip(models, outcomes, strict=True)
        if outcome is not None
    ]


def single(number: int, model: str, score: int, **fields: Any) -> Verdict:
    """A score."""
    return verdict(number, kind="single", models=(model,), first=model, score=score, **fields)
