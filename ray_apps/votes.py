"""What people think of answers: votes between two models, thumbs, and flags, in a file that only grows.

One JSON object a line, flushed before the vote counts as given; any number of processes may write to one file.
"""

import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_prep.errors import DataError
from ray_apps.lines import append_line, read_lines

Kind = Literal["battle", "side_by_side", "thumb", "flag"]
Verdict = Literal["a", "b", "tie", "both_bad", "up", "down", "flag"]
VERDICTS: dict[Kind, tuple[Verdict, ...]] = {
    "battle": ("a", "b", "tie", "both_bad"),
    "side_by_side": ("a", "b", "tie", "both_bad"),
    "thumb": ("up", "down"),
    "flag": ("flag",),
}
"""What can be said of what: in a battle the models are not named until the vote is given."""


class Vote(BaseModel):
    """One opinion.

    `models`: the model, or the two in the order in which they stood, `a` on the left. `chats`: what was said, one for
    each model, as OpenAI has messages; empty where texts are not kept. `session`: what the votes of one visit share.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    time: datetime = Field(default_factory=lambda: datetime.now(UTC))
    kind: Kind
    models: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)]
    verdict: Verdict
    num_turns: int = Field(ge=0)
    session: str = ""
    chats: tuple[tuple[dict[str, str], ...], ...] = ()

    @model_validator(mode="after")
    def _goes_together(self) -> "Vote":
        if self.verdict not in VERDICTS[self.kind]:
            raise ValueError(f"verdict: {self.verdict!r} is not valid for {self.kind}; valid: {VERDICTS[self.kind]}")
        if (len(self.models) == 2) != (self.kind in ("battle", "side_by_side")):
            raise ValueError(f"models: {len(self.models)} are not as many as {self.kind} has")
        if self.chats and len(self.chats) != len(self.models):
            raise ValueError("chats: there should be one for each model")
        return self


class VoteFile:
    """The votes at `path`, whose directory is made."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, vote: Vote) -> None:
        """Write a vote to the end, and flush it to the disk.

        Raises:
            OSError: it cannot be written; nothing of it stays.
        """
        append_line(self.path, vote.model_dump_json())

    def read(self) -> Iterator[Vote]:
        """The votes in the order in which they were given, without lines that are torn.

        Raises:
            DataError: a line is whole and no vote; naming it.
        """
        for where, content in read_lines(self.path):
            yield _read(content, where)


def _read(content: Any, where: str) -> Vote:
    try:
        return Vote.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(f"{where}: {field + ': ' if field else ''}{first['msg']}") from None


def battles(votes: Sequence[Vote] | Iterator[Vote]) -> Iterator[tuple[str, str, float]]:
    """Pairs of models that were compared, and what the first is worth: 1 won, 0 lost, 0.5 for a tie and both bad."""
    worth = {"a": 1.0, "b": 0.0, "tie": 0.5, "both_bad": 0.5}
    for vote in votes:
        if vote.kind in ("battle", "side_by_side"):
            yield vote.models[0], vote.models[1], worth[vote.verdict]
