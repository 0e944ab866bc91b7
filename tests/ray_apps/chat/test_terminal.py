"""`vicuna chat` as a person sees it, in a real terminal, and as a program does, through pipes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ray_apps.chat.scripted import Script, refusal
from tests.ray_apps.chat.terminal import ROOT, Terminal

pytestmark = pytest.mark.slow

UP, CTRL_C, CTRL_D, ESCAPE = "\x1b[A", "\x03", "\x04", "\x1b"
MARKDOWN = """# 标题

Some **bold** text.

```python
def f(x):
    return '中文'
```

| 名字 | n |
|---|---|
| 小猫 | 1 |
"""


def start(url: str, home: Path, *words: str, **size: int) -> Terminal:
    terminal = Terminal("--url", url, *words, home=home, **size)
    terminal.wait_for("/help lists commands")
    terminal.wait_for("\n>")
    return terminal


def test_a_person_talks(script: Script, url: str, tmp_path: Path) -> None:
    script.replies = [MARKDOWN]
    terminal = start(url, tmp_path)
    terminal.type("你好，写代码\r")
    terminal.wait_for("小猫")
    assert script.requests[0]["messages"] == [{"role": "user", "content": "你好，写代码"}]
    line = next(number for number, text in enumerate(terminal.screen.display) if "def f" in text)
    cells = terminal.screen.buffer[line]
    at = terminal.screen.display[line].index("def f")
    assert cells[at].fg != cells[at + 6].fg, "code is not highlighted"
    assert "**" not in terminal.text
    assert "�" not in terminal.text

    terminal.type(UP)
    terminal.wait_for("> 你好，写代码")
    terminal.type(" 再来\r")
    terminal.wait_for("echo: 你好，写代码 再来")
    terminal.type("/stats\r")
    terminal.wait_for("prompt_tokens 7")
    terminal.type("/help\r")
    terminal.wait_for("/regenerate")
    terminal.type(CTRL_D)
    assert terminal.end() == 0

    again = start(url, tmp_path)  # what was typed in the chat before comes back
    again.type(UP + UP + UP)
    again.wait_for("> 你好，写代码 再来")
    again.type(CTRL_C + "/exit\r")
    assert again.end() == 0


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(script: Script, url: str, tmp_path: Path) -> None:
    script.pause_s = 0.02
    script.replies = ["0123456789 " * 500]
    terminal = start(url, tmp_path, "--style", "simple")
    terminal.type("count\r")
    terminal.wait_for("0123456789")
    terminal.type(CTRL_C)
    terminal.wait_for("stopped")
    assert script.has_left.wait(10)
    terminal.type("and now?\r")
    terminal.wait_for("echo: and now?")
    said = script.requests[1]["messages"][1]
    assert said["role"] == "assistant"
    assert said["content"].startswith("0123456789")
    assert len(said["content"]) < 5000
    terminal.type("/exit\r")
    assert terminal.end() == 0


def test_several_lines_and_an_edited_question(script: Script, url: str, tmp_path: Path) -> None:
    terminal = start(url, tmp_path, "--multiline")
    terminal.type("one\rtwo" + ESCAPE + "\r")
    terminal.wait_for("echo: one")
    assert script.requests[0]["messages"][0]["content"] == "one\ntwo"
    terminal.type("/edit" + ESCAPE + "\r")
    terminal.wait_for(lambda: terminal.text.count("two") >= 3)
    terminal.type(" three" + ESCAPE + "\r")
    terminal.wait_for("three", 10)
    terminal.wait_for(lambda: len(script.requests) == 2)
    assert script.requests[1]["messages"] == [{"role": "user", "content": "one\ntwo three"}]
    terminal.type(CTRL_D)
    assert terminal.end() == 0


def test_wide_characters_keep_their_columns(script: Script, url: str, tmp_path: Path) -> None:
    script.replies = ["| 名字 | number |\n|---|---|\n| 小猫咪 | 1 |\n| ab | 2 |\n"]
    terminal = start(url, tmp_path)
    terminal.type("表格\r")
    terminal.wait_for("小猫咪")
    terminal.wait_for(lambda: "ab" in terminal.text and terminal.text.rstrip().endswith(">"))
    columns = set()
    for number, line in enumerate(terminal.screen.display):
        for figure in ("number", "1", "2"):
            if line.strip().endswith(figure) and ("名字" in line or "小猫咪" in line or "ab" in line):
                cells = terminal.screen.buffer[number]
                columns.add(next(column for column in range(80) if cells[column].data == figure[0]))
    assert len(columns) == 1, terminal.text
    terminal.type(CTRL_D)
    terminal.end()


def test_a_long_answer_is_whole_on_a_small_screen(script: Script, url: str, tmp_path: Path) -> None:
    script.replies = ["```python\n" + "".join(f"line_{number} = {number}\n" for number in range(60)) + "```\n\nthe end"]
    terminal = start(url, tmp_path, lines=12)
    terminal.type("long\r")
    terminal.wait_for("the end")
    terminal.wait_for(lambda: terminal.text.rstrip().endswith(">"))
    for number in range(60):
        assert terminal.text.count(f"line_{number} = ") == 1
    terminal.type(CTRL_D)
    terminal.end()


def piped(url: str, home: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(home), "PYTHONPATH": str(ROOT), "LC_ALL": "C"}
    command = [sys.executable, "-m", "ray_apps.cli", "chat", "--url", url, *words]
    return subprocess.run(command, input=text, capture_output=True, encoding="utf-8", env=environment, timeout=60)


def test_pipes_need_no_terminal(script: Script, url: str, tmp_path: Path) -> None:
    done = piped(url, tmp_path, "你好\nsecond\n", "--system", "brief")
    assert (done.returncode, done.stdout, done.stderr) == (0, "echo: 你好\necho: second\n", "")
    assert [message["role"] for message in script.requests[1]["messages"]] == ["system", "user", "assistant", "user"]
    whole = piped(url, tmp_path, "one\ntwo\n", "--multiline")
    assert whole.stdout == "echo: one\ntwo\n"


def test_a_program_reads_json_lines(script: Script, url: str, tmp_path: Path) -> None:
    script.replies = ["abc", refusal(429, "all taken", **{"Retry-After": "2"})]
    done = piped(url, tmp_path, "hi\nagain\n", "--style", "programmatic")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["ready", "open", "piece", "end", "error"]
    assert events[3]["finish_reason"] == "stop"
    assert events[3]["completion_tokens"] == 1
    assert events[4]["text"] == "busy; try again in 2 s: all taken"
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--url", "http://127.0.0.1:1"], "error: http://127.0.0.1:1/v1 cannot be reached"),
        (["--model", "nowhere"], "error: model 'nowhere': no such directory"),
        (["--model", "a", "--url", "b"], "error: --model: cannot be set together with --url"),
        (["--model", "a", "--load-8bit", "--load-4bit"], "error: --load-8bit: cannot be set together with"),
        (["--model", "a", "--num-gpus", "64"], "64 GPUs are wanted; here are"),
        ([], "error: give --model DIR or --url URL"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ray_apps.cli", "chat", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_small_real_model_talks(tiny_model_dir: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ray_apps.cli", "chat", "--model", str(tiny_model_dir), "--max-new-tokens", "4"]
    command += ["--style", "programmatic", "--temperature", "0", "--device", "cpu"]
    done = subprocess.run(command, input="hi\n", capture_output=True, encoding="utf-8", cwd=tmp_path, env=environment)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["event"] in ("end", "notice"), done.stderr
    end = next(event for event in events if event["event"] == "end")
    assert end["completion_tokens"] in range(1, 5)
