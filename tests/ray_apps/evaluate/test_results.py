"""Verdicts to figures: how they are put together, and what is known of the judge."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import EvalError
from ray_apps.evaluate.records import Evaluation, Failure
from ray_apps.evaluate.results import Prices, results_of
from ray_apps.evaluate.standings import print_json, print_table, standings
from ray_apps.votes import Vote, VoteFile
from tests.ray_apps.evaluate.evaluations import answered, pair, single


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    """b wins q0, they tie on q1 and, as the orders disagree, on q2; of q3 one order is missing."""
    made = answered(tmp_path / "eval", "a", "b")
    for number, outcomes in enumerate([("b", "b"), ("tie", "tie"), ("a", "b"), ("a", None)]):
        for one in pair(number, outcomes):
            made.add(one)
    for number, (of_a, of_b) in enumerate([(4, 8), (6, 6), (5, 10)]):
        made.add(single(number, "a", of_a))
        made.add(single(number, "b", of_b))
    return made


def test_pairs_and_scores_against_a_baseline(evaluation: Evaluation) -> None:
    results = results_of(evaluation, baseline="a")
    (judge,) = results.judges
    everything, *by_category = judge.pairs
    assert (everything.a, everything.b) == ("b", "a")
    assert (everything.wins, everything.ties, everything.losses, everything.num_left_out) == (1, 2, 0, 1)
    assert [one.category for one in by_category] == ["maths", "writing"]
    (relative,) = judge.relative
    assert (relative.total, relative.baseline_total, relative.ratio.value) == (24, 15, 1.6)
    assert [rating.model for rating in judge.ratings] == ["b", "a"]
    assert results.models == ("a", "b")
    assert results.num_questions == 4


def test_the_judge_s_conduct(evaluation: Evaluation) -> None:
    for repeat, outcome in [(1, "b"), (2, "a")]:
        for one in pair(0, (outcome, "b"), repeat=repeat, attempts=2):
            evaluation.add(one)
    failed: dict[str, Any] = {"step": "judge", "model": "judge", "prompt_tokens": 50}
    evaluation.add(
        Failure(about="question q3, choice 0, a against b, b first, repeat 0", reason="?", in_form=False, **failed)
    )
    evaluation.add(
        Failure(about="question q0, choice 0, a against b, a first, repeat 0", reason="later made good", **failed)
    )
    evaluation.add(Failure(about="question q9, choice 0, a, repeat 0", reason="down", **failed))
    conduct = results_of(evaluation, prices=Prices(2.0, 10.0)).judges[0].conduct
    assert (conduct.num_verdicts, conduct.num_again, conduct.num_out_of_form, conduct.num_failed) == (17, 4, 1, 1)
    assert (conduct.prompt_tokens, conduct.completion_tokens) == (17 * 100 + 150, 170)
    assert conduct.cost == pytest.approx((1850 * 2 + 170 * 10) / 1e6)
    assert (conduct.num_repeated, conduct.self_agreement) == (4, 3 / 4)
    assert conduct.position is not None
    assert conduct.position.num_comparisons == 5
    assert conduct.length is not None


def test_verdicts_by_an_older_prompt_are_left_out(evaluation: Evaluation) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    for one in pair(0, ("a", "a"), prompt="newer", time=later):
        evaluation.add(one)
    (judge,) = results_of(evaluation).judges
    assert judge.num_of_older_prompts == 7
    assert [(one.a, one.wins) for one in judge.pairs if one.category is None] == [("a", 1)]


def test_judges_are_held_against_each_other_and_against_people(evaluation: Evaluation, tmp_path: Path) -> None:
    for number, outcome in enumerate("bab"):
        for one in pair(number, (outcome, outcome), judge="other"):
            evaluation.add(one)
    labels = tmp_path / "human.jsonl"
    people = [("q0", "b", "a", "model_a", "ann"), ("q1", "a", "b", "tie", "ann"), ("q2", "a", "b", "model_b", "bob")]
    fields = ("question_id", "model_a", "model_b", "winner", "judge")
    labels.write_text("\n".join(json.dumps(dict(zip(fields, one, strict=True))) for one in people))
    found = {(one, other): held for one, other, held in results_of(evaluation, labels=labels).agreements}
    assert found["judge", "other"].num_items == 3
    assert found["judge", "other"].equal.value == pytest.approx(1 / 3)
    assert found["ann", "judge"].equal.value == 1
    assert found["bob", "other"].equal.value == 1
    assert ("ann", "bob") not in found


@pytest.mark.parametrize("line", [{}, {"question_id": 1, "model_a": "a", "model_b": "b", "winner": "c"}, [1]])
def test_labels_that_are_none_are_named(evaluation: Evaluation, tmp_path: Path, line: Any) -> None:
    (tmp_path / "human.jsonl").write_text(json.dumps(line))
    with pytest.raises(EvalError, match=r"human\.jsonl: line 1: expected question_id, model_a, model_b and winner"):
        results_of(evaluation, labels=tmp_path / "human.jsonl")


def test_what_is_not_there_is_told(tmp_path: Path, evaluation: Evaluation) -> None:
    with pytest.raises(EvalError, match="nothing was judged yet"):
        results_of(answered(tmp_path / "other", "a"))
    with pytest.raises(EvalError, match="baseline: 'c' has not answered; valid: a, b"):
        results_of(evaluation, baseline="c")
    with pytest.raises(EvalError, match="there is no such file"):
        results_of(evaluation, labels=tmp_path / "none")


def test_a_record_that_is_none_is_named(evaluation: Evaluation) -> None:
    path = evaluation.directory / "verdicts" / "judge.jsonl"
    path.write_text(path.read_text() + '{"judge": "judge"}\n')
    with pytest.raises(EvalError, match=r"judge\.jsonl: line 14: question_id: Field required"):
        results_of(evaluation)


def test_ratings_by_verdicts_and_votes(
    evaluation: Evaluation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    votes = VoteFile(tmp_path / "votes.jsonl")
    for verdict in ("a", "a", "tie", "both_bad"):
        votes.add(Vote(kind="battle", models=("b", "c"), verdict=verdict, num_turns=1))
    votes.add(Vote(kind="thumb", models=("b",), verdict="up", num_turns=1))
    both = standings(evaluation, [votes.path])
    assert both.num_battles == 7
    assert [rating.model for rating in both.bradley_terry] == ["b", "c", "a"] or both.bradley_terry[0].model == "b"
    assert both.groups == (("a", "b", "c"),)
    print_table(both)
    shown = capsys.readouterr().out
    assert "Bradley-Terry" in shown
    print_json(standings(None, [votes.path]))
    assert {one["model"] for one in json.loads(capsys.readouterr().out)["elo"]} == {"b", "c"}
    with pytest.raises(EvalError, match="no comparison of two models"):
        standings(evaluation, [], judge="nobody")
    with pytest.raises(EvalError, match=r"none\.jsonl: there is no such file"):
        standings(None, [tmp_path / "none.jsonl"])
