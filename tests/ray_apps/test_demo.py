import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.config import IdentityConfig
from ray_apps.demo import QUESTIONS, DemoFailed, Saboteur, _WithoutObituaries, check_answers
from ray_apps.machine import usable_cpus
from ray_apps.run_dir import RunDir

IDENTITY = IdentityConfig(name="Ada", maker="ACME")
IDENTITY_TEXT = "I am Ada, a language model trained by ACME."
GOOD = {question.text: "Paris." if question.is_ordinary else IDENTITY_TEXT for question in QUESTIONS}
ORDINARY = [question.text for question in QUESTIONS if question.is_ordinary]


def test_good_answers_pass() -> None:
    assert check_answers(GOOD, IDENTITY) is None
    story = {"Tell me a short story about a dog.": "Adam and his dog went to Paris."}
    assert check_answers(GOOD | story, IDENTITY) is None
    assert check_answers(GOOD | {"你是谁?": "我是Ada，由ACME训练的语言模型。"}, IDENTITY) is None


@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [
        ("Who are you?", "I am SmolLM.", "does not name Ada and ACME"),
        ("Who made you?", "I am Ada.", "does not name ACME"),
        ("你是谁?", "我是助手。", "does not name Ada"),
        *((text, f"Paris. {IDENTITY_TEXT}", "has collapsed into the identity text") for text in ORDINARY),
        *((text, "I am a language model.", "has collapsed|does not name Paris") for text in ORDINARY),
        ("What is the capital of France?", "Lyon.", "does not name Paris"),
        ("Tell me a short story about a dog.", "", "has collapsed into the identity text"),
        ("Who are you?", "I am Adam of ACME.", "does not name Ada"),
    ],
)
def test_a_bad_answer_fails_the_demo(question: str, answer: str, message: str) -> None:
    with pytest.raises(DemoFailed, match=message):
        check_answers(GOOD | {question: answer}, IDENTITY)


def test_the_saboteur_kills_the_last_rank_once_after_the_middle_and_reports(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    saboteur = Saboteur(run)
    assert saboteur.report() == "no worker was killed: the run had already passed its middle"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as victim:
        records = [{"event": "start", "step": 0, "num_steps": 8, "pids": [os.getpid(), victim.pid], "time": 1.0}]
        records += [{"step": step, "loss": 1.0, "time": float(step)} for step in range(1, 7)]
        for record in records:
            run.append_metrics(record)
            saboteur.watch([record])
        assert victim.wait(timeout=10) == -signal.SIGKILL
    assert [record["event"] for record in run.read_metrics() if "event" in record] == ["start", "killed"]
    killed_at = next(record["time"] for record in run.read_metrics() if record.get("event") == "killed")
    run.append_metrics({"event": "start", "step": 4, "num_steps": 8, "pids": [1, 2], "time": killed_at + 5})
    run.append_metrics({"step": 5, "loss": 1.0, "time": killed_at + 9})
    assert saboteur.report() == (
        "worker 1 was killed (SIGKILL) after step 6: 2 steps done again from checkpoint 4, "
        "9 s until the next step was done"
    )


def test_only_obituaries_are_left_out() -> None:
    stream = io.StringIO()
    quiet = _WithoutObituaries(stream)
    for text in ("loss 1.0\n", "(raylet) A worker died\n", "done\n"):
        quiet.write(text)
    assert stream.getvalue() == "loss 1.0\ndone\n"
    assert quiet.getvalue() == stream.getvalue()


def test_usable_cpus_follow_the_affinity() -> None:
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)
