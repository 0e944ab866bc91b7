"""Ratings are those of the models behind the battles, and there is one for every model."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_expit

from ray_apps.evaluate.bootstrap import Bootstrap
from ray_apps.evaluate.ratings import SCALE, Battle, Rating, bradley_terry, components, elo, win_rates

FEW = Bootstrap(num_resamples=20)
BATTLES = st.lists(
    st.tuples(st.sampled_from("vwxyz"), st.sampled_from("vwxyz"), st.sampled_from((0.0, 0.5, 1.0))), max_size=30
)


def by_model(ratings: list[Rating]) -> dict[str, float]:
    return {one.model: one.rating for one in ratings}


def fought(wins: int, ties: int, losses: int, first: str = "x", second: str = "y") -> list[Battle]:
    return [(first, second, worth) for worth, count in ((1.0, wins), (0.5, ties), (0.0, losses)) for _ in range(count)]


@pytest.mark.parametrize(("wins", "ties", "losses"), [(7, 0, 3), (3, 4, 1), (1, 1, 9), (5, 5, 5)])
def test_two_models_lie_their_log_odds_apart(wins: int, ties: int, losses: int) -> None:
    ratings = by_model(bradley_terry(fought(wins, ties, losses), prior=1e-9, bootstrap=FEW))
    odds = (wins + ties / 2) / (losses + ties / 2)
    assert ratings["x"] - ratings["y"] == pytest.approx(400 * math.log10(odds), abs=1e-4)
    assert ratings["x"] + ratings["y"] == pytest.approx(2000)


def test_ten_wins_for_each_loss_are_400_points() -> None:
    ratings = by_model(bradley_terry(fought(100, 0, 10), prior=1e-9, bootstrap=FEW))
    assert ratings["x"] - ratings["y"] == pytest.approx(400, abs=1e-4)


def test_journals_of_statistics() -> None:
    """Citations between four journals: Agresti, Categorical Data Analysis (2nd ed., 2002), table 10.10."""
    names = ("Biometrika", "Comm Statist", "JASA", "JRSS-B")
    cited = {(0, 1): (730, 33), (0, 2): (498, 320), (0, 3): (221, 284), (1, 2): (68, 813), (1, 3): (17, 276)}
    cited[2, 3] = (142, 325)
    battles = [b for (i, j), (won, lost) in cited.items() for b in fought(won, 0, lost, names[i], names[j])]
    ratings = by_model(bradley_terry(battles, prior=1e-9, bootstrap=FEW))
    strengths = [(ratings[name] - ratings["Biometrika"]) / SCALE for name in names]
    assert strengths == pytest.approx([0, -2.9491, -0.4796, 0.2690], abs=5e-5)


@given(BATTLES)
def test_ratings_are_the_likeliest(battles: list[Battle]) -> None:
    """Against a general optimiser."""
    prior = 0.5
    models = sorted({model for first, second, _ in battles if first != second for model in (first, second)})
    pairs = {frozenset(battle[:2]) for battle in battles if battle[0] != battle[1]}
    ties = [(*sorted(pair), 0.5, prior) for pair in pairs]
    told = [(*battle, 1.0) for battle in battles if battle[0] != battle[1]] + ties

    def unlikelihood(strengths: np.ndarray) -> float:
        at = dict(zip(models, strengths, strict=True))
        return -sum(
            weight * (worth * log_expit(at[i] - at[j]) + (1 - worth) * log_expit(at[j] - at[i]))
            for i, j, worth, weight in told
        )

    ratings = by_model(bradley_terry(battles, prior=prior, bootstrap=FEW))
    assert sorted(ratings) == models
    if models:
        ours = unlikelihood(np.array([(ratings[model] - 1000) / SCALE for model in models]))
        best = minimize(unlikelihood, np.zeros(len(models)), options={"maxiter": 30}).fun
        assert ours <= best + 1e-7


@given(BATTLES, st.data())
def test_the_order_of_battles_makes_no_difference(battles: list[Battle], data: st.DataObject) -> None:
    mixed = [
        data.draw(st.sampled_from(((first, second, worth), (second, first, 1 - worth))))
        for first, second, worth in data.draw(st.permutations(battles))
    ]
    assert bradley_terry(mixed, bootstrap=FEW) == bradley_terry(battles, bootstrap=FEW)
    assert win_rates(mixed) == win_rates(battles)
    assert components(mixed) == components(battles)


@given(BATTLES)
def test_losing_instead_turns_the_ratings_over(battles: list[Battle]) -> None:
    ratings = by_model(bradley_terry(battles, bootstrap=FEW))
    turned = by_model(bradley_terry([(first, second, 1 - worth) for first, second, worth in battles], bootstrap=FEW))
    assert turned == {model: pytest.approx(2000 - rating, abs=1e-3) for model, rating in ratings.items()}


@given(BATTLES, st.permutations("vwxyz"))
def test_names_make_no_difference(battles: list[Battle], others: list[str]) -> None:
    renamed = dict(zip("vwxyz", others, strict=True))
    found = by_model(bradley_terry([(renamed[i], renamed[j], worth) for i, j, worth in battles], bootstrap=FEW))
    for model, rating in by_model(bradley_terry(battles, bootstrap=FEW)).items():
        assert found[renamed[model]] == pytest.approx(rating, abs=1e-3)


@given(BATTLES)
def test_everybody_has_a_rating_within_its_bounds(battles: list[Battle]) -> None:
    groups = components(battles)
    for ratings in (bradley_terry(battles, bootstrap=FEW), elo(battles, bootstrap=FEW)):
        assert sorted(one.model for one in ratings) == sorted(model for group in groups for model in group)
        assert ratings == sorted(ratings, key=lambda one: -one.rating)
        for one in ratings:
            assert -math.inf < one.low <= one.rating <= one.high < math.inf
        assert sum(one.num_battles for one in ratings) == 2 * sum(first != second for first, second, _ in battles)
    found = by_model(bradley_terry(battles, bootstrap=FEW))
    for group in groups:
        assert np.mean([found[model] for model in group]) == pytest.approx(1000)


def test_who_won_all_is_ahead_and_not_infinitely() -> None:
    won = {count: by_model(bradley_terry(fought(count, 0, 0), bootstrap=FEW))["x"] for count in (1, 10, 100)}
    assert 1000 < won[1] < won[10] < won[100] < 2000
    chain = [battle for n in range(30) for battle in fought(50, 0, 0, f"{n:02}", f"{n + 1:02}")]
    assert [one.model for one in bradley_terry(chain, bootstrap=FEW)] == [f"{n:02}" for n in range(31)]


def test_the_prior_is_hardly_felt() -> None:
    plain, drawn = (by_model(bradley_terry(fought(70, 0, 30), prior, FEW)) for prior in (1e-9, 0.1))
    assert plain["x"] == pytest.approx(drawn["x"], abs=0.5)


def test_models_that_never_met_are_told() -> None:
    battles = [*fought(3, 0, 1), *fought(1, 0, 0, "y", "z"), *fought(9, 0, 1, "p", "q")]
    assert components(battles) == [("x", "y", "z"), ("p", "q")]
    together = by_model(bradley_terry(battles, bootstrap=FEW))
    for group in (battles[:5], battles[5:]):
        for model, rating in by_model(bradley_terry(group, bootstrap=FEW)).items():
            assert together[model] == pytest.approx(rating)


def test_bounds_hold_the_truth_as_often_as_they_say() -> None:
    strengths = np.array([0.8, 0.2, -0.3, -0.7])
    generator, held = np.random.default_rng(5), np.zeros(4)
    for _ in range(100):
        pairs = generator.permuted(np.tile(np.arange(4), (300, 1)), axis=1)[:, :2]
        chances = 1 / (1 + np.exp(strengths[pairs[:, 1]] - strengths[pairs[:, 0]]))
        worths = (generator.random(300) < chances).astype(float)
        battles = [(str(i), str(j), worth) for (i, j), worth in zip(pairs, worths, strict=True)]
        for one in bradley_terry(battles, bootstrap=Bootstrap(num_resamples=200)):
            held[int(one.model)] += one.low <= 1000 + SCALE * strengths[int(one.model)] <= one.high
    assert ((held >= 85) & (held <= 100)).all()


def test_one_game_of_elo() -> None:
    """The winner of two even players gains half of K; one who is d ahead, 1 / (1 + 10^(d / 400)) of it (Elo, 1978)."""
    first = by_model(elo(fought(1, 0, 0), k=32, bootstrap=FEW))
    assert first == {"x": 1016, "y": 984}
    again = by_model(elo(fought(2, 0, 0), k=32, bootstrap=FEW))
    assert again["x"] == pytest.approx(1016 + 32 / (1 + 10 ** (32 / 400)))
    assert by_model(elo(fought(0, 1, 0), bootstrap=FEW)) == {"x": 1000, "y": 1000}
    assert by_model(elo(fought(1, 0, 0), start=0, bootstrap=FEW)) == {"x": 2, "y": -2}


@given(BATTLES)
def test_elo_only_hands_points_on(battles: list[Battle]) -> None:
    ratings = elo(battles, bootstrap=FEW)
    assert sum(one.rating for one in ratings) == pytest.approx(1000 * len(ratings))


def test_later_battles_weigh_more_in_elo() -> None:
    early, late = fought(20, 0, 20), [*fought(0, 0, 20), *fought(20, 0, 0)]
    assert by_model(elo(early, bootstrap=FEW))["x"] < 1000 < by_model(elo(late, bootstrap=FEW))["x"]


def test_win_rates_both_ways() -> None:
    found = win_rates([*fought(2, 1, 1), ("y", "x", 1.0), ("y", "z", 1.0), ("z", "z", 1.0)])
    assert found == {("x", "y"): (0.5, 5), ("y", "x"): (0.5, 5), ("y", "z"): (1.0, 1), ("z", "y"): (0.0, 1)}


def test_no_battles_no_ratings() -> None:
    assert bradley_terry([]) == elo([]) == components([]) == []
    assert win_rates([]) == {}
    assert bradley_terry([("x", "x", 1.0)]) == elo([("x", "x", 1.0)]) == []


def test_what_is_no_battle_is_refused() -> None:
    for rate in (bradley_terry, elo, components, win_rates):
        with pytest.raises(ValueError, match="x against y: 2 is not between 0 and 1"):
            rate([("x", "y", 2)])
    with pytest.raises(ValueError, match="prior: 0 is not positive"):
        bradley_terry(fought(1, 0, 0), prior=0)
