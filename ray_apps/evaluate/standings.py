"""Models by their ratings, from verdicts of judges and from votes of people."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from data_prep.errors import EvalError
from ray_apps.console import console
from ray_apps.evaluate.bootstrap import Bootstrap
from ray_apps.evaluate.figures import battles
from ray_apps.evaluate.ratings import Battle, Rating, bradley_terry, components, elo
from ray_apps.evaluate.records import Evaluation
from ray_apps.evaluate.results import compare
from ray_apps.votes import VoteFile
from ray_apps.votes import battles as vote_battles


@dataclass(frozen=True)
class Standings:
    """Bradley-Terry's ratings, the best first, and online Elo's. `groups`: models that compare with each other."""

    num_battles: int
    bradley_terry: tuple[Rating, ...]
    elo: tuple[Rating, ...]
    groups: tuple[tuple[str, ...], ...]


def standings(
    evaluation: Evaluation | None, votes: Sequence[Path], judge: str | None = None, seed: int = 0
) -> Standings:
    """Ratings by pairwise verdicts, all or those of `judge`, and by votes.

    Raises:
        EvalError: there is no battle.
        DataError: a file of votes cannot be read.
    """
    fought: list[Battle] = []
    if evaluation is not None:
        verdicts = [one for one in evaluation.verdicts(judge) if one.kind == "pair"]
        for name in sorted({one.judge for one in verdicts}):
            own = [one for one in verdicts if one.judge == name]
            fought += battles(compare(own, evaluation.conversations()))
    for path in votes:
        if not path.exists():
            raise EvalError(f"--votes: {path}: there is no such file")
        fought += vote_battles(VoteFile(path).read())
    if not fought:
        raise EvalError("there is no comparison of two models to rate by")
    bootstrap = Bootstrap(seed=seed)
    return Standings(
        len(fought),
        tuple(bradley_terry(fought, bootstrap=bootstrap)),
        tuple(elo(fought, bootstrap=bootstrap)),
        tuple(components(fought)),
    )


def print_table(found: Standings) -> None:
    """For a person."""
    online = {rating.model: rating for rating in found.elo}
    table = Table(box=None, header_style="bold")
    for name in ("model", "Bradley-Terry", "95 %", "Elo", "battles"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for rating in found.bradley_terry:
        bounds = f"{rating.low:.0f} to {rating.high:.0f}"
        table.add_row(
            *(
                rating.model,
                f"{rating.rating:.0f}",
                bounds,
                f"{online[rating.model].rating:.0f}",
                f"{rating.num_battles}",
            )
        )
    console.print(table)
    if len(found.groups) > 1:
        told = "; ".join(", ".join(group) for group in found.groups)
        console.print(f"Only these were compared with each other: {told}.", soft_wrap=True, markup=False)


def print_json(found: Standings) -> None:
    """For a program."""
    print(json.dumps(asdict(found), ensure_ascii=False))
