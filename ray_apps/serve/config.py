"""The settings of one served model: the `args` of an application in a Serve config file."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from data_prep.config import Settings
from data_prep.errors import ModelError
from data_prep.storage import TOKENIZER_FILES, is_hub_id, is_remote, local_model
from ray_apps.engine.build import Device, Dtype, EngineName

DEMO_MODEL = "artifacts/demo/model"


class Autoscaling(Settings):
    """Between how many replicas there are, and how many requests each should have on average."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    target_ongoing_requests: float = Field(2, gt=0)

    @field_validator("max_replicas")
    @classmethod
    def _is_not_below_min(cls, value: int, info: ValidationInfo) -> int:
        least = info.data.get("min_replicas", 1)
        if value < least:
            raise ValueError(f"{value} is not valid; expected min_replicas ({least}) or more")
        return value


class ServeArgs(Settings):
    """What is served, on what, and how much of it.

    `model` is a directory, an `s3://` path or a hub id; clients call it `model_name`, by default its last part.
    `engine`, `device`, `dtype` and `tensor_parallel_size` are chosen by what there is where they are `auto`.
    `max_model_len` bounds prompt and answer together, in tokens; by default it is what the model was made for.
    `num_threads` is the CPU threads of one replica; by default the machine's cores are shared among the replicas.
    A replica takes on `max_ongoing_requests`, `max_queued_requests` more may wait, and further ones get a 429. One that
    is stopped has `graceful_shutdown_timeout_s` to finish its answers.
    """

    model: str = Field(DEMO_MODEL, min_length=1)
    model_name: str | None = Field(None, min_length=1)
    engine: EngineName = "auto"
    device: Device = "auto"
    dtype: Dtype = "auto"
    tensor_parallel_size: Literal["auto"] | int = "auto"
    max_model_len: int | None = Field(None, ge=2)
    num_threads: int | None = Field(None, ge=1)
    num_replicas: int | None = Field(None, ge=1)
    autoscaling: Autoscaling | None = None
    max_ongoing_requests: int = Field(16, ge=1)
    max_queued_requests: int = Field(64, ge=1)
    graceful_shutdown_timeout_s: float = Field(60, ge=0)

    @field_validator("tensor_parallel_size")
    @classmethod
    def _runs_on_one_device(cls, value: str | int) -> str | int:
        if value not in ("auto", 1):
            raise ValueError(f"{value} is not valid; an engine runs on one device, so expected 'auto' or 1")
        return value

    @field_validator("autoscaling")
    @classmethod
    def _is_the_only_count(cls, value: Autoscaling | None, info: ValidationInfo) -> Autoscaling | None:
        if value is not None and info.data.get("num_replicas") is not None:
            raise ValueError("cannot be set together with num_replicas")
        return value

    @property
    def served_name(self) -> str:
        """What clients put into `model`."""
        return self.model_name or self.model.rstrip("/").rsplit("/", 1)[-1]

    @property
    def max_replicas(self) -> int:
        """The most replicas there may be."""
        return self.autoscaling.max_replicas if self.autoscaling else self.num_replicas or 1


def resolve_model(args: ServeArgs) -> ServeArgs:
    """`args` with a model directory made absolute, so that it means the same in every process.

    Of a model that is elsewhere only the small files are fetched here; its weights are loaded where they are needed.

    Raises:
        ModelError: there is no such model.
    """
    if args.engine == "fake":
        return args
    directory = Path(args.model).expanduser()
    if not directory.is_dir() and not is_remote(args.model) and not is_hub_id(args.model):
        raise ModelError(f"model directory {args.model} does not exist; run `make demo` or set args.model")
    local_model(args.model, TOKENIZER_FILES)
    if not directory.is_dir():
        return args
    return args.model_copy(update={"model": str(directory.absolute()), "model_name": args.served_name})
