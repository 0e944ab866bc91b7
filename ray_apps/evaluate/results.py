"""What the verdicts of an evaluation come to, judge by judge, and what is known of each judge."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import EvalError
from ray_apps.evaluate.agreement import Agreement, agreement
from ray_apps.evaluate.bias import LengthBias, PositionBias, length_bias, position_bias
from ray_apps.evaluate.bootstrap import BOOTSTRAP, Bootstrap
from ray_apps.evaluate.figures import (
    Comparison,
    PairFigures,
    RelativeScore,
    Score,
    ScoreFigures,
    battles,
    pair_figures,
    relative_score,
    score_figures,
)
from ray_apps.evaluate.ratings import Rating, bradley_terry, win_rates
from ray_apps.evaluate.records import Evaluation, Failure, Outcome, Verdict
from ray_apps.lines import read_lines

Conversations = Mapping[tuple[str, str, int], tuple[str, ...]]


@dataclass(frozen=True)
class Prices:
    """Dollars for a million tokens that a judge reads, and writes."""

    read: float = 0.0
    written: float = 0.0


@dataclass(frozen=True)
class Conduct:
    """How a judge did its work.

    `num_again`: verdicts that were asked for more than once until they were in form; `num_out_of_form`: judgements that
    never were; `num_failed`: calls that came to nothing. What was made good later counts no longer. `self_agreement`:
    of judgements that were repeated, the share that say what the first of their kind said; None without repeats.
    `cost`: dollars; None without prices.
    """

    num_verdicts: int
    num_again: int
    num_out_of_form: int
    num_failed: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    self_agreement: float | None
    num_repeated: int
    position: PositionBias | None
    length: LengthBias | None


@dataclass(frozen=True)
class JudgeResults:
    """What one judge's verdicts come to. `prompts`: those of the verdicts; older ones are left out, and counted."""

    judge: str
    prompts: tuple[str, ...]
    num_of_older_prompts: int
    comparisons: tuple[Comparison, ...]
    pairs: tuple[PairFigures, ...]
    ratings: tuple[Rating, ...]
    win_rates: Mapping[tuple[str, str], tuple[float, int]]
    scores: tuple[ScoreFigures, ...]
    relative: tuple[RelativeScore, ...]
    conduct: Conduct


@dataclass(frozen=True)
class Results:
    """Of all judges, and how far they agree with each other and with people."""

    models: tuple[str, ...]
    num_questions: int
    baseline: str | None
    judges: tuple[JudgeResults, ...]
    agreements: tuple[tuple[str, str, Agreement], ...]


def results_of(
    evaluation: Evaluation,
    *,
    baseline: str | None = None,
    prices: Prices | None = None,
    labels: Path | None = None,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> Results:
    """The figures of an evaluation. `labels`: verdicts of people, in the form that `read_labels` reads.

    Raises:
        EvalError: nothing was judged, or the baseline has not answered.
    """
    answered = evaluation.conversations()
    models = sorted({model for model, _, _ in answered})
    if baseline is not None and baseline not in models:
        raise EvalError(f"baseline: {baseline!r} has not answered; valid: {', '.join(models) or 'none'}")
    by_judge: dict[str, list[Verdict]] = {}
    for verdict in evaluation.verdicts():
        by_judge.setdefault(verdict.judge, []).append(verdict)
    if not by_judge:
        raise EvalError(f"{evaluation.directory}: nothing was judged yet; see `vicuna eval judge`")
    failures = evaluation.failures()
    judges = tuple(
        _of_judge(judge, found, failures, answered, baseline, prices, bootstrap)
        for judge, found in sorted(by_judge.items())
    )
    said = {one.judge: said_by(one.comparisons) for one in judges}
    if labels is not None:
        said |= read_labels(labels)
    return Results(tuple(models), len(evaluation.questions()), baseline, judges, _agreements(said, bootstrap))


def _of_judge(
    judge: str,
    verdicts: Sequence[Verdict],
    failures: Sequence[Failure],
    answered: Conversations,
    baseline: str | None,
    prices: Prices | None,
    bootstrap: Bootstrap,
) -> JudgeResults:
    newest = {verdict.kind: verdict.prompt for verdict in sorted(verdicts, key=lambda one: one.time)}
    kept = [verdict for verdict in verdicts if verdict.prompt == newest[verdict.kind]]
    compared = compare([verdict for verdict in kept if verdict.kind == "pair"], answered)
    scores = [Score(one.question_id, one.category, one.models[0], one.score) for one in kept if one.score is not None]
    fought = [*battles(compared)]
    return JudgeResults(
        judge=judge,
        prompts=tuple(sorted(newest.values())),
        num_of_older_prompts=len(verdicts) - len(kept),
        comparisons=tuple(compared),
        pairs=tuple(pair_figures(compared, baseline, bootstrap)),
        ratings=tuple(bradley_terry(fought, bootstrap=bootstrap)),
        win_rates=win_rates(fought),
        scores=tuple(score_figures(scores, bootstrap)),
        relative=tuple(_relative(scores, baseline, bootstrap)),
        conduct=_conduct(judge, kept, failures, compared, prices, bootstrap),
    )


def compare(verdicts: Iterable[Verdict], answered: Conversations) -> list[Comparison]:
    """Two verdicts on the same answers, one in each order, as one comparison; lengths are in characters."""
    orders: dict[tuple[str, tuple[str, ...], int, int], dict[str, Verdict]] = {}
    for verdict in verdicts:
        key = (verdict.question_id, verdict.models, verdict.choice, verdict.repeat)
        orders.setdefault(key, {})[verdict.first] = verdict
    found = []
    for (question_id, (a, b), choice, _), by_first in orders.items():
        either = next(iter(by_first.values()))
        lengths = [sum(map(len, answered.get((model, question_id, choice), ()))) for model in (a, b)]
        a_first, b_first = (by_first[model].outcome if model in by_first else None for model in (a, b))
        found.append(Comparison(question_id, either.category, a, b, a_first, b_first, (lengths[0], lengths[1])))
    return found


def _relative(scores: Sequence[Score], baseline: str | None, bootstrap: Bootstrap) -> list[RelativeScore]:
    if baseline is None or not any(one.model == baseline for one in scores):
        return []
    others = sorted({one.model for one in scores} - {baseline})
    return [relative_score(scores, model, baseline, bootstrap) for model in others]


def _conduct(
    judge: str,
    verdicts: Sequence[Verdict],
    failures: Sequence[Failure],
    compared: Sequence[Comparison],
    prices: Prices | None,
    bootstrap: Bootstrap,
) -> Conduct:
    spent = [one for one in failures if one.step == "judge" and one.model == judge]
    done = {one.about for one in verdicts}
    still = {one.about: one for one in spent if one.about not in done}
    read = sum(one.prompt_tokens for one in verdicts) + sum(one.prompt_tokens for one in spent)
    written = sum(one.completion_tokens for one in verdicts) + sum(one.completion_tokens for one in spent)
    is_judged = any(one.a_first is not None and one.b_first is not None for one in compared)
    repeated, same = _repeats(verdicts)
    return Conduct(
        num_verdicts=len(verdicts),
        num_again=sum(one.attempts > 1 for one in verdicts),
        num_out_of_form=sum(not one.in_form for one in still.values()),
        num_failed=sum(one.in_form for one in still.values()),
        prompt_tokens=read,
        completion_tokens=written,
        cost=None if prices is None else (read * prices.read + written * prices.written) / 1e6,
        self_agreement=same / repeated if repeated else None,
        num_repeated=repeated,
        position=position_bias(compared, bootstrap) if is_judged else None,
        length=length_bias(compared, bootstrap) if is_judged else None,
    )


def _repeats(verdicts: Iterable[Verdict]) -> tuple[int, int]:
    """How many were repetitions, and how many of these said what the first had said."""
    said: dict[tuple[object, ...], list[tuple[int, object]]] = {}
    for one in verdicts:
        key = (one.kind, one.question_id, one.models, one.choice, one.first)
        said.setdefault(key, []).append((one.repeat, one.outcome or one.score))
    again = [(values[0][1], value) for found in said.values() if (values := sorted(found)) for _, value in values[1:]]
    return len(again), sum(first == value for first, value in again)


Item = tuple[str, str, str]


def said_by(comparisons: Iterable[Comparison]) -> dict[Item, str]:
    """By question and models what most comparisons say; `tie` where as many say one thing as the other."""
    counted: dict[Item, Counter[Outcome]] = {}
    for one in comparisons:
        if one.outcome is not None:
            counted.setdefault((one.question_id, one.a, one.b), Counter())[one.outcome] += 1
    return {
        item: "a" if counts["a"] > counts["b"] else "b" if counts["b"] > counts["a"] else "tie"
        for item, counts in counted.items()
    }


def read_labels(path: Path) -> dict[str, dict[Item, str]]:
    """Verdicts of people, by who gave them, from JSON lines with question_id, model_a, model_b, winner, and judge.

    That is the form of MT-bench's human judgements, whose `winner` is model_a, model_b or tie; ours may be a, b, tie.

    Raises:
        EvalError: the file cannot be read, or a line lacks something; naming it.
    """
    if not path.exists():
        raise EvalError(f"labels: {path}: there is no such file")
    found: dict[str, dict[Item, str]] = {}
    turned = {"a": "b", "b": "a", "tie": "tie"}
    known = {"model_a": "a", "model_b": "b", "tie": "tie", "a": "a", "b": "b", "tie (inconsistent)": "tie"}
    for where, content in read_lines(path):
        try:
            a, b, winner = content["model_a"], content["model_b"], known[content["winner"]]
            judge, question_id = str(content.get("judge", "human")), str(content["question_id"])
        except (KeyError, TypeError, AttributeError) as error:
            raise EvalError(
                f"{where}: expected question_id, model_a, model_b and winner (model_a, model_b, tie): {error}"
            ) from None
        item, verdict = ((question_id, a, b), winner) if a < b else ((question_id, b, a), turned[winner])
        found.setdefault(judge, {})[item] = verdict
    return found


def _agreements(said: Mapping[str, Mapping[Item, str]], bootstrap: Bootstrap) -> tuple[tuple[str, str, Agreement], ...]:
    names = sorted(said)
    pairs = [(one, other) for number, one in enumerate(names) for other in names[number + 1 :]]
    return tuple(
        (one, other, agreement(said[one], said[other], bootstrap))
        for one, other in pairs
        if said[one].keys() & said[other].keys()
    )
