"""What an evaluation comes to, in one sentence for each judge and model."""

from collections.abc import Iterator
from dataclasses import dataclass

from ray_apps.evaluate.figures import PairFigures, RelativeScore
from ray_apps.evaluate.results import JudgeResults, Results
from ray_apps.evaluate.tables import number_of, percent, percent_of, probability


@dataclass(frozen=True)
class Headline:
    """`figure` is the one to be seen first, `figure_of` what it is; `title` and `text` together are the sentence."""

    judge: str
    title: str
    figure: str
    figure_of: str
    text: str

    @property
    def sentence(self) -> str:
        """In words alone."""
        return f"{self.title}: {self.text}."


def headlines(results: Results) -> list[Headline]:
    """For each judge every model against the baseline; without a baseline every pair; without pairs every model."""
    return [one for judge in results.judges for one in _of_judge(judge, results.baseline)]


def _of_judge(judge: JudgeResults, baseline: str | None) -> Iterator[Headline]:
    relative = {one.model: one for one in judge.relative}
    pairs = [one for one in judge.pairs if one.category is None and baseline in (None, one.b)]
    for pair in pairs:
        yield _of_pair(judge, pair, relative.get(pair.a) if baseline is not None else None)
    paired = {one.a for one in pairs}
    for one in judge.relative:
        if one.model not in paired:
            yield _of_points(judge.judge, one)
    if not pairs and not judge.relative:
        yield from _of_means(judge)


def _of_pair(judge: JudgeResults, pair: PairFigures, relative: RelativeScore | None) -> Headline:
    title = f"{pair.a} against {pair.b}"
    parts = [_rates(judge, pair)]
    if relative is not None:
        parts.append(f"reaches {percent_of(relative.ratio)} of {pair.b}'s points")
    if pair.better_or_equal is None:
        return Headline(judge.judge, title, "–", "better or equal", "; ".join(parts))
    parts.append(f"sign test p {probability(pair.sign_p)}")
    if pair.num_left_out:
        parts.append(f"{pair.num_left_out} left out for want of a verdict")
    figure = percent(pair.better_or_equal.value, 0)
    return Headline(judge.judge, title, figure, "better or equal", "; ".join(parts))


def _rates(judge: JudgeResults, pair: PairFigures) -> str:
    if pair.better_or_equal is None or pair.win_rate is None or pair.adjusted is None:
        return f"no verdict in both orders on any of {pair.num_left_out}"
    asked = {
        one.question_id for one in judge.comparisons if one.outcome is not None and {one.a, one.b} == {pair.a, pair.b}
    }
    count = pair.wins + pair.ties + pair.losses
    of = _questions(len(asked))
    of = of if count == len(asked) else f"{count} comparisons on {of}"
    wins, adjusted = percent(pair.win_rate.value, 0), percent(pair.adjusted.value, 0)
    return (
        f"better or equal in {percent_of(pair.better_or_equal, 0)} of {of}; wins {wins}, adjusted win rate {adjusted}"
    )


def _questions(count: int) -> str:
    return "1 question" if count == 1 else f"{count} questions"


def _of_points(judge: str, one: RelativeScore) -> Headline:
    text = f"reaches {percent_of(one.ratio)} of {one.baseline}'s points over {_questions(one.num_questions)}"
    return Headline(
        judge, f"{one.model} against {one.baseline}", percent(one.ratio.value, 0), f"of {one.baseline}'s points", text
    )


def _of_means(judge: JudgeResults) -> Iterator[Headline]:
    for one in judge.scores:
        if one.category is None:
            text = f"scores {number_of(one.mean)} of 10 over {_questions(one.num_questions)}"
            yield Headline(judge.judge, one.model, f"{one.mean.value:.1f}", "of 10", text)
