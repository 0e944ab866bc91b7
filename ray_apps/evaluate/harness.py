"""Standard benchmarks through EleutherAI's lm-evaluation-harness (Gao et al. 2024), next to the judge's figures."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from data_prep.errors import EvalError
from data_prep.storage import write_text
from ray_apps.evaluate.records import Evaluation, file_name


class Score(BaseModel):
    """One figure of one task: `value` and its standard error, where there is one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    metric: str
    value: float
    stderr: float | None
    num_samples: int


class Benchmarks(BaseModel):
    """What a model reached. `source`: its directory, or its endpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    source: str
    versions: dict[str, str]
    scores: tuple[Score, ...]


def run_benchmarks(
    evaluation: Evaluation,
    name: str,
    tasks: Sequence[str],
    *,
    directory: str | None = None,
    url: str | None = None,
    served_name: str | None = None,
    tokenizer: str | None = None,
    include: Path | None = None,
    limit: int | None = None,
    device: str = "auto",
    key: str | None = None,
) -> Benchmarks:
    """Have the model called `name`, in `directory` or as `served_name` behind `url`, do `tasks`; keep what it reached.

    `include`: a directory with tasks of one's own. `limit`: so many samples of each task.

    Raises:
        EvalError: lm-eval is not installed, a task is not known, or the run fails.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise EvalError("benchmarks need lm-eval; run `pip install 'vicuna-ray[eval]'`")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include is None else str(include))
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise EvalError(
            f"--tasks: {unknown[0]!r} is no task of lm-eval{'' if include is None else f' or of {include}'}"
        )
    kind, arguments = _model(served_name or name, directory, url, tokenizer, key)
    chosen = {"device": _device(device)} if directory else {}
    try:
        found: Any = simple_evaluate(
            model=kind,
            model_args=arguments,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            log_samples=False,
            batch_size=1,
            **chosen,
        )
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise EvalError(f"lm-eval: {name}: {type(error).__name__}: {reason}") from error
    made = Benchmarks(
        model=name,
        source=directory or url or "",
        versions={task: str(version) for task, version in found["versions"].items()},
        scores=tuple(_scores(found)),
    )
    folder = evaluation.directory / "benchmarks"
    folder.mkdir(exist_ok=True)
    write_text(folder / f"{file_name(name)}.json", made.model_dump_json(indent=1))
    return made


def read_benchmarks(evaluation: Evaluation) -> list[Benchmarks]:
    """What models reached, in the order of their names.

    Raises:
        EvalError: a file is none of ours; naming it.
    """
    found = []
    for path in sorted((evaluation.directory / "benchmarks").glob("*.json")):
        try:
            found.append(Benchmarks.model_validate_json(path.read_bytes()))
        except ValueError as error:
            raise EvalError(f"{path}: {str(error).partition(chr(10))[0]}") from None
    return found


def _model(
    name: str, directory: str | None, url: str | None, tokenizer: str | None, key: str | None
) -> tuple[str, dict[str, Any]]:
    if directory is not None:
        return "hf", {"pretrained": directory, "trust_remote_code": False}
    assert url is not None
    base = url.rstrip("/")
    base = base if base.endswith("/v1") else f"{base}/v1"
    os.environ.setdefault("OPENAI_API_KEY", key or "none")  # lm-eval takes it from there
    backend = {"tokenizer_backend": "huggingface", "tokenizer": tokenizer} if tokenizer else {"tokenizer_backend": None}
    return "local-completions", {
        "model": name,
        "base_url": f"{base}/completions",
        "tokenized_requests": tokenizer is not None,
        **backend,
    }


def _device(device: str) -> str:
    if device != "auto":
        return device
    from ray_apps.machine import count_gpus

    return "cuda" if count_gpus() else "cpu"


def _scores(found: Mapping[str, Any]) -> list[Score]:
    """Numbers with a metric's name, `acc,none`, and not of their errors."""
    scores = []
    for task, values in found["results"].items():
        count = int(found["n-samples"].get(task, {}).get("effective", values.get("sample_len", 0)))
        for key, value in values.items():
            metric, comma, rest = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, float | int):
                continue
            error = values.get(f"{metric}_stderr,{rest}")
            stderr = float(error) if isinstance(error, float | int) else None
            scores.append(Score(task=task, metric=metric, value=float(value), stderr=stderr, num_samples=count))
    return scores
