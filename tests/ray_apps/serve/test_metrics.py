import json
import re
from collections import Counter as Tally
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ray_apps.engine.protocol import EngineStats
from ray_apps.serve.metrics import (
    ENGINE_METRICS,
    QUEUE_METRICS,
    REQUEST_METRICS,
    EngineMetrics,
    QueueMetrics,
    RequestMetrics,
)
from ray_apps.serve.record import RequestRecord


@dataclass
class Meter:
    name: str
    tag_keys: tuple[str, ...]
    values: list[tuple[float, dict[str, str]]] = field(default_factory=list)

    def record(self, value: float, tags: dict[str, str]) -> None:
        assert tuple(tags) == self.tag_keys
        self.values.append((value, tags))

    inc = observe = set = record


class Library:
    """Has the constructors of Ray's, and keeps what it is told."""

    def __init__(self) -> None:
        self.meters: dict[str, Meter] = {}

    def Counter(self, name: str, *, description: str, tag_keys: tuple[str, ...]) -> Meter:
        assert description
        return self.meters.setdefault(name, Meter(name, tag_keys))

    Gauge = Counter

    def Histogram(self, name: str, *, description: str, tag_keys: tuple[str, ...], boundaries: list[float]) -> Meter:
        assert boundaries == sorted(set(boundaries))
        assert boundaries[0] > 0
        return self.Counter(name, description=description, tag_keys=tag_keys)

    def told(self, name: str) -> list[Any]:
        return [value for value, _ in self.meters[name].values]


def record(**fields: Any) -> RequestRecord:
    made = RequestRecord(model="m", status=200, first_token_s=0.5, finish_reasons=["stop", "length"])
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_a_request_is_told_once_it_is_over() -> None:
    library = Library()
    metrics = RequestMetrics(library)
    metrics.first_piece("m", 0.5, 0.1)
    metrics.next_piece("m", 0.02)
    metrics.ended(record(num_prompt_tokens=7, num_cached_tokens=3, num_completion_tokens=5, last_token_s=2.5))
    assert library.told("vllm_time_to_first_token_seconds") == [0.5]
    assert library.told("vllm_request_queue_time_seconds") == [0.1]
    assert library.told("vllm_inter_token_latency_seconds") == [0.02]
    assert library.told("vllm_prompt_tokens") == library.told("vllm_prefix_cache_queries") == [7]
    assert library.told("vllm_prefix_cache_hits") == [3]
    assert library.told("vllm_generation_tokens") == [5]
    reasons = Tally(tags["finished_reason"] for _, tags in library.meters["vllm_request_success"].values)
    assert reasons == {"stop": 1, "length": 1}
    assert len(library.told("vllm_e2e_request_latency_seconds")) == 1
    assert library.told("vllm_request_time_per_output_token_seconds") == [0.5]


def test_a_request_that_no_model_answered_counts_by_its_status_alone() -> None:
    library = Library()
    metrics = RequestMetrics(library)
    metrics.ended(RequestRecord(status=401))
    metrics.ended(record(status=None, first_token_s=None))
    statuses = [tags for _, tags in library.meters["vicuna_http_requests"].values]
    assert statuses == [{"status": "401"}, {"status": "abandoned"}]
    assert not library.told("vllm_request_success")


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_ends_before_its_first_token_counts_without_its_prompt(reason: str) -> None:
    library = Library()
    ended = record(status=None, first_token_s=None, num_prompt_tokens=7, finish_reasons=[reason])
    RequestMetrics(library).ended(ended)
    assert library.meters["vllm_request_success"].values == [(1, {"model_name": "m", "finished_reason": reason})]
    assert not library.told("vllm_prompt_tokens")
    assert not library.told("vllm_e2e_request_latency_seconds")
    assert not library.told("vllm_prefix_cache_queries")


def test_an_engine_shows_what_it_does() -> None:
    library = Library()
    metrics = EngineMetrics(library)
    metrics.show("m", EngineStats(num_running=2, num_waiting=1, cache_usage=0.25))
    told = {name: library.told(name) for name in library.meters}
    assert told == {
        "vllm_num_requests_running": [2],
        "vllm_num_requests_waiting": [1],
        "vllm_kv_cache_usage_perc": [0.25],
    }


def test_those_who_wait_for_a_replica_have_the_name_of_those_who_wait_in_one() -> None:
    library = Library()
    metrics = QueueMetrics(library)
    metrics.show("m", 3)
    metrics.show("m", 0)
    assert library.told("vllm_num_requests_waiting") == [3, 0]
    assert set(QUEUE_METRICS) <= set(ENGINE_METRICS)


def test_every_name_is_there_once() -> None:
    names = [name for metric in REQUEST_METRICS + ENGINE_METRICS for name in metric.exported_names]
    assert len(set(names)) == len(names)
    assert "ray_vllm_prompt_tokens_total" in names
    assert "ray_vllm_time_to_first_token_seconds_bucket" in names


def test_the_dashboard_asks_for_what_is_exported() -> None:
    dashboard = json.loads((Path(__file__).parents[3] / "docs/grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    exported = {name: metric for metric in REQUEST_METRICS + ENGINE_METRICS for name in metric.exported_names}
    for query in queries:
        names = re.findall(r"\bray_\w+", query)
        assert names
        for name in names:
            assert name in exported
            labels = set(re.findall(r"(\w+)=~", query)) | set(re.findall(r"by \(([\w, ]+)\)", query))
            assert labels <= {*exported[name].labels, "le", "replica"}, query
    asked = {exported[name].name for query in queries for name in re.findall(r"\bray_\w+", query)}
    assert asked == {metric.name for metric in REQUEST_METRICS + ENGINE_METRICS}


def test_the_dashboard_offers_models_that_run_and_adapters_that_answered() -> None:
    dashboard = json.loads((Path(__file__).parents[3] / "docs/grafana.json").read_text())
    (model,) = [variable for variable in dashboard["templating"]["list"] if variable["name"] == "model"]
    assert model["definition"] == model["query"]["query"]
    names = set(re.findall(r"\bray_\w+", model["definition"]))
    for metrics in (ENGINE_METRICS, REQUEST_METRICS):  # Those of an engine name its model, never an adapter.
        found = [metric for metric in metrics if names & set(metric.exported_names)]
        assert found
        assert all("model_name" in metric.labels for metric in found)
