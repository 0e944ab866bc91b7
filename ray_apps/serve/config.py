"""What is served: the `args` of an application in a Serve config file."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from data_prep.config import Settings
from data_prep.errors import ModelError
from data_prep.storage import TOKENIZER_FILES, is_hub_id, is_remote, local_model
from ray_apps.engine.build import EngineName
from ray_apps.engine.options import Device, Dtype, Quantization
from ray_apps.serve.jobs import Truncation
from ray_apps.serve.policy import Limits, Moderation, Page, RequestLogging, Security
from ray_apps.serve.scaling import Autoscaling

DEMO_MODEL = "artifacts/demo/model"


Name = Annotated[str, Field(min_length=1)]


class ModelArgs(Settings):
    """One model: which, on what, and how much of it. `auto` chooses by what there is."""

    model: str = Field(DEMO_MODEL, min_length=1)
    """A directory, an `s3://` path or a hub id."""
    model_name: str | None = Field(None, min_length=1)
    """What clients call it; by default the last part of `model`."""
    aliases: list[Name] = Field(default=[])
    """Other names for it."""
    adapters: dict[Name, Annotated[str, Field(min_length=1)]] = Field(default={})
    """LoRA adapters of the model: a directory for each name under which clients ask the model through it."""
    max_loaded_adapters: int = Field(8, ge=1)
    """Adapters that a replica holds at a time; others are loaded when they are asked for."""
    engine: EngineName = "auto"
    """What generates: `auto` is vLLM on a GPU that has it, else `native`. `fake` echoes, without a model."""
    engine_args: dict[str, Any] = Field(default={})
    """Further arguments of vLLM's `AsyncEngineArgs`, such as `gpu_memory_utilization`; for that engine."""
    device: Device = "auto"
    """Where: `auto` is a GPU if the cluster has one or can get one."""
    dtype: Dtype = "auto"
    """Of the weights; `auto` keeps that of the files."""
    quantize: Quantization | None = None
    """Weights quantised by bitsandbytes as they are loaded; for the native engine."""
    tensor_parallel_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Devices of one replica, which divide every layer among them. `auto`: as many GPUs as its weights need."""
    device_map: Literal["auto"] | None = None
    """`auto` spreads layers over the `num_gpus` of a replica instead, quantised ones too; for the native engine."""
    num_gpus: int = Field(1, ge=1)
    """GPUs of one replica with a `device_map`."""
    max_memory: dict[int | Literal["cpu"], Annotated[str, Field(pattern=r"^\d+(\.\d+)?\s?[KMG]i?B$")]] = Field(
        default={}
    )
    """What `device_map` may put on each GPU, by its number, such as `{0: 20GiB}`."""
    max_model_len: int | None = Field(None, ge=2)
    """Tokens of prompt and answer together; by default what the model was made for."""
    truncate: Truncation = "off"
    """Of a chat that is too long, with room for its answer: refuse it, or leave its `oldest_turns` out."""
    num_threads: int | None = Field(None, ge=1)
    """CPU threads of a replica; by default the machine's cores are shared among the replicas."""
    num_replicas: int | None = Field(None, ge=1)
    """A fixed number of replicas; one by default."""
    autoscaling: Autoscaling | None = None
    """Instead of `num_replicas`: as many as the load asks for."""
    max_ongoing_requests: int = Field(16, ge=1)
    """Requests a replica takes on at a time, and answers it works on."""
    max_queued_requests: int = Field(64, ge=1)
    """Answers that may wait beyond those that all replicas work on; requests for further ones get a 429 at once."""
    queue_timeout_s: float | None = Field(None, gt=0)
    """Seconds a request may wait for a replica before it gets a 503; by default as long as it may take in all."""
    stream_interval_s: float = Field(0.2, ge=0)
    """Where many streams are written, the longest that tokens wait to be sent together; 0: each is sent at once."""
    request_timeout_s: float | None = Field(600, gt=0)
    """Seconds a request may take in all, its wait included; a client may ask for less by `X-Request-Timeout`."""
    graceful_shutdown_timeout_s: float = Field(60, ge=0)
    """Seconds a replica that is stopped has to finish its answers."""

    @model_validator(mode="after")
    def _is_divided_in_one_way(self) -> Self:
        if self.num_devices > 1:
            for field in ("quantize", "device_map"):
                if getattr(self, field):
                    raise ValueError(f"{field}: cannot be set together with tensor_parallel_size {self.num_devices}")
            if self.adapters and self.engine == "native":
                raise ValueError("adapters: cannot be set together with tensor_parallel_size on engine 'native'")
        if (self.num_gpus > 1) != bool(self.device_map):
            raise ValueError("device_map: 'auto' and a num_gpus of 2 or more are set together, or neither")
        if self.max_memory and not self.device_map:
            raise ValueError("max_memory: is for a device_map; expected device_map 'auto' beside it")
        return self

    @field_validator("autoscaling")
    @classmethod
    def _is_the_only_count(cls, value: Autoscaling | None, info: ValidationInfo) -> Autoscaling | None:
        if value is not None and info.data.get("num_replicas") is not None:
            raise ValueError("cannot be set together with num_replicas")
        return value

    @model_validator(mode="after")
    def _has_each_name_once(self) -> Self:
        if twice := _repeated(self.names):
            raise ValueError(f"aliases: {twice!r} names two things: model_name, aliases and adapters must all differ")
        return self

    @property
    def names(self) -> list[str]:
        """All names that clients may put into `model`, its own first."""
        return [self.served_name, *self.aliases, *self.adapters]

    @property
    def served_name(self) -> str:
        """What clients put into `model`."""
        return self.model_name or self.model.rstrip("/").rsplit("/", 1)[-1]

    @property
    def num_devices(self) -> int:
        """Devices of one replica."""
        return 1 if self.tensor_parallel_size == "auto" else self.tensor_parallel_size

    @property
    def max_replicas(self) -> int:
        """The most replicas there may be."""
        return self.autoscaling.max_replicas if self.autoscaling else self.num_replicas or 1


def _repeated(names: Iterable[str]) -> str | None:
    """The first name that is there twice."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


class ServeArgs(ModelArgs):
    """What an application serves: the one model of these fields, or several."""

    models: list[ModelArgs] = Field(default=[])
    """Several models, each with the fields of one; those fields are not set beside it then."""
    security: Security = Security()
    """Who may ask."""
    limits: Limits = Limits()
    """How much may be asked for."""
    logging: RequestLogging = RequestLogging()
    """What is written down of each request."""
    moderation: Moderation = Moderation()
    """What is judged before it is answered or told."""
    page: Page = Page()
    """The chat page."""

    @field_validator("models")
    @classmethod
    def _all_names_differ(cls, value: list[ModelArgs]) -> list[ModelArgs]:
        owners: dict[str, int] = {}
        for number, model in enumerate(value):
            for name in model.names:
                if name in owners:
                    raise ValueError(f"{name!r} names both models.{owners[name]} and models.{number}")
                owners[name] = number
        return value

    @model_validator(mode="after")
    def _is_one_model_or_several(self) -> Self:
        beside = sorted(self.model_fields_set & ModelArgs.model_fields.keys())
        if self.models and beside:
            raise ValueError(f"{beside[0]}: cannot be set beside models; set it in each of them")
        return self

    @model_validator(mode="after")
    def _serves_its_guard(self) -> Self:
        names = [model.served_name for model in self.all_models]
        if self.moderation.kind == "llm" and self.moderation.model not in names:
            raise ValueError(f"moderation.model: {self.moderation.model!r} is not served; valid: {', '.join(names)}")
        return self

    @property
    def all_models(self) -> list[ModelArgs]:
        """The models, the first one first."""
        fields = self.model_dump(include={*ModelArgs.model_fields}, exclude_unset=True)
        return self.models or [ModelArgs.model_validate(fields)]

    def with_models(self, models: Sequence[ModelArgs]) -> Self:
        """These settings with other `models`, as many as there are."""
        if self.models:
            return self.model_copy(update={"models": list(models)})
        (model,) = models
        return self.model_copy(update={name: getattr(model, name) for name in model.model_fields_set})


def resolve_models(args: ServeArgs) -> ServeArgs:
    """`args` with each model as `resolve_model` makes it.

    Raises:
        ModelError: as `resolve_model`.
    """
    return args.with_models([resolve_model(model) for model in args.all_models])


def resolve_model(args: ModelArgs) -> ModelArgs:
    """`args` with a model directory made absolute, so that it means the same in every process.

    Of a model that is elsewhere only the small files are fetched here; its weights are loaded where they are needed.

    Raises:
        ModelError: there is no such model, or a directory lacks what a model needs.
    """
    if args.engine == "fake":
        return args
    adapters = {name: _resolve_adapter(name, directory) for name, directory in args.adapters.items()}
    args = args.model_copy(update={"adapters": adapters}) if adapters else args
    directory = Path(args.model).expanduser()
    if not directory.is_dir() and not is_remote(args.model) and not is_hub_id(args.model):
        raise ModelError(f"model directory {args.model} does not exist; run `make demo` or set args.model")
    local_model(args.model, TOKENIZER_FILES)
    if not directory.is_dir():
        return args
    if not any(directory.glob("*.safetensors")):
        raise ModelError(f"model {args.model!r}: it has no *.safetensors weights")
    return args.model_copy(update={"model": str(directory.absolute()), "model_name": args.served_name})


def _resolve_adapter(name: str, directory: str) -> str:
    """Its path made absolute. Whether it fits the model is looked at where that is loaded."""
    path = Path(directory).expanduser()
    if not (path / "adapter_config.json").is_file():
        raise ModelError(f"args.adapters.{name}: {directory} has no adapter_config.json; expected peft's directory")
    return str(path.absolute())
