"""Agreement is that of the books, and the same whoever comes first."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.evaluate.agreement import Agreement, agreement, fleiss_kappa
from ray_apps.evaluate.bootstrap import Bootstrap, Estimate

FEW = Bootstrap(num_resamples=50)
JUDGE = st.dictionaries(st.integers(0, 15), st.sampled_from(("a", "b", "tie")))


def two_judges(table: Sequence[Sequence[int]]) -> tuple[dict[int, str], dict[int, str]]:
    """Judges whose verdicts come to `table`: first down, second across."""
    pairs = [(str(i), str(j)) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return {n: one for n, (one, _) in enumerate(pairs)}, {n: other for n, (_, other) in enumerate(pairs)}


def many_judges(table: Sequence[str]) -> list[dict[int, str]]:
    """Judges of whom so many gave each item each verdict."""
    rows = [[str(verdict) for verdict, n in enumerate(row.split()) for _ in range(int(n))] for row in table]
    return [dict(enumerate(said)) for said in zip(*rows, strict=True)]


def value(estimate: Estimate | None) -> float:
    assert estimate is not None
    return estimate.value


def holds(estimate: Estimate | None, low: float = 0) -> bool:
    return estimate is None or low <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.parametrize(
    ("table", "equal", "kappa"),
    [
        # Cohen, "A Coefficient of Agreement for Nominal Scales" (1960), table 1, for N = 200.
        (((88, 14, 18), (10, 40, 10), (2, 6, 12)), 0.70, 0.492),
        # Two readers of 50 grant proposals.
        (((20, 5), (10, 15)), 0.70, 0.40),
        (((45, 15), (25, 15)), 0.60, 0.1304),
        (((25, 35), (5, 35)), 0.60, 0.2593),
        (((5, 0), (0, 3)), 1, 1),
        (((0, 5), (5, 0)), 0, -1),
    ],
)
def test_kappa_of_the_books(table: Sequence[Sequence[int]], equal: float, kappa: float) -> None:
    found = agreement(*two_judges(table), FEW)
    assert found.equal.value == pytest.approx(equal)
    assert value(found.kappa) == pytest.approx(kappa, abs=5e-4)


def test_judges_who_always_say_one_thing_have_no_kappa() -> None:
    found = agreement(*two_judges(((7,),)), FEW)
    assert found == Agreement(Estimate(1, 1, 1), Estimate(1, 1, 1), None, 7, 7, 0)


def test_ties_and_what_one_did_not_judge_are_told() -> None:
    first = {1: "a", 2: "b", 3: "tie", 4: "a", 5: "tie", 6: "a"}
    second = {1: "a", 2: "a", 3: "tie", 4: "tie", 5: "b", 7: "b", 8: "b"}
    found = agreement(first, second, FEW)
    assert (found.num_items, found.num_decided, found.num_left_out) == (5, 2, 3)
    assert (found.equal.value, value(found.equal_decided)) == (0.4, 0.5)
    assert agreement({1: "tie"}, {1: "a"}, FEW).equal_decided is None


@pytest.mark.parametrize("second", [{}, {2: "a"}])
def test_nothing_in_common_is_refused(second: dict[int, str]) -> None:
    with pytest.raises(ValueError, match="the two judges have no item in common"):
        agreement({1: "a"}, second)
    with pytest.raises(ValueError, match="the 2 judges have no item in common"):
        fleiss_kappa([{1: "a"}, second])


@given(JUDGE, JUDGE)
def test_it_does_not_matter_who_is_first(first: dict[int, str], second: dict[int, str]) -> None:
    if not first.keys() & second.keys():
        return
    one, other = agreement(first, second, FEW), agreement(second, first, FEW)
    assert (one.equal, one.equal_decided) == (other.equal, other.equal_decided)
    assert (one.num_items, one.num_decided, one.num_left_out) == (
        other.num_items,
        other.num_decided,
        other.num_left_out,
    )
    assert (one.kappa is None) == (other.kappa is None)
    if one.kappa is not None:
        assert one.kappa.value == pytest.approx(value(other.kappa))
        assert one.kappa.value <= one.equal.value
    assert holds(one.equal)
    assert holds(one.equal_decided)
    assert holds(one.kappa, -1)


@given(st.lists(JUDGE, min_size=2, max_size=4), st.permutations(("a", "b", "tie")), st.randoms())
def test_many_judges_in_any_order_under_any_names(
    judges: list[dict[int, str]], others: list[str], chance: random.Random
) -> None:
    if not set.intersection(*(set(judge) for judge in judges)):
        return
    renamed = dict(zip(("a", "b", "tie"), others, strict=True))
    mixed = [{item: renamed[verdict] for item, verdict in judge.items()} for judge in judges]
    chance.shuffle(mixed)
    one, other = fleiss_kappa(judges, FEW), fleiss_kappa(mixed, FEW)
    assert (one.num_items, one.num_left_out) == (other.num_items, other.num_left_out)
    assert (one.kappa is None) == (other.kappa is None)
    if one.kappa is not None:
        assert one.kappa.value == pytest.approx(value(other.kappa))
        assert holds(one.kappa, -1 - 1e-9)


DIAGNOSES = (
    *("0 0 0 6 0", "0 3 0 0 3", "0 1 4 0 1", "0 0 0 0 6", "0 3 0 3 0", "2 0 4 0 0", "0 0 4 0 2", "2 0 3 1 0"),
    *("2 0 0 4 0", "0 0 0 0 6", "1 0 0 5 0", "1 1 0 4 0", "0 3 3 0 0", "1 0 0 5 0", "0 2 0 3 1", "0 0 5 0 1"),
    *("3 0 0 1 2", "5 1 0 0 0", "0 2 0 4 0", "1 0 2 0 3", "0 0 0 0 6", "0 1 0 5 0", "0 2 0 1 3", "2 0 0 4 0"),
    *("1 0 0 4 1", "0 5 0 1 0", "4 0 0 0 2", "0 2 0 4 0", "1 0 5 0 0", "0 0 0 0 6"),
)
"""How many of 6 psychiatrists gave each of 30 patients each of 5 diagnoses: Fleiss (1971), table 1."""

FOURTEEN = (
    *("0 0 0 0 14", "0 2 6 4 2", "0 0 3 5 6", "0 3 9 2 0", "2 2 8 1 1", "7 7 0 0 0", "3 2 6 3 0", "2 5 3 2 2"),
    *("6 5 2 1 0", "0 2 2 3 7"),
)
"""The well-known example of 14 raters, 10 subjects and 5 categories."""


@pytest.mark.parametrize(("table", "num_judges", "kappa"), [(DIAGNOSES, 6, 0.430), (FOURTEEN, 14, 0.210)])
def test_fleiss_kappa_of_the_books(table: Sequence[str], num_judges: int, kappa: float) -> None:
    found = fleiss_kappa(many_judges(table))
    assert value(found.kappa) == pytest.approx(kappa, abs=5e-4)
    assert holds(found.kappa)
    assert (found.num_judges, found.num_items, found.num_left_out) == (num_judges, len(table), 0)


def test_only_what_all_judged_counts() -> None:
    found = fleiss_kappa([{1: "a", 2: "b", 3: "a"}, {1: "a", 2: "b"}, {1: "a", 2: "b", 4: "b"}], FEW)
    assert (value(found.kappa), found.num_items, found.num_left_out) == (1, 2, 2)
    assert fleiss_kappa([{1: "a"}, {1: "a"}], FEW).kappa is None
    with pytest.raises(ValueError, match="it takes two judges to agree; there are 1"):
        fleiss_kappa([{1: "a"}])


def test_bounds_of_kappa_hold_the_truth_as_often_as_they_say() -> None:
    chances = np.array([[0.35, 0.05, 0.05], [0.05, 0.25, 0.05], [0.05, 0.05, 0.10]])
    expected = float(chances.sum(axis=0) @ chances.sum(axis=1))
    truth = (np.trace(chances) - expected) / (1 - expected)
    generator, held = np.random.default_rng(11), 0
    for _ in range(100):
        table = generator.multinomial(120, chances.ravel()).reshape(3, 3).tolist()
        kappa = agreement(*two_judges(table), Bootstrap(num_resamples=400)).kappa
        assert kappa is not None
        held += kappa.low <= truth <= kappa.high
    assert 85 <= held <= 100
