"""The composition root of serving: from settings to a Serve application. Resources and counts appear here only."""

import re
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.exceptions import RayServeException

from data_prep.errors import ConfigError, VicunaError
from ray_apps.machine import count_gpus, usable_cpus
from ray_apps.serve.config import ModelArgs, ServeArgs, resolve_models
from ray_apps.serve.ingress import Ingress
from ray_apps.serve.replica import Replica

# Loading a model fails the same way each time; a second try covers a node that was lost meanwhile.
_MAX_CONSTRUCTOR_TRIES = 2
# What else an ingress replica has to do at a time: health checks, refusals, and requests of which the body is to come.
_INGRESS_SPARE = 4096


def build_app(args: ServeArgs | dict[str, Any]) -> Application:
    """The application that serves the models of `args`.

    Serve passes the `args` of a config file as a dict, because the annotation is no single class: the errors are ours.

    Raises:
        RayServeException: it cannot be served; the message is one clear line, and Serve shows it as it is.
    """
    try:
        settings = args if isinstance(args, ServeArgs) else ServeArgs.parse(args, "args")
        resolved = choose_resources(resolve_models(settings))
    except VicunaError as error:
        raise RayServeException(str(error)) from None
    replicas = {
        model.served_name: serve.deployment(**replica_options(model))(Replica).bind(model)
        for model in resolved.all_models
    }
    return serve.deployment(**ingress_options(resolved))(Ingress).bind(resolved, replicas)


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
    threads = args.num_threads or max(1, usable_cpus() // num_replicas)
    return args.model_copy(update={"device": "cuda" if has_gpu else "cpu", "num_threads": threads})


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
        scale = {"autoscaling_config": args.autoscaling.model_dump()}
    return {
        "name": re.sub(r"[^\w.-]", "-", args.served_name, flags=re.ASCII),  # it is part of the names of log files
        **scale,
        **_devices(args),
        "max_ongoing_requests": args.max_ongoing_requests,
        "max_queued_requests": args.max_queued_requests,
        "graceful_shutdown_timeout_s": args.graceful_shutdown_timeout_s,
        "max_constructor_retry_count": _MAX_CONSTRUCTOR_TRIES,
    }


def _devices(args: ModelArgs) -> dict[str, Any]:
    """A device of its own; of several each is a bundle in one placement group, where vLLM puts its workers."""
    num_gpus = 1 if args.device == "cuda" else 0
    if args.num_devices == 1:
        return {"ray_actor_options": {"num_cpus": 1, "num_gpus": num_gpus}}
    return {
        "ray_actor_options": {"num_cpus": 1, "num_gpus": 0},
        "placement_group_bundles": [{"CPU": 1, **({"GPU": 1} if num_gpus else {})}] * args.num_devices,
        "placement_group_strategy": "STRICT_PACK",
    }


def ingress_options(args: ServeArgs) -> dict[str, Any]:
    """The ingress takes every request the replicas can work on or queue, and one more finds it open to be refused."""
    most = _INGRESS_SPARE + sum(
        model.max_replicas * model.max_ongoing_requests + model.max_queued_requests for model in args.all_models
    )
    return {
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": most,
        "graceful_shutdown_timeout_s": args.graceful_shutdown_timeout_s,
    }
