"""The composition root of serving: from settings to a Serve application. Resources and counts appear here only."""

import os
import re
from importlib.util import find_spec
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.exceptions import RayServeException

from data_prep.errors import ConfigError, VicunaError
from data_prep.moderation import build_moderator, check_categories
from ray_apps.engine.build import choose_engine
from ray_apps.machine import count_gpus, gpu_memory, usable_cpus
from ray_apps.serve.arguments import read_arguments
from ray_apps.serve.config import ModelArgs, ServeArgs, resolve_models
from ray_apps.serve.devices import needed_devices
from ray_apps.serve.guard_model import CATEGORIES as HAZARDS
from ray_apps.serve.ingress import Ingress
from ray_apps.serve.policy import Moderation, Page
from ray_apps.serve.replica import Replica
from ray_apps.serve.replica_router import AffinityRouter

# Loading a model fails the same way each time; a second try covers a node that was lost meanwhile.
_MAX_CONSTRUCTOR_TRIES = 2
# A resource that only the head node has.
_HEAD = "node:__internal_head__"
# How soon a replica that died, or is beyond help, is noticed.
_HEALTH_CHECK_PERIOD_S = 2
# What else an ingress replica has to do at a time: health checks, refusals, and requests of which the body is to come.
_INGRESS_SPARE = 4096
# How long a place in a replica may stay empty while a request waits: Serve looks that often.
_MAX_BACKOFF_S = 0.1


def build_app(args: ServeArgs | dict[str, Any]) -> Application:
    """The application that serves the models of `args`.

    Serve passes the `args` of a config file, or the texts of its command line, as a dict, because the annotation is no
    single class: the errors are ours.

    Raises:
        RayServeException: it cannot be served; the message is one clear line, and Serve shows it as it is.
    """
    try:
        settings = args if isinstance(args, ServeArgs) else ServeArgs.parse(read_arguments(args), "args")
        check_moderation(settings.moderation)
        settings = settings.model_copy(update={"page": choose_page(settings.page)})
        resolved = choose_resources(resolve_models(settings))
    except VicunaError as error:
        raise RayServeException(str(error)) from None
    return compose(resolved)


def check_moderation(settings: Moderation) -> None:
    """Return if there can be such a moderator.

    Raises:
        ConfigError: what it needs is missing or wrong.
    """
    if settings.kind == "llm":
        assessed = sorted({*HAZARDS.values()})
        check_categories(assessed, settings.thresholds, settings.allowed, "args.moderation")
    elif settings.kind != "off":
        build_moderator(settings.moderator, "args.moderation", settings.timeout_s)


def choose_page(page: Page) -> Page:
    """`page`, where `auto` is whether its packages are installed.

    Raises:
        ConfigError: they are not and it is to be shown, or its votes cannot be kept where they should be.
    """
    is_possible = find_spec("gradio") is not None
    if page.is_shown == "auto":
        page = page.model_copy(update={"is_shown": is_possible})
    if page.is_shown and not is_possible:
        raise ConfigError("args.page.is_shown: needs gradio; run `pip install 'vicuna-ray[ui]'`")
    if page.votes and not os.path.isabs(page.votes):
        raise ConfigError(f"args.page.votes: {page.votes!r} is not valid; expected an absolute path on the head")
    return page


def compose(args: ServeArgs, replica: type[Replica] = Replica) -> Application:
    """The deployments of `args`: a `replica` for each model, and the ingress before them."""
    replicas = {
        model.served_name: serve.deployment(**replica_options(model))(replica).bind(model) for model in args.all_models
    }
    return serve.deployment(**ingress_options(args))(Ingress).bind(args, replicas)


def choose_resources(args: ServeArgs) -> ServeArgs:
    """`args` with devices instead of `auto`, CUDA where the cluster has a GPU or can get one, and numbers of threads.

    Raises:
        ConfigError: CUDA is asked for where there is none.
    """
    models = args.all_models
    num_replicas = sum(model.max_replicas for model in models)
    return args.with_models([_choose_resources(model, num_replicas) for model in models])


def _choose_resources(args: ModelArgs, num_replicas: int) -> ModelArgs:
    has_gpu = args.engine != "fake" and args.device != "cpu" and _cluster_has_gpu()
    if args.device == "cuda" and not has_gpu:
        raise ConfigError("args.device: 'cuda' is not valid; the cluster has no GPU, so expected 'auto' or 'cpu'")
    if args.device_map and not has_gpu:
        raise ConfigError("args.device_map: 'auto' is not valid; the cluster has no GPU")
    size = args.num_devices
    if has_gpu and args.tensor_parallel_size == "auto" and not args.device_map and not args.quantize:
        size = needed_devices(args.model, gpu_memory())
    threads = args.num_threads or max(1, usable_cpus() // (num_replicas * size))
    chosen = {"device": "cuda" if has_gpu else "cpu", "num_threads": threads, "tensor_parallel_size": size}
    return args.model_copy(update=chosen)


def _cluster_has_gpu() -> bool:
    """Whether some node has a GPU, or the autoscaler may start one that has; before Ray is up, whether this one has."""
    if not ray.is_initialized():
        return count_gpus() > 0
    possible = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    present: dict[str, float] = ray.cluster_resources()
    return present.get("GPU", 0) >= 1 or possible.get("GPU", 0) >= 1


def replica_options(args: ModelArgs) -> dict[str, Any]:
    """What the replicas of a model are called, how many there are, what each takes, and how many requests it takes on.

    Serve numbers those of the same name.
    """
    scale: dict[str, Any] = {"num_replicas": args.num_replicas or 1}
    if args.autoscaling:
        scale = {"autoscaling_config": args.autoscaling.for_serve(args.max_ongoing_requests)}
    return {
        "name": re.sub(r"[^\w.-]", "-", args.served_name, flags=re.ASCII),  # it is part of the names of log files
        **scale,
        **_devices(args),
        "max_ongoing_requests": args.max_ongoing_requests,
        "request_router_config": {"request_router_class": AffinityRouter, "max_backoff_s": _MAX_BACKOFF_S},
        "graceful_shutdown_timeout_s": args.graceful_shutdown_timeout_s,
        "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
        "max_constructor_retry_count": _MAX_CONSTRUCTOR_TRIES,
        "max_surge_percent": _surge_percent(args),
    }


def _devices(args: ModelArgs) -> dict[str, Any]:
    """A device of its own; of several each is a bundle in one placement group.

    The replica itself is in the first. There it holds the first shard, unless vLLM puts workers of its own everywhere.
    """
    num_gpus = args.num_gpus if args.device == "cuda" else 0
    if args.num_devices == 1:
        return {"ray_actor_options": {"num_cpus": 1, "num_gpus": num_gpus}}
    uses_vllm = choose_engine(args.engine, args.device) == "vllm"
    return {
        "ray_actor_options": {"num_cpus": 1, "num_gpus": 0 if uses_vllm else num_gpus},
        "placement_group_bundles": [{"CPU": 1, **({"GPU": 1} if num_gpus else {})}] * args.num_devices,
        "placement_group_strategy": "STRICT_PACK",
    }


def _surge_percent(args: ModelArgs) -> int:
    """Whether an update starts a new replica before it stops an old one: if the cluster has room for one more now."""
    needed = "GPU" if args.device == "cuda" else "CPU"
    free = ray.available_resources().get(needed, 0) if ray.is_initialized() else 0
    return 1 if free >= args.num_devices else 0


def ingress_options(args: ServeArgs) -> dict[str, Any]:
    """The ingress takes every request the replicas can work on or queue, and one more finds it open to be refused.

    It runs on the head, which is not preempted: one process knows all queues and where each chat was answered.
    """
    most = _INGRESS_SPARE + sum(
        model.max_replicas * model.max_ongoing_requests + model.max_queued_requests for model in args.all_models
    )
    return {
        "ray_actor_options": {"num_cpus": 0, "resources": {_HEAD: 0.001}},
        "max_ongoing_requests": most,
        "graceful_shutdown_timeout_s": max(model.graceful_shutdown_timeout_s for model in args.all_models),
        "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
    }
