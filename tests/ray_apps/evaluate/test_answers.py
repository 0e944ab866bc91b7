"""Questions to answers: what is kept, what is asked again, and what is never taken for an answer."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import EvalError
from ray_apps.evaluate.answers import Asking, Summary, ask_models
from ray_apps.evaluate.client import Patience, Target
from ray_apps.evaluate.questions import Question
from ray_apps.evaluate.records import Evaluation
from tests.ray_apps.evaluate.scripted import Endpoint, Raw, completion, last, refusal, serving

HASTY = Patience(tries=2, timeout_s=5, first_pause_s=0.01)
QUESTIONS = [
    Question(question_id=f"q{number}", category=category, turns=turns)
    for number, (category, turns) in enumerate(
        [("writing", ("one",)), ("maths", ("two", "three")), ("other", ("four",)), ("maths", ("five", "six"))]
    )
]


def ask(directory: Path, *names: str, endpoint: Endpoint, **fields: Any) -> Summary:
    targets = {name: Target(endpoint.url, name) for name in names or ("m",)}
    asking = Asking(**{"patience": HASTY, **fields})
    return asyncio.run(ask_models(Evaluation(directory), QUESTIONS, targets, asking))


def echo(body: dict[str, Any]) -> str:
    return f"{body['model']} says {last(body)}"


def test_every_model_answers_every_turn_at_its_temperature(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        summary = ask(tmp_path, "m", "n/1", endpoint=endpoint, num_choices=2, system="Be kind.")
    assert (summary.num_done, summary.num_kept, summary.failed) == (24, 0, ())
    answered = Evaluation(tmp_path).conversations()
    assert len(answered) == 16
    assert answered["n/1", "q1", 1] == ("n/1 says two", "n/1 says three")
    by_text = {last(body): body for body in endpoint.asked}
    temperatures = [by_text[text]["temperature"] for text in ("one", "two", "three", "four", "five", "six")]
    assert temperatures == [0.7, 0.0, 0.0, 0.7, 0.0, 0.0]
    assert [message["role"] for message in by_text["three"]["messages"]] == ["system", "user", "assistant", "user"]


def test_what_is_answered_is_not_asked_again(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        ask(tmp_path, endpoint=endpoint)
        summary = ask(tmp_path, "m", "n", endpoint=endpoint)
        assert (summary.num_done, summary.num_kept) == (6, 6)
        assert sum(body["model"] == "m" for body in endpoint.asked) == 6


def test_a_failed_call_is_no_answer_and_is_made_good_later(tmp_path: Path) -> None:
    down = True

    def act(body: dict[str, Any]) -> Raw | str:
        return refusal(500, "out of memory") if down and last(body) == "six" else echo(body)

    with serving(act) as endpoint:
        summary = ask(tmp_path, endpoint=endpoint)
        assert summary.failed == ("m: question q3, choice 0: status 500: out of memory",)
        evaluation = Evaluation(tmp_path)
        assert ("m", "q3", 0) not in evaluation.conversations()
        (failure,) = evaluation.failures()
        assert (failure.step, failure.about, failure.reason) == (
            *("answers", "question q3, choice 0", "status 500: out of memory"),
        )
        down = False
        asked = len(endpoint.asked)
        assert ask(tmp_path, endpoint=endpoint).failed == ()
        assert [last(body) for body in endpoint.asked[asked:]] == ["six"]  # its first turn is kept
        assert evaluation.conversations()["m", "q3", 0] == ("m says five", "m says six")


def test_an_endpoint_of_no_use_ends_it_and_keeps_what_there_is(tmp_path: Path) -> None:
    def act(body: dict[str, Any]) -> Raw | str:
        return refusal(401, "no credit") if last(body) == "four" else echo(body)

    with serving(act) as endpoint, pytest.raises(EvalError, match="no credit"):
        ask(tmp_path, endpoint=endpoint, concurrency=1)
    assert ("m", "q0", 0) in Evaluation(tmp_path).conversations()


@pytest.mark.parametrize("fields", [{"max_tokens": 5}, {"temperature": 0.3}, {"system": "x"}])
def test_other_settings_are_not_mixed_in(tmp_path: Path, fields: dict[str, Any]) -> None:
    with serving(echo) as endpoint:
        ask(tmp_path, endpoint=endpoint)
        with pytest.raises(EvalError, match="asked with other words or settings here; take another directory"):
            ask(tmp_path, endpoint=endpoint, **fields)
        with pytest.raises(EvalError, match="other questions were asked here"):
            asyncio.run(ask_models(Evaluation(tmp_path), QUESTIONS[1:], {}, Asking()))


def test_a_cut_answer_is_kept_and_counted(tmp_path: Path) -> None:
    with serving(lambda body: completion("so far", "length")) as endpoint:
        assert ask(tmp_path, endpoint=endpoint).num_cut == 6


def test_two_do_not_ask_at_once(tmp_path: Path) -> None:
    busy = pytest.raises(EvalError, match=r"another process is at it \(answers\)")
    with serving(echo) as endpoint, Evaluation(tmp_path).alone("answers"), busy:
        ask(tmp_path, endpoint=endpoint)


def test_killed_and_started_again_nothing_is_asked_twice_and_nothing_lost(tmp_path: Path) -> None:
    """One call at a time: at most the one that was under way is made again."""
    script = (
        "import asyncio, sys; from pathlib import Path\n"
        "from tests.ray_apps.evaluate.test_answers import *\n"
        "asyncio.run(ask_models(Evaluation(Path(sys.argv[1])), QUESTIONS, {'m': Target(sys.argv[2], 'm')},"
        " Asking(concurrency=1)))"
    )
    with serving(echo) as endpoint:
        endpoint.pause_s = 0.3
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), endpoint.url])
        deadline = time.monotonic() + 60
        while len(endpoint.asked) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        endpoint.pause_s = 0
        kept = len(Evaluation(tmp_path).answers())
        asked = len(endpoint.asked)
        assert kept in (asked - 1, asked)
        ask(tmp_path, endpoint=endpoint)
    assert len(endpoint.asked) - asked == 6 - kept
    assert len(Evaluation(tmp_path).answers()) == 6
