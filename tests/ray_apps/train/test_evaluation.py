"""The loss on held-out rows is that of the plain model, and looking at it changes nothing."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from data_prep.encode import IGNORE_INDEX
from data_prep.errors import ConfigError
from ray_apps.run_dir import RunDir
from ray_apps.train.checks import check_run
from ray_apps.train.config import TrainConfig
from ray_apps.train.data import RowStore, collate
from ray_apps.train.errors import Diverged
from ray_apps.train.loop import run_training
from tests import tiny
from tests.processes import CPU, run_ranks
from tests.ray_apps.train.test_loop import exported


@pytest.fixture(scope="module")
def held_out_dataset(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out") / "dataset"
    fields = {"template": "chatml", "context_length": 128, "eval_fraction": 0.2}
    return tiny.write_dataset(folder, tiny_model_dir, count=100, **fields)


def eval_losses(config: TrainConfig) -> dict[int, float]:
    records = RunDir(config.run_dir).read_metrics()
    return {record["step"]: record["eval_loss"] for record in records if "eval_loss" in record}


def test_a_loss_on_held_out_rows_that_is_no_number_ends_the_run(
    make_config: Callable[..., TrainConfig],
    held_out_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    process_group: None,
) -> None:
    monkeypatch.setattr("ray_apps.train.loop.held_out_loss", lambda *arguments, **options: float("nan"))
    config = make_config(dataset=str(held_out_dataset), max_steps=4, eval_every_steps=3)
    with pytest.raises(Diverged, match="step 3: the loss on the rows held out is nan"):
        run_training(config, CPU)
    assert RunDir(config.run_dir).latest_checkpoint().step == 2  # type: ignore[union-attr]


def plain_loss(model: Path, rows: RowStore) -> float:
    """Chat by chat, with the model's own cross-entropy."""
    causal_lm, total, count = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(), 0.0, 0
    for index in range(len(rows)):
        batch = collate([rows[index]])
        bounds = batch.cu_seq_lens.tolist()
        for start, end in pairwise(bounds):
            with torch.no_grad():
                logits = causal_lm(batch.input_ids[:, start:end]).logits[0]
            targets = batch.targets[0, start:end]
            trained = targets != IGNORE_INDEX
            total += float(torch.nn.functional.cross_entropy(logits[trained], targets[trained], reduction="sum"))
            count += int(trained.sum())
    return total / count


def test_it_is_the_loss_of_the_plain_model(
    make_config: Callable[..., TrainConfig], held_out_dataset: Path, process_group: None, tmp_path: Path
) -> None:
    looked = make_config(dataset=str(held_out_dataset), max_steps=5, eval_every_steps=2)
    run_training(looked, CPU, after_save=lambda measures: None)
    assert list(eval_losses(looked)) == [2, 4, 5]
    model = exported(looked)
    rows = RowStore(held_out_dataset / "eval")
    assert eval_losses(looked)[5] == pytest.approx(plain_loss(Path(looked.output), rows), rel=1e-5)

    blind = make_config(
        dataset=str(held_out_dataset),
        max_steps=5,
        run_dir=str(tmp_path / "blind"),
        output=str(tmp_path / "blind-model"),
    )
    run_training(blind, CPU, after_save=lambda measures: None)
    other = exported(blind)
    assert all(torch.equal(model[name], other[name]) for name in other)


@pytest.mark.slow
def test_it_does_not_depend_on_the_number_of_workers(
    make_config: Callable[..., TrainConfig], held_out_dataset: Path, tmp_path: Path
) -> None:
    assert len(RowStore(held_out_dataset / "eval")) % 4  # a rank runs out of rows before the other
    found = []
    for workers in (1, 2):
        config = make_config(
            dataset=str(held_out_dataset),
            run_dir=str(tmp_path / f"run-{workers}"),
            max_steps=2,
            eval_every_steps=1,
            num_workers=workers,
            micro_batch_size=2,
        )
        run_ranks(config, tmp_path / f"rendezvous-{workers}", workers)
        found.append(eval_losses(config))
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_without_held_out_rows_it_is_refused(make_config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match=r"train\.eval_every_steps: 10 is not valid: .* holds no rows out"):
        check_run(make_config(eval_every_steps=10))
