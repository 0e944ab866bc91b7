"""Answers to verdicts: both orders, strict reading, what is asked again, and what is reported."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import EvalError
from ray_apps.evaluate.answers import Summary
from ray_apps.evaluate.client import Patience, Target
from ray_apps.evaluate.judge import Judging, judge_answers
from ray_apps.evaluate.questions import Question
from ray_apps.evaluate.records import Answer, Evaluation
from tests.ray_apps.evaluate.scripted import Endpoint, Raw, last, refusal, serving

HASTY = Patience(tries=2, timeout_s=5, first_pause_s=0.01)
QUESTIONS = [
    Question(question_id="q0", category="generic", turns=("Why?",)),
    Question(question_id="q1", category="maths", turns=("1+1?", "and 1?"), references=("2", "3")),
]


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    """Two models have answered; `good` says so."""
    made = Evaluation(tmp_path)
    made.keep_questions(QUESTIONS)
    for model in ("bad", "good"):
        for question in QUESTIONS:
            for turn in range(len(question.turns)):
                made.add(
                    Answer(
                        question_id=question.question_id,
                        category=question.category,
                        model=model,
                        turn=turn,
                        text=f"the {model} answer",
                        finish_reason="stop",
                        temperature=0.0,
                        max_tokens=9,
                        asked="x",
                    )
                )
    return made


def judge(evaluation: Evaluation, endpoint: Endpoint, name: str = "judge", **fields: Any) -> Summary:
    judging = Judging(**{"patience": HASTY, **fields})
    return asyncio.run(judge_answers(evaluation, name, Target(endpoint.url, "j"), judging))


def fair(body: dict[str, Any]) -> str:
    """Prefers `good` wherever it stands; rates it 9 and others 3."""
    text = last(body)
    if "with A" not in body["messages"][1]["content"]:
        return json.dumps({"explanation": "…", "score": 9 if "good" in text else 3})
    first = body["messages"][1]["content"].index("the good answer") < body["messages"][1]["content"].index("the bad")
    return json.dumps({"explanation": "…", "verdict": "A" if first else "B"})


def test_both_orders_are_judged_in_terms_of_the_models(evaluation: Evaluation) -> None:
    with serving(fair) as endpoint:
        summary = judge(evaluation, endpoint)
    assert (summary.num_done, summary.failed) == (8, ())
    pairs = [one for one in evaluation.verdicts() if one.kind == "pair"]
    assert {(one.question_id, one.models, one.first, one.outcome) for one in pairs} == {
        (question, ("bad", "good"), first, "b") for question in ("q0", "q1") for first in ("bad", "good")
    }
    singles = {(one.question_id, one.models[0]): one.score for one in evaluation.verdicts() if one.kind == "single"}
    assert singles == {("q0", "bad"): 3, ("q0", "good"): 9, ("q1", "bad"): 3, ("q1", "good"): 9}
    assert all(one.prompt_tokens and one.text for one in pairs)


def test_the_judge_sees_turns_and_references_and_is_held_to_a_schema(evaluation: Evaluation) -> None:
    with serving(fair) as endpoint:
        judge(evaluation, endpoint, kinds=("pair",))
    told = next(last(body) for body in endpoint.asked if "1+1?" in last(body))
    assert "Turn 1: 2" in told and "Turn 2: 3" in told  # noqa: PT018
    assert told.index("User: 1+1?") < told.index("User: and 1?")
    assert "[reference]" not in next(last(body) for body in endpoint.asked if "Why?" in last(body))
    assert "{" not in told.replace('"', "")
    schema = endpoint.asked[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["verdict"]["enum"] == ["A", "B", "tie"]
    assert endpoint.asked[0]["temperature"] == 0


def test_the_prompts_are_kept_with_the_verdicts(evaluation: Evaluation) -> None:
    with serving(fair) as endpoint:
        judge(evaluation, endpoint)
    for verdict in evaluation.verdicts():
        assert "version: 1" in (evaluation.directory / "prompts" / f"{verdict.prompt}.txt").read_text()


def test_what_is_judged_is_not_judged_again(evaluation: Evaluation) -> None:
    with serving(fair) as endpoint:
        judge(evaluation, endpoint, kinds=("pair",), baseline="good")
        assert judge(evaluation, endpoint).num_kept == 4
        assert judge(evaluation, endpoint, num_repeats=2).num_done == 8
    assert len(endpoint.asked) == 16


@pytest.mark.parametrize("known", ["schema", "loose", "none"])
def test_an_endpoint_is_asked_in_the_form_that_it_knows(evaluation: Evaluation, known: str) -> None:
    def act(body: dict[str, Any]) -> Raw | str:
        if "response_format" in body:
            has_length = "maxLength" in str(body["response_format"])
            if known == "none" or (known == "loose" and has_length):
                return refusal(400, "response_format: not supported")
            return fair(body)
        return "I like it.\n\n**Verdict: tie**"

    with serving(act) as endpoint:
        assert judge(evaluation, endpoint, kinds=("pair",), concurrency=1).failed == ()
    refused = {"schema": 0, "loose": 1, "none": 2}[known]
    assert len(endpoint.asked) == 4 + refused
    assert {one.outcome for one in evaluation.verdicts()} == ({"tie"} if known == "none" else {"b"})


Say = Callable[[int], str]


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("text", "A is better."),
        ("text", "Verdict: A\nor rather\nVerdict: B"),
        ("text", "Verdict: A\nand that is that"),
        ("text", "Verdict: C"),
        ("text", "Verdict: A or B"),
        ("text", ""),
        ("json", "A"),
        ("json", '{"verdict": "C"}'),
        ("json", '{"verdict": ["A"]}'),
        ("json", '{"explanation": "A"}'),
        ("json", '{"verdict": "A"'),
        ("json", "[]"),
    ],
)
def test_what_is_not_in_form_is_asked_again_and_then_reported(evaluation: Evaluation, form: str, said: str) -> None:
    with serving(lambda body: said) as endpoint:
        summary = judge(evaluation, endpoint, kinds=("pair",), form=form, tries=2)
    assert len(summary.failed) == 4
    assert "no verdict in form after 2 tries" in summary.failed[0]
    assert evaluation.verdicts() == []
    assert [(one.step, one.in_form, one.prompt_tokens) for one in evaluation.failures()] == [("judge", False, 20)] * 4
    assert len(endpoint.asked) == 8
    again = next(body for body in endpoint.asked if len(body["messages"]) == 4)
    assert "I could not read a verdict" in last(again)


@pytest.mark.parametrize("said", ["Verdict: A", "…\n  **Verdict:** [A].", "verdict: a", "> Verdict: A\nVerdict: A"])
def test_what_is_in_form_is_read(evaluation: Evaluation, said: str) -> None:
    with serving(lambda body: said) as endpoint:
        judge(evaluation, endpoint, kinds=("pair",), form="text")
    assert {(one.first, one.outcome) for one in evaluation.verdicts()} == {("bad", "a"), ("good", "b")}


@pytest.mark.parametrize(("said", "score"), [('{"score": 10}', 10), ('```json\n{"score": 1}\n```', 1)])
def test_scores_are_read(evaluation: Evaluation, said: str, score: int) -> None:
    with serving(lambda body: said) as endpoint:
        judge(evaluation, endpoint, kinds=("single",))
    assert {one.score for one in evaluation.verdicts()} == {score}


@pytest.mark.parametrize(
    "said", ['{"score": 0}', '{"score": 11}', '{"score": 7.5}', '{"score": true}', '{"score": "x"}']
)
def test_scores_out_of_form_are_not(evaluation: Evaluation, said: str) -> None:
    with serving(lambda body: said) as endpoint:
        assert len(judge(evaluation, endpoint, kinds=("single",), tries=1).failed) == 4


def test_a_failed_call_is_no_verdict(evaluation: Evaluation) -> None:
    with serving(lambda body: refusal(500, "down")) as endpoint:
        summary = judge(evaluation, endpoint, kinds=("pair",))
    assert len(summary.failed) == 4
    assert evaluation.verdicts() == []
    assert all(one.in_form for one in evaluation.failures())


def test_a_judge_that_refuses_every_form_is_reported(evaluation: Evaluation) -> None:
    with serving(lambda body: refusal(400, "too long")) as endpoint:
        summary = judge(evaluation, endpoint, kinds=("single",), concurrency=1)
    assert len(summary.failed) == 4
    assert "refused (400): too long" in summary.failed[0]


def test_answers_that_changed_are_not_judged_under_the_old_name(evaluation: Evaluation) -> None:
    with serving(fair) as endpoint:
        judge(evaluation, endpoint)
        path = evaluation.directory / "answers" / "good.jsonl"
        path.write_text(path.read_text().replace("the good answer", "the good answer, revised"))
        with pytest.raises(EvalError, match="other answers were judged here"):
            judge(evaluation, endpoint)


def test_too_few_models_and_unknown_baselines_are_told(evaluation: Evaluation, tmp_path: Path) -> None:
    with serving(fair) as endpoint:
        with pytest.raises(EvalError, match="baseline: 'gpt' has not answered; valid: bad, good"):
            judge(evaluation, endpoint, baseline="gpt")
        (evaluation.directory / "answers" / "bad.jsonl").unlink()
        with pytest.raises(EvalError, match="a pair needs two models; good alone has answered"):
            judge(evaluation, endpoint)
        with pytest.raises(EvalError, match="nothing was asked here yet"):
            judge(Evaluation(tmp_path / "empty"), endpoint)
