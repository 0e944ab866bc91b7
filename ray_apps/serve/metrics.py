"""What serving measures, under vLLM's names. Where the numbers go is for whoever passes a library of metrics.

Ray exports them as `ray_vllm_…` at the Prometheus endpoint of each node, counters with `_total` at the end. vLLM's own
server has a colon in the names (`vllm:prompt_tokens`), which Ray does not take.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ray_apps.engine.protocol import EngineStats
from ray_apps.serve.record import RequestRecord

_LATENCIES_S = [0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640]
_BETWEEN_TOKENS_S = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10]
_TOKENS = [1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072]


@dataclass(frozen=True)
class Metric:
    """A metric: `counter`, `gauge` or `histogram` with its boundaries."""

    kind: str
    name: str
    description: str
    labels: tuple[str, ...] = ("model_name",)
    boundaries: tuple[float, ...] = ()

    @property
    def exported_names(self) -> list[str]:
        """What it is called at Ray's Prometheus endpoint."""
        endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
        return [f"ray_{self.name}{ending}" for ending in endings[self.kind]]


def _histogram(name: str, description: str, boundaries: Sequence[float]) -> Metric:
    return Metric("histogram", name, description, boundaries=tuple(boundaries))


REQUEST_METRICS = (
    _histogram("vllm_time_to_first_token_seconds", "From a request to its first token", _LATENCIES_S),
    _histogram("vllm_request_queue_time_seconds", "From a request to when a replica takes it on", _LATENCIES_S),
    _histogram("vllm_inter_token_latency_seconds", "Between two pieces of an answer", _BETWEEN_TOKENS_S),
    _histogram(
        "vllm_request_time_per_output_token_seconds", "Per token after the first, over a request", _BETWEEN_TOKENS_S
    ),
    _histogram("vllm_e2e_request_latency_seconds", "From a request to the end of its answer", _LATENCIES_S),
    _histogram("vllm_request_prompt_tokens", "Tokens of a prompt", _TOKENS),
    _histogram("vllm_request_generation_tokens", "Tokens of all answers to a request", _TOKENS),
    Metric("counter", "vllm_prompt_tokens", "Tokens of prompts"),
    Metric("counter", "vllm_generation_tokens", "Tokens of answers"),
    Metric("counter", "vllm_prefix_cache_queries", "Tokens of prompts that were looked for in the cache"),
    Metric("counter", "vllm_prefix_cache_hits", "Tokens of prompts that were found in the cache"),
    Metric("counter", "vllm_request_success", "Answers that ended", ("model_name", "finished_reason")),
    Metric("counter", "vicuna_http_requests", "HTTP requests by status", ("status",)),
)
"""Measured where a request comes in."""

_WAITING = Metric(
    "gauge",
    "vllm_num_requests_waiting",
    "Requests that wait for a replica, and answers that wait for a place in its batch",
)

MODERATION_METRICS = (
    Metric("counter", "vicuna_moderations", "Texts that were judged, or should have been", ("where", "outcome")),
)
"""Measured where what is asked and answered is moderated."""

QUEUE_METRICS = (_WAITING,)
"""Measured where a request waits for a replica. Serve's tags tell its gauge from those of the replicas."""

ENGINE_METRICS = (
    Metric("gauge", "vllm_num_requests_running", "Answers that are being written"),
    _WAITING,
    Metric("gauge", "vllm_kv_cache_usage_perc", "Share of the cache in use, 0 to 1"),
)
"""Measured by each replica."""


class Meters:
    """`metrics` made with `library`: `ray.serve.metrics`, or whatever has its `Counter`, `Gauge` and `Histogram`."""

    def __init__(self, library: Any, metrics: tuple[Metric, ...]) -> None:
        self._meters = {metric.name: _make(library, metric) for metric in metrics}

    def add(self, name: str, amount: float, **labels: str) -> None:
        """Count `amount`; nothing where it is 0."""
        if amount:
            self._meters[name].inc(amount, tags=labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """One more value of a histogram."""
        self._meters[name].observe(value, tags=labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        """What a gauge shows from now on."""
        self._meters[name].set(value, tags=labels)


def _make(library: Any, metric: Metric) -> Any:
    arguments: dict[str, Any] = {"description": metric.description, "tag_keys": metric.labels}
    if metric.kind == "histogram":
        arguments["boundaries"] = list(metric.boundaries)
    return getattr(library, metric.kind.capitalize())(metric.name, **arguments)


class RequestMetrics:
    """What is told of each request."""

    def __init__(self, library: Any) -> None:
        self._meters = Meters(library, REQUEST_METRICS)

    def first_piece(self, model: str, seconds: float, queue_s: float) -> None:
        """There was a first piece of a request's answers, that long after it came; so long it had waited before."""
        self._meters.observe("vllm_time_to_first_token_seconds", seconds, model_name=model)
        self._meters.observe("vllm_request_queue_time_seconds", queue_s, model_name=model)

    def next_piece(self, model: str, seconds: float) -> None:
        """A further piece of an answer is there, that long after the one before."""
        self._meters.observe("vllm_inter_token_latency_seconds", seconds, model_name=model)

    def ended(self, record: RequestRecord) -> None:
        """A request is over; one of which no answer was begun counts by its status alone.

        Where an answer ended before its first token, what it took is not known, nor how much of its prompt was read.
        """
        self._meters.add("vicuna_http_requests", 1, status=str(record.status or "abandoned"))
        if record.model is None or not record.finish_reasons:
            return
        is_refused = {*record.finish_reasons} == {"content_filter"}
        if not record.num_prompt_tokens and not is_refused:
            return
        for reason in record.finish_reasons:
            self._meters.add("vllm_request_success", 1, model_name=record.model, finished_reason=reason)
        if record.first_token_s is None:
            return
        for name, value in _durations(record):
            self._meters.observe(name, value, model_name=record.model)
        for name, tokens in (
            ("vllm_prompt_tokens", record.num_prompt_tokens),
            ("vllm_generation_tokens", record.num_completion_tokens),
            ("vllm_prefix_cache_queries", record.num_prompt_tokens),
            ("vllm_prefix_cache_hits", record.num_cached_tokens),
        ):
            self._meters.add(name, tokens, model_name=record.model)


def _durations(record: RequestRecord) -> Iterator[tuple[str, float]]:
    assert record.first_token_s is not None
    yield "vllm_e2e_request_latency_seconds", record.elapsed_s
    yield "vllm_request_prompt_tokens", record.num_prompt_tokens
    yield "vllm_request_generation_tokens", record.num_completion_tokens
    if record.num_completion_tokens > 1 and record.last_token_s is not None:
        writing_s = record.last_token_s - record.first_token_s
        yield "vllm_request_time_per_output_token_seconds", writing_s / (record.num_completion_tokens - 1)


def keep_showing(show: Callable[[], None], period_s: float = 1.0) -> None:
    """Call `show` now and every so often, as long as the process runs."""

    def repeat() -> None:
        while True:
            show()
            time.sleep(period_s)

    threading.Thread(target=repeat, name="metrics", daemon=True).start()


class EngineMetrics:
    """What a replica tells of its engine."""

    def __init__(self, library: Any) -> None:
        self._meters = Meters(library, ENGINE_METRICS)

    def show(self, model: str, stats: EngineStats) -> None:
        """The engine of `model` does this now."""
        self._meters.set("vllm_num_requests_running", stats.num_running, model_name=model)
        self._meters.set("vllm_num_requests_waiting", stats.num_waiting, model_name=model)
        self._meters.set("vllm_kv_cache_usage_perc", stats.cache_usage, model_name=model)


class QueueMetrics:
    """What an ingress tells of those who wait."""

    def __init__(self, library: Any) -> None:
        self._meters = Meters(library, QUEUE_METRICS)

    def show(self, model: str, num_waiting: int) -> None:
        """So many requests wait for a replica of `model` now."""
        self._meters.set("vllm_num_requests_waiting", num_waiting, model_name=model)


class ModerationMetrics:
    """What is told of moderation."""

    def __init__(self, library: Any) -> None:
        self._meters = Meters(library, MODERATION_METRICS)

    def count(self, where: str, outcome: str) -> None:
        """A text of the `input`, of the `output` or of the `endpoint` has `passed`, was `flagged`, or it `failed`."""
        self._meters.add("vicuna_moderations", 1, where=where, outcome=outcome)
