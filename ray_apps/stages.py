"""The stages of the main job as a person runs them: each with a progress bar, each skipped when it is already done."""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from data_prep.config import DataConfig
from data_prep.inputs import find_dataset
from data_prep.manifest import Manifest
from data_prep.pipeline import prepare_dataset
from ray_apps.console import Stage, console, stage
from ray_apps.evaluate.config import EvalConfig
from ray_apps.goodput import account, find_recoveries
from ray_apps.local_ray import local_cluster
from ray_apps.model_dir import local_model_dir
from ray_apps.run_dir import RunDir
from ray_apps.serve.config_file import ServeFile
from ray_apps.train.config import TrainConfig

Records = list[dict[str, Any]]

TOLD = ("error", "notice", "save_failed", "lag", "hang", "stopped", "warning")
"""Events that a person is told of while a run goes on."""


def prep_stage(config: DataConfig, *, fresh: bool = False) -> Manifest:
    """Chats to a dataset."""
    with stage("prep") as shown:
        shown.update(0, text="looking at the chats")
        manifest = None if fresh else find_dataset(config)
        done = manifest is not None
        if manifest is None:
            progress, cluster = _PrepProgress(shown).show, partial(local_cluster, dashboard=False)
            manifest = prepare_dataset(config, fresh=fresh, on_progress=progress, cluster=cluster)
        counts, lost = manifest.train, manifest.counts.with_lost_bytes
        dropped = sum(manifest.counts.dropped.values())
        shown.finish(
            f"{config.output}: {counts.conversations} chats in {counts.rows} rows, {counts.tokens:,} tokens, "
            f"{counts.fill:.0%} full, {dropped} dropped"
            f"{f', {lost} with characters that the tokenizer lacks' if lost else ''}{_already(done)}"
        )
    return manifest


class _PrepProgress:
    """Records and their rate on the progress bar."""

    def __init__(self, shown: Stage) -> None:
        self.shown = shown
        self.started = time.monotonic()

    def show(self, records: int, share: float) -> None:
        rate = records / (time.monotonic() - self.started)
        self.shown.update(min(share, 1.0), 1.0, f"{records:,} records, {rate:,.0f}/s")


def train_stage(
    config: TrainConfig, *, fresh: bool = False, on_records: Callable[[Records], None] = lambda records: None
) -> None:
    """A dataset and a base model to a finished run; resumes where an earlier attempt stopped."""
    from ray_apps.train.checks import check_run, count_run_steps
    from ray_apps.train.launch import train
    from ray_apps.train.receipt import environment, run_receipt

    began = time.time()
    with stage("train") as shown:
        shown.update(0, text="checking")
        run, manifest = RunDir(config.run_dir), check_run(config)
        if fresh:
            run.remove()
        run.check_receipt(run_receipt(config, manifest), environment(config))
        num_steps = count_run_steps(config, manifest)
        progress = _TrainProgress(shown, num_steps)
        latest = run.latest_checkpoint()
        done = latest is not None and latest.step == num_steps

        def on_progress(records: Records) -> None:
            progress.show(records)
            on_records(records)

        if not done:
            shown.update(0, num_steps, "starting workers")
            with local_cluster():
                train(config, on_progress=on_progress, began=began)
        records = run.read_metrics()
        shown.finish(f"{config.run_dir}: {num_steps} steps{_summary(records)}{_already(done)}")
    if not done:
        _show_goodput(config, manifest, records)


class _TrainProgress:
    """Steps, loss and speed of a run on its progress bar."""

    def __init__(self, shown: Stage, num_steps: int) -> None:
        self.shown = shown
        self.num_steps = num_steps

    def show(self, records: Records) -> None:
        for record in records:
            if record.get("event") in TOLD:
                what = record.get("message") or ", ".join(f"{name} {record[name]}" for name in record if name != "time")
                console.print(f"[yellow]![/yellow] {escape(record['event'])}: {escape(what)}", soft_wrap=True)
            if record.get("event") == "start":
                self.shown.update(record["step"], self.num_steps, f"from step {record['step']}")
            elif "loss" in record:
                self.shown.update(
                    record["step"],
                    self.num_steps,
                    f"step {record['step']}/{self.num_steps}  loss {record['loss']:.3f}  "
                    f"lr {record['learning_rate']:.1e}  {record['tokens_per_s']:.0f} tokens/s",
                )


def _show_goodput(config: TrainConfig, manifest: Manifest, records: Records) -> None:
    """Where the time went, and what share of the devices' operations the model used."""
    from ray_apps.train.utilisation import model_flops_per_token, peak_flops

    goodput = account(records)
    table = Table("Where the time went", "seconds", "share")
    for name, seconds in goodput.buckets().items():
        table.add_row(name, f"{seconds:.1f}", f"{seconds / goodput.elapsed:.0%}")
    console.print(table)
    last = next((record for record in reversed(records) if "matmul_flops" in record), None)
    if not goodput.productive or last is None:
        return
    counts = manifest.train
    context = counts.tokens / max(1, counts.conversations)
    needed = model_flops_per_token(local_model_dir(config.model), context, config.lora)
    peak, source = peak_flops(last["device"], last["matmul_flops"])
    workers = last["num_workers"]
    used = needed * goodput.tokens / goodput.productive / (workers * peak)
    console.print(
        f"{goodput.tokens / goodput.productive:,.0f} tokens/s, {needed / 1e9:.2f} GFLOP each: model FLOPs utilisation "
        f"{used:.1%} of {workers * peak / 1e12:.2f} TFLOP/s ({source}); peak memory of the first worker "
        f"{last['peak_bytes'] / 1e9:.1f} GB",
        soft_wrap=True,
    )


def _summary(records: Records) -> str:
    losses = [record["loss"] for record in records if "loss" in record]
    held_out = [record["eval_loss"] for record in records if "eval_loss" in record]
    recoveries = len(find_recoveries(records))
    restarts = f", resumed {recoveries} time{'s' if recoveries > 1 else ''}" if recoveries else ""
    attention = next((f", {record['attention']}" for record in records if "attention" in record), "")
    evaluated = f", held out {held_out[-1]:.3f}" if held_out else ""
    return f", loss {losses[0]:.3f} → {losses[-1]:.3f}{evaluated}{restarts}{attention}" if losses else ""


def export_stage(config: TrainConfig, *, fresh: bool = False) -> Path:
    """The newest complete checkpoint to a model directory."""
    from ray_apps.train.export import export, is_exported

    with stage("export") as shown:
        shown.update(0, text="writing safetensors")
        done = not fresh and is_exported(config)
        directory = Path(config.output) if done else export(config)
        shown.finish(f"{directory}{_already(done)}")
    return directory


def eval_stages(config: EvalConfig, train: TrainConfig, *, fresh: bool = False) -> None:
    """The base and the tuned model answer, are judged, and the report is written.

    Raises:
        EvalError: not all of it was done; the report holds what was.
    """
    from ray_apps.evaluate.contest import BASE, TUNED, hold, prepare_base, remove
    from ray_apps.evaluate.records import Evaluation
    from ray_apps.serve.config_file import HttpOptions, ServeApplication
    from ray_apps.serve.run import serving

    tuned, output = local_model_dir(train.output), Path(config.output)
    if fresh:
        remove(output)
    base = prepare_base(local_model_dir(train.model), tuned, output)
    models = [{"model": str(base), "model_name": BASE}, {"model": str(tuned), "model_name": TUNED}]
    application = ServeApplication.parse({"import_path": "ray_apps.serve.app:build_app", "args": {"models": models}})
    with ExitStack() as endpoint:
        with stage("serve") as shown:
            shown.update(0, text="starting both models")
            file = ServeFile(http_options=HttpOptions(port=0), applications=[application])
            url = endpoint.enter_context(serving(file))
            shown.finish(url)
        paths = hold(Evaluation(output), config, url)
    console.print(f"The report: [bold]{escape(str(paths[0]))}[/bold]", soft_wrap=True)


def serve_until_interrupted(file: ServeFile) -> None:
    """Serve a model until Ctrl-C."""
    from ray_apps.serve.run import serving

    with ExitStack() as endpoint:
        with stage("serve") as shown:
            shown.update(0, text="starting")
            url = endpoint.enter_context(serving(file))
            shown.finish(url)
        names = ", ".join(model.served_name for model in file.application.args.all_models)
        console.print(f"[bold]{names}[/bold] at {url}/v1 until Ctrl-C.", soft_wrap=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        console.print("Stopping: answers under way are finished.")


def _already(done: bool) -> str:
    return " (already there)" if done else ""
