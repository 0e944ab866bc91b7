"""A plan as tables in the terminal, and as one JSON object."""

import json
from dataclasses import asdict
from typing import Any

from rich.table import Table

from ray_apps.console import console
from ray_apps.train.config import TrainConfig
from ray_apps.train.plan import published
from ray_apps.train.plan.duration import DEFAULT_MFU
from ray_apps.train.plan.plan import Plan, find_rows, make_plan
from ray_apps.train.plan.published import GB, GIB, MIB, Comparison, ServingFigure

TIGHT = 0.1
"""Share of the GPU's memory below which what is left is called little."""


def report_plan(
    config: TrainConfig,
    gpu: str,
    context_length: int | None,
    *,
    num_rows: int | None = None,
    mfu: float | None = None,
    price: float | None = None,
    as_json: bool = False,
) -> None:
    """Plan the run of `config` and print it; see `make_plan` for what it raises."""
    share = DEFAULT_MFU if mfu is None else mfu
    plan = make_plan(config, gpu, find_rows(config, context_length, num_rows), share, price)
    comparison, figures = published.compare(share), published.serving_figures()
    if as_json:
        print(json.dumps(to_json(plan, comparison, figures), indent=2))
    else:
        show(plan, comparison, figures)


def to_json(plan: Plan, comparison: Comparison, figures: list[ServingFigure]) -> dict[str, Any]:
    """Everything that is printed; bytes, seconds, dollars."""
    peak = plan.memory.peak
    return {
        **asdict(plan),
        "peak": {"phase": peak.name, "bytes": peak.total_bytes},
        "fits": plan.free_bytes >= 0,
        "step_s": plan.duration.step_s,
        "published": {
            "reserved_mib": published.RESERVED_MIB,
            "num_steps": published.NUM_STEPS,
            "step_s": published.STEP_S,
            "planned_mib": comparison.plan.memory.peak.total_bytes / MIB,
            "planned_num_steps": comparison.plan.num_steps,
            "planned_step_s": comparison.plan.duration.step_s,
            "terms": [asdict(term) for term in comparison.terms],
            "unexplained_mib": comparison.unexplained_mib,
            "serving": [asdict(figure) for figure in figures],
        },
    }


def show(plan: Plan, comparison: Comparison, figures: list[ServingFigure]) -> None:
    """Print all of it."""
    _say(
        f"[bold]{plan.model}[/bold]: {plan.anatomy.parameters:,} weights, {plan.anatomy.trainable:,} of them trained; "
        f"config from {plan.config_source}. {plan.num_gpus} × {plan.gpu}, rows of {plan.rows.context_length:,} tokens."
    )
    console.print(_memory_table(plan))
    _say(_verdict(plan))
    _show_host(plan)
    _show_time(plan)
    console.print(_serving_table(plan))
    _show_published(comparison, figures)


def _say(text: str) -> None:
    console.print(text, soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    _say(f"\n[bold]{title}[/bold]")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", style="" if index else None)
    return table


def _memory_table(plan: Plan) -> Table:
    table = _table(f"Memory of a GPU at its peak: {plan.memory.peak.name}", "", "MiB")
    for part, size in plan.memory.peak.parts.items():
        table.add_row(part, f"{size / MIB:,.0f}")
    table.add_row("[bold]together", f"[bold]{plan.memory.peak.total_bytes / MIB:,.0f}")
    return table


def _verdict(plan: Plan) -> str:
    free, whole = plan.free_bytes / GIB, plan.gpu_memory_bytes / GIB
    if free < 0:
        return f"[red]Does not fit[/red]: {-free:.1f} GiB more than the {whole:.0f} GiB of a {plan.gpu}."
    spare = f"{free:.1f} of {whole:.0f} GiB are left for CUDA, NCCL and fragments of blocks, which are not counted"
    if free < TIGHT * whole:
        return f"[yellow]Fits, tightly[/yellow]: {spare}."
    return f"[green]Fits[/green]: {spare}."


def _show_host(plan: Plan) -> None:
    table = _table(f"Host memory, {plan.num_gpus} workers together", "", "GiB")
    for part, size in plan.memory.host_parts.items():
        table.add_row(part, f"{size * plan.num_gpus / GIB:,.1f}")
    console.print(table)


def _show_time(plan: Plan) -> None:
    duration, rows = plan.duration, plan.rows
    _say("\n[bold]Time[/bold]")
    _say(
        f"{duration.step_s:.2f} s a step, {rows.tokens:,.0f} tokens a row ({rows.source}): computing "
        f"{duration.compute_s:.2f} s at {plan.mfu:.0%} of the peak (--mfu), {duration.flops_per_token / 1e9:.1f} GFLOP "
        f"a token; beside it {duration.traffic_s:.2f} s of traffic between the GPUs of one machine."
    )
    _say(
        "Not counted: AdamW, loading, saving, traffic between machines, moving what `cpu_offload` keeps in host memory."
    )
    if plan.num_steps is None or plan.total_s is None:
        _say("Steps and cost need to know the rows: make the dataset with `vicuna prep`, or give --rows.")
        return
    cost = "" if plan.cost is None else f", ${plan.cost:,.2f}"
    _say(f"{plan.num_steps:,} steps, {plan.total_s / 3600:,.2f} h{cost}.")


def _serving_table(plan: Plan) -> Table:
    serving = plan.serving
    with_cache = f"with the cache of {serving.context_length:,} tokens"
    table = _table("Memory to serve it, GB (10^9 bytes)", "", "weights", with_cache)
    for precision, size in serving.weights_bytes.items():
        table.add_row(precision, f"{size / GB:.2f}", f"{(size + serving.cache_bytes) / GB:.2f}")
    return table


def _show_published(comparison: Comparison, figures: list[ServingFigure]) -> None:
    plan = comparison.plan
    table = _table(
        "The published run: LLaMA-7B, 2 × A800-80G, micro-batch 1, accumulation 8", "", "published", "planned"
    )
    table.add_row(
        "memory of a GPU, MiB",
        f"{published.RESERVED_MIB:,} reserved",
        f"{plan.memory.peak.total_bytes / MIB:,.0f} live",
    )
    table.add_row("steps", str(published.NUM_STEPS), str(plan.num_steps))
    table.add_row(
        "seconds a step", f"{published.STEP_S:.2f}", f"{plan.duration.step_s:.2f} at {plan.mfu:.0%} of the peak"
    )
    console.print(table)
    for term in comparison.terms:
        _say(f"  {term.mib:8,.0f} MiB  {term.words}")
    _say(f"  {comparison.unexplained_mib:8,.0f} MiB  left over, of {published.RESERVED_MIB:,}")
    _say(f"The published time is {comparison.mfu:.0%} of the peak. {' '.join(published.REMARKS)}")
    console.print(_published_serving_table(figures))


def _published_serving_table(figures: list[ServingFigure]) -> Table:
    table = _table("Published for serving, GB", "", "published", "weights", "with 2,048 tokens")
    for figure in figures:
        whole = figure.weights_bytes + figure.cache_bytes
        table.add_row(figure.words, str(figure.published_gb), f"{figure.weights_bytes / GB:.1f}", f"{whole / GB:.1f}")
    return table
