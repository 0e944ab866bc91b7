"""The HTTP side: what a Serve deployment runs to answer the API by asking the replicas. It needs no torch."""

import logging
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import metrics
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from data_prep.moderation import build_moderator
from ray_apps.serve.api import create_api
from ray_apps.serve.auth import load_keys
from ray_apps.serve.config import ModelArgs, ServeArgs
from ray_apps.serve.guard_model import GuardModel
from ray_apps.serve.guards import guarded
from ray_apps.serve.jobs import Backend
from ray_apps.serve.metered import MeteredBackend
from ray_apps.serve.metrics import ModerationMetrics, QueueMetrics, RequestMetrics, keep_showing
from ray_apps.serve.moderation import Judge, Moderating, ThreadedJudge, moderated
from ray_apps.serve.rate_limits import Rates
from ray_apps.serve.replicas import QueueLimits, ReplicaBackend
from ray_apps.serve.request_log import Journal, open_log
from ray_apps.serve.routing import ServedModel

logger = logging.getLogger(__name__)


@serve.ingress()
class Ingress:
    """Answers HTTP for the models of `args`, each of which has `replicas` under its name.

    API keys are read here, where they are needed, and are never part of `args`, which Serve shows.
    """

    def __init__(self, args: ServeArgs, replicas: dict[str, DeploymentHandle[Any]]) -> None:
        self._args = args
        self._keys = load_keys(args.security.api_keys_file)
        if not self._keys:
            whom = "anybody" if args.security.allow_open else "this machine alone"
            logger.warning("no API key is configured: answering %s; see VICUNA_API_KEYS", whom)
        request_metrics = RequestMetrics(metrics)
        write_line = open_log(args.logging.requests) if args.logging.requests else None
        self._journal = Journal(write_line, with_texts=args.logging.texts, metrics=request_metrics)
        self._rates = Rates(args.limits.requests_per_minute, args.limits.tokens_per_minute)
        backends = {
            model.served_name: ReplicaBackend(replicas[model.served_name], queue_limits(model))
            for model in args.all_models
        }
        self._moderating = _moderating(args, backends)
        self._models = [
            ServedModel(
                model.served_name,
                MeteredBackend(
                    moderated(backends[model.served_name], self._moderating),
                    model.served_name,
                    limits=args.limits,
                    metrics=request_metrics,
                    with_texts=args.logging.texts,
                ),
                tuple(model.aliases),
                tuple(model.adapters),
                request_timeout_s=model.request_timeout_s,
            )
            for model in args.all_models
        ]
        queue_metrics = QueueMetrics(metrics)
        keep_showing(lambda: _show_queues(queue_metrics, backends))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The app that Serve runs; it asks for it after the constructor. Serve's proxy names the requests."""
        api = guarded(
            create_api(self._models, self._moderating),
            self._keys,
            self._args.security,
            self._args.limits,
            rates=self._rates,
            journal=self._journal,
            names_requests=False,
        )
        if not self._args.page.is_shown:
            return api
        from ray_apps.serve.web.mounting import WithPage, mount_page

        guard = self._args.moderation.model if self._args.moderation.kind == "llm" else None
        talkers = [model for model in self._models if model.name != guard]
        page = mount_page(talkers, self._args.page, self._keys, self._rates, self._journal)
        return WithPage(api, page, self._keys, allow_open=self._args.security.allow_open)


def _moderating(args: ServeArgs, backends: Mapping[str, Backend]) -> Moderating | None:
    """What moderates, if anything does."""
    settings = args.moderation
    if settings.kind == "off":
        return None
    judge: Judge = (
        GuardModel(backends[settings.model or ""], settings.model or "")
        if settings.kind == "llm"
        else ThreadedJudge(build_moderator(settings.moderator, "args.moderation", settings.timeout_s))
    )
    return Moderating(judge, settings, ModerationMetrics(metrics).count)


def _show_queues(queue_metrics: QueueMetrics, backends: dict[str, ReplicaBackend]) -> None:
    for model, backend in backends.items():
        queue_metrics.show(model, backend.num_waiting)


def queue_limits(args: ModelArgs) -> QueueLimits:
    """Who may wait for a replica of the model."""
    return QueueLimits(
        args.max_ongoing_requests,
        args.max_queued_requests,
        args.max_replicas,
        timeout_s=args.queue_timeout_s,
        may_sleep=args.autoscaling is not None and args.autoscaling.min_replicas == 0,
    )
