"""`vicuna eval …` as a person runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ray_apps.evaluate.evaluations import answered
from tests.ray_apps.evaluate.scripted import Raw, last, refusal, serving

pytestmark = pytest.mark.slow


def vicuna(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ray_apps.cli", "eval", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, timeout=120)


def act(body: dict[str, Any]) -> Raw | str:
    """Answers anything, and finds the first answer better."""
    if "response_format" not in body:
        return f"{body['model']} on {last(body)}"
    return json.dumps({"explanation": "…", "verdict": "A", "score": 7})


def test_from_questions_to_a_report(tmp_path: Path) -> None:
    out = tmp_path / "eval"
    with serving(act) as endpoint:
        asked = ("--url", endpoint.url, "--model", "base", "--model", f"tuned@{endpoint.url}/v1", "--per-category", "1")
        done = vicuna("answers", out, *asked, OPENAI_API_KEY="sk-1")
        assert done.returncode == 0, done.stderr
        assert "18 new, 0 failed" in done.stdout
        judged = vicuna(
            "judge", out, "--url", endpoint.url, "--model", "j", "--name", "the judge", "--baseline", "base"
        )
        assert judged.returncode == 0, judged.stderr
        assert "36 new, 0 failed" in judged.stdout
    assert set(endpoint.keys) == {"Bearer sk-1", None}
    told = vicuna("report", out, "--baseline", "base", "--price-read", "2.5")
    assert told.returncode == 0, told.stderr
    assert told.stdout.split() == [str(out / name) for name in ("report.html", "report.md", "figures.csv")]
    assert "the judge" in (out / "report.md").read_text()
    rated = json.loads(vicuna("ratings", out, "--json").stdout)
    assert rated["num_battles"] == 9
    assert {one["model"] for one in rated["bradley_terry"]} == {"base", "tuned"}


def test_what_comes_to_nothing_is_in_the_exit_code(tmp_path: Path) -> None:
    out = tmp_path / "eval"
    with serving(lambda body: refusal(400, "too long") if "bad" in body["model"] else act(body)) as endpoint:
        command = ("answers", out, "--url", endpoint.url, "--model", "good", "--model", "bad", "--per-category", "1")
        failed = vicuna(*command)
    assert failed.returncode == 1
    assert "error: bad: question generic-1, choice 0: refused (400): too long" in failed.stderr
    assert "the same command tries these again" in failed.stderr
    assert len((out / "answers" / "good.jsonl").read_text().splitlines()) == 9
    with serving(act) as endpoint:
        again = vicuna(
            "answers", out, "--url", endpoint.url, "--model", "good", "--model", "bad", "--per-category", "1"
        )
    assert again.returncode == 0
    assert len(endpoint.asked) == 9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("answers", "OUT", "--model", "m"), "error: --url: is required, for --model 'm' names no endpoint"),
        (("answers", "OUT", "--model", "m@http://127.0.0.1:9", "--tries", "1"), "cannot be reached"),
        (
            ("answers", "OUT", "--url", "http://x", "--model", "m", "--questions", "none"),
            "error: questions: none: No such",
        ),
        (("answers", "OUT", "--url", "http://x", "--model", "m", "--category-temperature", "x"), "expected CATEGORY=T"),
        (
            ("judge", "OUT", "--url", "http://x", "--model", "m"),
            "nothing was asked here yet; see `vicuna eval answers`",
        ),
        (("report", "OUT"), "nothing was asked here yet"),
        (("report", "ANSWERED"), "nothing was judged yet; see `vicuna eval judge`"),
        (("ratings",), "error: ratings: give a DIRECTORY with verdicts, --votes FILE, or both"),
        (("ratings", "--votes", "none.jsonl"), "error: --votes: none.jsonl: there is no such file"),
        (("run", "vicuna_7b", "eval.judge.modle=x"), "did you mean 'model'?"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    places = {"OUT": str(tmp_path / "none"), "ANSWERED": str(answered(tmp_path / "answered", "a").directory)}
    done = vicuna(*(places.get(argument, argument) for argument in arguments))
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
