"""Votes stay, whoever writes them and whatever ends the writer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import DataError
from ray_apps.votes import VERDICTS, Vote, VoteFile, battles

ROOT = Path(__file__).parents[2]


def vote(**fields: object) -> Vote:
    return Vote.model_validate({"kind": "battle", "models": ("x", "y"), "verdict": "a", "num_turns": 1, **fields})


@given(data=st.data())
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    file = VoteFile(tmp_path_factory.mktemp("votes") / "below" / "votes.jsonl")
    given = []
    for _ in range(data.draw(st.integers(0, 5))):
        kind = data.draw(st.sampled_from(sorted(VERDICTS)))
        names = data.draw(st.lists(st.text(), min_size=1, max_size=1))
        models = (*names, "other") if kind in ("battle", "side_by_side") else tuple(names)
        verdict = data.draw(st.sampled_from(VERDICTS[kind]))
        chats = tuple(({"role": "user", "content": data.draw(st.text())},) for _ in models)
        given.append(vote(kind=kind, models=models, verdict=verdict, chats=chats))
        file.add(given[-1])
    assert list(VoteFile(file.path).read()) == given


def test_many_processes_write_to_one_file(tmp_path: Path) -> None:
    program = (
        "import sys; from ray_apps.votes import Vote, VoteFile; file = VoteFile(sys.argv[1])\n"
        "for n in range(30): file.add(Vote(kind='thumb', models=(sys.argv[2],), verdict='up', num_turns=n,"
        " chats=(({'role': 'user', 'content': 'x' * 9000},),)))"
    )
    path = tmp_path / "votes.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(path), str(number)], cwd=ROOT) for number in range(4)
    ]
    assert [writer.wait() for writer in writers] == [0] * 4
    votes = list(VoteFile(path).read())
    assert len({one.id for one in votes}) == 120
    for number in range(4):
        assert [one.num_turns for one in votes if one.models == (str(number),)] == list(range(30))


def test_a_torn_line_costs_no_other(tmp_path: Path) -> None:
    file = VoteFile(tmp_path / "votes.jsonl")
    file.add(vote())
    with file.path.open("ab") as held:
        held.write(file.path.read_bytes()[:40])
    file.add(vote(verdict="b"))
    assert [one.verdict for one in file.read()] == ["a", "b"]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ({"verdict": "up"}, "verdict: 'up' is not valid for battle"),
        ({"models": ["x"]}, "models: 1 are not as many as battle has"),
        ({"num_turns": -1}, "line 1: num_turns"),
        ({"extra": 1}, "line 1: extra"),
        ({"chats": [[]]}, "chats: there should be one for each model"),
    ],
)
def test_a_line_that_is_no_vote_is_named(tmp_path: Path, harm: dict[str, object], message: str) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text(json.dumps({**json.loads(vote().model_dump_json()), **harm}) + "\n")
    with pytest.raises(DataError, match=message):
        list(VoteFile(path).read())


def test_what_a_vote_is_worth() -> None:
    given = [vote(verdict=verdict) for verdict in ("a", "b", "tie", "both_bad")]
    given.append(vote(kind="flag", models=("x",), verdict="flag"))
    assert list(battles(given)) == [("x", "y", 1.0), ("x", "y", 0.0), ("x", "y", 0.5), ("x", "y", 0.5)]
    assert list(VoteFile(Path("nowhere.jsonl")).read()) == []
