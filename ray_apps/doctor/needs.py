"""What is to be checked: a recipe's demands as plain values, or this machine in general."""

from dataclasses import dataclass, field

from ray_apps.recipe import Recipe


@dataclass(frozen=True)
class Needs:
    """What a recipe asks of the machines; without one, what they have is taken."""

    num_workers: int | None = None
    """Worker processes; None: as many as there are GPUs, or two."""
    cpus_per_worker: int | None = None
    """CPUs of each; None: an equal share of what there is."""
    use_gpu: bool | None = None
    """None: if there is one."""
    precision: str | None = None
    """`bf16` or `fp32`; None: not known."""
    attention: str | None = None
    """As in the recipe; `flash_attention_2` asks for a package."""
    writes: dict[str, str] = field(default_factory=dict)
    """Field → path, on a disk or `s3://`, that workers write to."""
    datasets: dict[str, str] = field(default_factory=dict)
    """Field → dataset that workers read."""
    models: dict[str, str] = field(default_factory=dict)
    """Field → directory, `s3://` path or hub id."""
    num_checkpoints: int = 0
    """Checkpoints that lie in `train.run_dir` at most: those kept and the one being written."""
    lora: tuple[int, frozenset[str]] | None = None
    """Rank and layer names of adapters; None: every parameter is trained."""


MACHINE = Needs(writes={"current directory": "."})
"""No recipe: the machine in general."""


def needs_of(recipe: Recipe) -> Needs:
    """What a recipe's sections ask for together."""
    data, train = recipe.data, recipe.train
    if train is None:
        return MACHINE if data is None else Needs(writes={"data.output": data.output}, models=_tokenizer(recipe))
    lora = train.lora
    return Needs(
        num_workers=train.worker_range[0],
        cpus_per_worker=train.cpus_per_worker,
        use_gpu=None if train.use_gpu == "auto" else train.use_gpu,
        precision=train.precision,
        attention=train.attention,
        writes={"train.run_dir": train.run_dir, "train.output": train.output}
        | ({} if data is None else {"data.output": data.output}),
        datasets={"train.dataset": train.dataset},
        models={"train.model": train.model} | _tokenizer(recipe),
        num_checkpoints=train.checkpoint.keep_last + 1,
        lora=None if lora is None else (lora.r, frozenset(lora.target_modules)),
    )


def _tokenizer(recipe: Recipe) -> dict[str, str]:
    """The model that `data` takes the tokenizer of, where it is not the trained one."""
    if recipe.data is None or (recipe.train is not None and recipe.data.tokenizer == recipe.train.model):
        return {}
    return {"data.tokenizer": recipe.data.tokenizer}
