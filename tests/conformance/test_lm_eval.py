"""lm-eval on questions of our own, once through its own model and once through the endpoint."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ray_apps.evaluate.harness import run_benchmarks
from ray_apps.evaluate.records import Evaluation as Kept
from tests.conformance.conftest import KEY, Programs, Served

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TASKS = Path(__file__).parent / "tasks"


@dataclass(frozen=True)
class Evaluation:
    """What lm-eval wrote: the scores of each task, and what it had of the model for each question."""

    scores: dict[str, dict[str, Any]]
    samples: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tasks, which name their questions by a path."""
    folder = tmp_path_factory.mktemp("tasks")
    for task in TASKS.glob("*.yaml"):
        (folder / task.name).write_text(task.read_text().replace("QUESTIONS", str(TASKS / "questions.jsonl")))
    return folder


def evaluate(programs: Programs, tasks: Path, output: Path, model: str, *arguments: object) -> Evaluation:
    names = ("ours_choice", "ours_perplexity", "ours_answer")
    options = ("--include_path", tasks, "--output_path", output, "--log_samples")
    programs.run("lm_eval", "run", "--model", model, "--tasks", ",".join(names), *options, *arguments)
    (results,) = output.rglob("results_*.json")
    return Evaluation(json.loads(results.read_text())["results"], {name: samples(output, name) for name in names})


def samples(output: Path, task: str) -> list[dict[str, Any]]:
    (path,) = output.rglob(f"samples_{task}_*.jsonl")
    return sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["doc_id"])


@pytest.fixture(scope="module")
def evaluations(
    programs: Programs, served: Served, tasks: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Evaluation, Evaluation]:
    """Through its own model, and through the endpoint; side by side, for most of it is getting ready."""
    hf, api = tmp_path_factory.mktemp("hf"), tmp_path_factory.mktemp("api")
    itself = ("hf", "--device", "cpu", "-a", f"pretrained={served.directory},dtype=float32")
    endpoint = f"base_url={served.url}/completions,model=tiny,num_concurrent=2"
    asked = f"{endpoint},tokenizer={served.directory},tokenizer_backend=huggingface"
    with ThreadPoolExecutor(2) as pool:
        own = pool.submit(evaluate, programs, tasks, hf, *itself)
        ours = pool.submit(evaluate, programs, tasks, api, "local-completions", "--batch_size", 4, "-a", asked)
    return own.result(), ours.result()


@pytest.fixture(scope="module")
def own(evaluations: tuple[Evaluation, Evaluation]) -> Evaluation:
    return evaluations[0]


@pytest.fixture(scope="module")
def ours(evaluations: tuple[Evaluation, Evaluation]) -> Evaluation:
    return evaluations[1]


def test_the_scores_are_the_same(own: Evaluation, ours: Evaluation) -> None:
    for metric in ("acc,none", "acc_norm,none"):
        assert ours.scores["ours_choice"][metric] == own.scores["ours_choice"][metric]
    mine, others = (found.scores["ours_perplexity"]["word_perplexity,none"] for found in (ours, own))
    assert mine == pytest.approx(others, rel=1e-3)


@pytest.mark.parametrize("task", ["ours_choice", "ours_perplexity"])
def test_the_log_probabilities_are_the_same(own: Evaluation, ours: Evaluation, task: str) -> None:
    assert len(ours.samples[task]) == 8
    for mine, other in zip(ours.samples[task], own.samples[task], strict=True):
        assert mine["arguments"] == other["arguments"]
        assert likelihoods(mine) == pytest.approx(likelihoods(other), abs=1e-3)
    if task == "ours_choice":
        greedy = [[one[1] for one in sample["filtered_resps"]] for sample in ours.samples[task]]
        assert greedy == [[one[1] for one in sample["filtered_resps"]] for sample in own.samples[task]]


def likelihoods(sample: dict[str, Any]) -> list[float]:
    return [float(one[0] if isinstance(one, list) else one) for one in sample["filtered_resps"]]


def test_greedy_answers_are_the_same(own: Evaluation, ours: Evaluation) -> None:
    """But for bytes that are no characters, which a random model writes and the endpoint leaves out."""
    mine, others = ([sample["filtered_resps"][0] for sample in found.samples["ours_answer"]] for found in (ours, own))
    assert mine == [answer.replace("\N{REPLACEMENT CHARACTER}", "") for answer in others]
    assert any(answer.startswith(" ") for answer in mine)


@pytest.mark.filterwarnings("ignore")
def test_our_command_gives_the_same(
    own: Evaluation, served: Served, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    made = run_benchmarks(
        Kept(tmp_path), "tiny", ["ours_choice"], url=served.url, tokenizer=str(served.directory), include=tasks
    )
    scores = {score.metric: score.value for score in made.scores}
    assert scores["acc"] == own.scores["ours_choice"]["acc,none"]
    assert {score.num_samples for score in made.scores} == {8}
