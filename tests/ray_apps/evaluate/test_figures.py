"""Figures are those of the books, mean the same whoever is called a, and have bounds that can be believed."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.evaluate.bias import length_bias, position_bias
from ray_apps.evaluate.bootstrap import Bootstrap, Estimate, share
from ray_apps.evaluate.figures import (
    Comparison,
    PairFigures,
    Score,
    battles,
    pair_figures,
    relative_score,
    score_figures,
    sign_test,
)
from ray_apps.evaluate.records import Outcome

FEW = Bootstrap(num_resamples=50)
VERDICTS: tuple[Outcome, ...] = ("a", "tie", "b")


def comparison(
    question: object, a_first: Outcome | None, b_first: Outcome | None = None, **fields: object
) -> Comparison:
    given = {"category": "writing", "a": "x", "b": "y", **fields}
    return Comparison(str(question), a_first=a_first, b_first=b_first or a_first, **given)  # type: ignore[arg-type]


@st.composite
def comparisons(draw: st.DrawFn, models: str = "xy", is_judged: bool = False) -> Comparison:
    verdict = st.sampled_from(VERDICTS) if is_judged else st.sampled_from((*VERDICTS, None))
    a, b = draw(st.permutations(models))[:2]
    return Comparison(
        draw(st.sampled_from("123456")),
        draw(st.sampled_from(("math", "writing"))),
        *(a, b, draw(verdict), draw(verdict)),
        lengths=draw(st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9))),
    )


def holds(estimate: Estimate | None, low: float = 0, high: float = 1) -> bool:
    return estimate is None or low <= estimate.low <= estimate.value <= estimate.high <= high


def value(estimate: Estimate | None) -> float:
    assert estimate is not None
    return estimate.value


@pytest.mark.parametrize(
    ("a_first", "b_first", "outcome"),
    [
        ("a", "a", "a"),
        ("b", "b", "b"),
        ("tie", "tie", "tie"),
        ("a", "b", "tie"),
        ("b", "a", "tie"),
        ("a", "tie", "tie"),
        ("tie", "b", "tie"),
        (None, "a", None),
        ("a", None, None),
        (None, None, None),
    ],
)
def test_only_what_both_orders_say_is_a_win(
    a_first: Outcome | None, b_first: Outcome | None, outcome: Outcome | None
) -> None:
    assert Comparison("1", "math", "x", "y", a_first, b_first).outcome == outcome


@given(comparisons())
def test_a_comparison_swapped_says_the_same(one: Comparison) -> None:
    other: dict[Outcome | None, Outcome | None] = {"a": "b", "b": "a", "tie": "tie", None: None}
    assert one.swapped().swapped() == one
    assert one.swapped().outcome == other[one.outcome]


def test_a_model_is_not_compared_with_itself() -> None:
    with pytest.raises(ValueError, match="question 7: 'x' is compared with itself"):
        Comparison("7", "math", "x", "x", "a", "a")


def test_rates_count_wins_and_ties() -> None:
    found = [comparison(1, "a"), comparison(2, "a"), comparison(3, "a", "b"), comparison(4, "b")]
    missing = Comparison("5", "math", "x", "y", "a", None)
    overall, math, writing = pair_figures([*found, missing])
    assert (overall.a, overall.b, overall.category) == ("x", "y", None)
    assert (overall.wins, overall.ties, overall.losses, overall.num_left_out) == (2, 1, 1, 1)
    assert value(overall.win_rate) == 0.5
    assert value(overall.adjusted) == 0.625
    assert value(overall.better_or_equal) == 0.75
    assert math == PairFigures("x", "y", "math", 0, 0, 0, 1, None, None, None, 1.0)
    assert writing == replace(overall, category="writing", num_left_out=0)


def test_the_baseline_is_who_others_are_compared_with() -> None:
    found = [comparison(1, "a", a="base", b="zeta"), comparison(1, "a", a="alpha", b="zeta")]
    pairs = [(one.a, one.b, one.wins) for one in pair_figures(found, "base", FEW) if one.category is None]
    assert pairs == [("alpha", "zeta", 1), ("zeta", "base", 0)]
    assert {(one.a, one.b) for one in pair_figures(found[:1], bootstrap=FEW)} == {("base", "zeta")}


@given(st.lists(comparisons("xyz"), max_size=12), st.data())
def test_figures_do_not_hang_on_names_or_order(found: list[Comparison], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations([data.draw(st.sampled_from((one, one.swapped()))) for one in found]))
    assert pair_figures(shuffled, bootstrap=FEW) == pair_figures(found, bootstrap=FEW)
    judged = [one for one in found if one.a_first and one.b_first]
    if judged:
        assert position_bias(shuffled, FEW) == position_bias(found, FEW)
    if any(one.lengths for one in judged):
        one, other = length_bias(shuffled, FEW), length_bias(found, FEW)
        assert one.kendall_tau == (None if other.kendall_tau is None else pytest.approx(other.kendall_tau))
        assert replace(one, kendall_tau=None) == replace(other, kendall_tau=None)


@given(st.lists(comparisons(), min_size=1, max_size=12))
def test_rates_come_to_one_and_lie_within_their_bounds(found: list[Comparison]) -> None:
    for figures in pair_figures(found, bootstrap=FEW):
        total = figures.wins + figures.ties + figures.losses
        assert holds(figures.win_rate)
        assert holds(figures.adjusted)
        assert holds(figures.better_or_equal)
        assert 0 <= figures.sign_p <= 1
        if total:
            losing = 1 - value(figures.better_or_equal)
            assert value(figures.win_rate) + figures.ties / total + losing == pytest.approx(1)


@given(st.lists(comparisons(is_judged=True), min_size=1, max_size=12))
def test_the_other_side_has_the_rest(found: list[Comparison]) -> None:
    ours = pair_figures(found, "y", FEW)[0]
    theirs = pair_figures(found, "x", FEW)[0]
    assert (ours.wins, ours.ties, ours.losses) == (theirs.losses, theirs.ties, theirs.wins)
    assert value(ours.adjusted) == pytest.approx(1 - value(theirs.adjusted))
    assert value(ours.win_rate) == pytest.approx(1 - value(theirs.better_or_equal))
    assert ours.sign_p == theirs.sign_p


def test_comparisons_are_battles() -> None:
    found = [comparison(1, "a"), comparison(2, "a", "b"), comparison(3, "b"), comparison(4, None)]
    assert list(battles(found)) == [("x", "y", 1.0), ("x", "y", 0.5), ("x", "y", 0.0)]


def test_no_comparisons_no_figures() -> None:
    assert pair_figures([]) == []
    assert score_figures([]) == []
    with pytest.raises(ValueError, match="in both orders"):
        position_bias([comparison(1, None)])
    with pytest.raises(ValueError, match="an outcome and lengths"):
        length_bias([comparison(1, "a"), comparison(2, None, lengths=(1, 2))])


def test_sign_test_of_the_books() -> None:
    # Zar, Biostatistical Analysis: hind legs and forelegs of 10 deer, 8 differences positive and 2 negative.
    assert sign_test(8, 2) == pytest.approx(0.109375)
    # Siegel, Nonparametric Statistics for the Behavioral Sciences, table D: x = 3 of N = 14, .029 in one tail.
    assert sign_test(11, 3) == pytest.approx(2 * 0.029, abs=1e-3)
    assert sign_test(0, 0) == 1
    with pytest.raises(ValueError, match="-1 wins"):
        sign_test(-1, 2)


def test_repetitions_of_one_question_are_one_piece_of_evidence() -> None:
    found = [comparison(question, "a") for question in range(3) for _ in range(20)]
    assert pair_figures(found, bootstrap=FEW)[0].sign_p == sign_test(3, 0)


def scores(model: str, total: float, num_questions: int = 80) -> list[Score]:
    """Scores that come to `total`, unlike each other."""
    spread = [0.5 if question % 2 else -0.5 for question in range(num_questions)]
    return [Score(str(n), "generic", model, total / num_questions + more) for n, more in enumerate(spread)]


@pytest.mark.parametrize(
    ("model", "total", "vicuna", "percent"),
    [
        ("LLaMA-13B", 513.0, 694.0, 135.28),
        ("Alpaca-13B", 583.0, 704.0, 120.75),
        ("Bard", 664.0, 655.5, 98.72),
        ("ChatGPT", 693.0, 638.0, 92.06),
    ],
)
def test_relative_scores_as_published(model: str, total: float, vicuna: float, percent: float) -> None:
    """Totals over 80 questions: Chiang et al., "Vicuna: An Open-Source Chatbot Impressing GPT-4" (2023), table 2."""
    found = relative_score([*scores(model, total), *scores("Vicuna-13B", vicuna)], "Vicuna-13B", model)
    assert (found.total, found.baseline_total) == (pytest.approx(vicuna), pytest.approx(total))
    assert 100 * found.ratio.value == pytest.approx(percent, abs=0.005)
    assert holds(found.ratio, 0, 2)
    assert (found.num_questions, found.num_left_out) == (80, 0)


def test_a_relative_score_is_over_what_both_were_asked() -> None:
    given = [Score("1", "c", "x", 6), Score("1", "c", "x", 8), Score("1", "c", "y", 10)]
    found = relative_score([*given, Score("2", "c", "x", 9), Score("3", "c", "y", 1)], "x", "y", FEW)
    assert (found.total, found.baseline_total, found.num_questions, found.num_left_out) == (7, 10, 1, 2)
    assert found.ratio == Estimate(0.7, 0.7, 0.7)
    with pytest.raises(ValueError, match="x and z have no scored question in common"):
        relative_score(given, "x", "z")
    with pytest.raises(ValueError, match="z has no points"):
        relative_score([*given, Score("1", "c", "z", 0)], "x", "z")


def test_mean_scores_by_model_and_category() -> None:
    given = [
        Score("1", "math", "x", 2),
        Score("1", "math", "x", 4),
        Score("2", "art", "x", 7),
        Score("1", "math", "y", 1),
    ]
    found = score_figures(given, FEW)
    assert [(one.model, one.category, one.mean.value, one.num_questions, one.num_scores) for one in found] == [
        ("x", None, 5, 2, 3),
        ("x", "art", 7, 1, 1),
        ("x", "math", 3, 1, 2),
        ("y", None, 1, 1, 1),
        ("y", "math", 1, 1, 1),
    ]
    assert all(holds(one.mean, 1, 7) for one in found)
    with pytest.raises(ValueError, match="question 1, x: nan is no score"):
        Score("1", "math", "x", float("nan"))


@pytest.mark.parametrize(
    ("orders", "expected"),
    [
        ([("a", "a"), ("b", "b"), ("tie", "tie")], (1, 0, 0)),
        ([("a", "b"), ("a", "tie"), ("tie", "b"), ("a", "a")], (0.25, 0.75, 0)),
        ([("b", "a"), ("b", "tie"), ("tie", "a"), ("a", "b")], (0, 0.25, 0.75)),
    ],
)
def test_position_bias_is_what_follows_the_place(
    orders: Sequence[tuple[Outcome, Outcome]], expected: tuple[float, float, float]
) -> None:
    found = position_bias([*(comparison(n, *order) for n, order in enumerate(orders)), comparison(99, None)], FEW)
    assert (found.consistent.value, found.first.value, found.second.value) == expected
    assert (found.num_comparisons, found.num_left_out) == (len(orders), 1)


@given(st.lists(comparisons(is_judged=True), min_size=1, max_size=12))
def test_position_shares_come_to_one(found: list[Comparison]) -> None:
    bias = position_bias(found, FEW)
    assert bias.consistent.value + bias.first.value + bias.second.value == pytest.approx(1)
    assert holds(bias.consistent)
    assert holds(bias.first)
    assert holds(bias.second)


def test_length_bias() -> None:
    longer, shorter = comparison(1, "a", lengths=(9, 2)), comparison(2, "a", lengths=(1, 3))
    even = [comparison(3, "a", lengths=(4, 4)), comparison(4, "a", "b", lengths=(7, 1)), comparison(5, "a")]
    found = length_bias([longer, shorter, *even], FEW)
    assert (value(found.longer_wins), found.num_decided) == (0.5, 2)
    assert (found.num_comparisons, found.num_left_out) == (4, 1)
    assert length_bias([longer], FEW).kendall_tau == pytest.approx(1)
    assert length_bias([shorter], FEW).kendall_tau == pytest.approx(-1)
    nothing = length_bias(even[1:2], FEW)
    assert (nothing.longer_wins, nothing.kendall_tau) == (None, None)


@given(st.lists(comparisons(is_judged=True), min_size=1, max_size=12))
def test_length_figures_lie_within_their_bounds(found: list[Comparison]) -> None:
    bias = length_bias([replace(one, lengths=one.lengths or (1, 2)) for one in found], FEW)
    assert holds(bias.longer_wins)
    assert bias.kendall_tau is None or -1 - 1e-9 <= bias.kendall_tau <= 1 + 1e-9


def coverage(rows_of: Callable[[np.random.Generator], np.ndarray], truth: float) -> int:
    """In how many of 100 simulations the bounds hold the truth."""
    generator, held = np.random.default_rng(7), 0
    for _ in range(100):
        found = Bootstrap(num_resamples=400).estimate(rows_of(generator), share(0))
        assert found is not None
        held += found.low <= truth <= found.high
    return held


def test_bounds_hold_the_truth_as_often_as_they_say() -> None:
    def rows(generator: np.random.Generator) -> np.ndarray:
        return np.eye(3)[generator.choice(3, size=80, p=[0.5, 0.2, 0.3])]

    assert 85 <= coverage(rows, 0.5) <= 100


def test_bounds_hold_the_truth_where_questions_are_repeated() -> None:
    """Questions differ, so that 5 answers to each say less than as many questions would."""

    def wins(generator: np.random.Generator) -> np.ndarray:
        return generator.binomial(5, generator.beta(0.5, 0.5, size=60))

    def by_question(generator: np.random.Generator) -> np.ndarray:
        found = wins(generator)
        return np.column_stack([found, 5 - found]).astype(float)

    def by_row(generator: np.random.Generator) -> np.ndarray:
        return np.eye(2)[np.concatenate([[0] * won + [1] * (5 - won) for won in wins(generator)])]

    assert 85 <= coverage(by_question, 0.5) <= 100
    assert coverage(by_row, 0.5) < 85


def test_bounds_of_relative_scores_hold_the_truth() -> None:
    generator, held = np.random.default_rng(3), 0
    for _ in range(100):
        hardness = generator.normal(7, 1, size=80)
        ours, theirs = 0.9 * hardness + generator.normal(0, 1, 80), hardness + generator.normal(0, 1, 80)
        given = [Score(str(n), "c", "x", mark) for n, mark in enumerate(ours)]
        given += [Score(str(n), "c", "y", mark) for n, mark in enumerate(theirs)]
        bounds = relative_score(given, "x", "y", Bootstrap(num_resamples=200)).ratio
        held += bounds.low <= 0.9 <= bounds.high
    assert 85 <= held <= 100


@given(st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), min_size=1, max_size=20), st.integers(0, 99))
def test_the_same_seed_has_the_same_bounds(rows: list[list[int]], seed: int) -> None:
    bootstrap, given = Bootstrap(50, seed=seed), np.array(rows, float)
    assert bootstrap.estimate(given, share(0)) == bootstrap.estimate(given[::-1], share(0))


def test_a_wider_level_has_wider_bounds() -> None:
    rows = np.eye(2)[np.arange(60) % 2]
    narrow, wide = (Bootstrap(level=level).estimate(rows, share(0)) for level in (0.5, 0.99))
    assert narrow is not None
    assert wide is not None
    assert wide.low < narrow.low < 0.5 < narrow.high < wide.high


@pytest.mark.parametrize(
    ("fields", "message"), [({"num_resamples": 0}, "num_resamples: 0"), ({"level": 1.0}, "level: 1.0")]
)
def test_a_bootstrap_that_cannot_be_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bootstrap(**fields)  # type: ignore[arg-type]
