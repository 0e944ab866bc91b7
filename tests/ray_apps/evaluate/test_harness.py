"""Standard benchmarks through lm-eval: a task from local files, a model directory and an endpoint of ours."""

import json
from pathlib import Path

import pytest

from data_prep.errors import EvalError
from ray_apps.evaluate.harness import read_benchmarks, run_benchmarks
from ray_apps.evaluate.records import Evaluation

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    items = [("France", 0), ("Italy", 1), ("France", 0), ("Italy", 1)]
    lines = [
        json.dumps({"question": f"The capital of {land}?", "choices": ["Paris", "Rome"], "answer": answer})
        for land, answer in items
    ]
    (folder / "capitals.jsonl").write_text("\n".join(lines))
    (folder / "capitals.yaml").write_text(
        f"""task: capitals
dataset_path: json
dataset_kwargs:
  data_files: {folder}/capitals.jsonl
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
    )
    return folder


def test_a_model_directory_does_a_task(task: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    evaluation = Evaluation(tmp_path / "eval")
    made = run_benchmarks(
        evaluation, "tiny", ["capitals"], directory=str(tiny_model_dir), include=task, limit=2, device="cpu"
    )
    (score,) = made.scores
    assert (score.task, score.metric, score.num_samples) == ("capitals", "acc", 2)
    assert 0 <= score.value <= 1
    assert read_benchmarks(evaluation) == [made]


def test_a_task_that_is_not_known_is_told(task: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="--tasks: 'capitols' is no task of lm-eval or of"):
        run_benchmarks(Evaluation(tmp_path), "tiny", ["capitols"], directory=str(tiny_model_dir), include=task)


def test_a_model_that_is_not_there_is_one_line(task: Path, tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="lm-eval: tiny: "):
        run_benchmarks(Evaluation(tmp_path), "tiny", ["capitals"], directory=str(tmp_path / "none"), include=task)
