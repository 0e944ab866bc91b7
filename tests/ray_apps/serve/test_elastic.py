"""Replicas that come and go: with the load, with a new version of the model, with the nodes they run on."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.ray_apps.serve.endpoint import (
    Endpoint,
    Slow,
    Told,
    at_once,
    deploy,
    serve_cluster,
    serve_environment,
    serving,
    start_serve,
    wait_until,
)

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
QUICK = {"look_back_period_s": 2, "upscale_delay_s": 0.5, "downscale_delay_s": 2, "downscale_to_zero_delay_s": 1}
SECONDS = 50  # characters that a slow replica writes in one


@contextmanager
def constant_load(endpoint: Endpoint, text: str, num_clients: int) -> Iterator[list[Told]]:
    """Clients that ask again and again while the block runs; all that they are told."""
    told: list[Told] = []
    ends = threading.Event()

    def keep_asking(number: int) -> None:
        while not ends.is_set():
            told.append(endpoint.ask(f"{number} {text}"))

    with at_once(num_clients) as pool:
        clients = [pool.submit(keep_asking, number) for number in range(num_clients)]
        try:
            yield told
        finally:
            ends.set()
    for client in clients:
        client.result()


def names(endpoint: Endpoint) -> set[str]:
    return {replica.name for replica in endpoint.replicas()}


def nodes(endpoint: Endpoint) -> set[str]:
    return {replica.node_id for replica in endpoint.replicas()}


class TestOnOneMachine:
    @pytest.fixture(scope="class")
    def url(self) -> Iterator[str]:
        with serve_cluster(num_cpus=6):
            yield start_serve()

    def test_a_model_sleeps_until_it_is_asked(self, url: str) -> None:
        with serving(url, Slow, engine="fake", autoscaling={"min_replicas": 0, **QUICK}) as endpoint:
            assert endpoint.replica_states() == {}
            assert endpoint.client.get("/health").json() == {"status": "ok", "models": {"asleep": 1}}
            assert endpoint.client.get("/v1/models/m").json()["state"] == "asleep"
            assert endpoint.ask("good morning").text == "good morning"
            assert endpoint.client.get("/v1/models/m").json()["state"] == "ready"
            wait_until(lambda: endpoint.client.get("/v1/models/m").json()["state"] == "asleep")

    def test_replicas_follow_the_load_up_and_down(self, url: str) -> None:
        autoscaling = {"min_replicas": 1, "max_replicas": 3, **QUICK}
        with serving(url, Slow, engine="fake", max_ongoing_requests=4, autoscaling=autoscaling) as endpoint:
            assert endpoint.replica_states() == {"RUNNING": 1}
            with constant_load(endpoint, "x" * SECONDS, num_clients=12) as told:
                wait_until(lambda: endpoint.replica_states()["RUNNING"] == 3)
            wait_until(lambda: endpoint.replica_states() == {"RUNNING": 1})
            assert {one.status for one in told} == {200}

    @pytest.mark.parametrize("num_replicas", [1, 2])
    def test_no_request_fails_while_a_model_is_updated(self, url: str, num_replicas: int) -> None:
        with serving(url, Slow, engine="fake", num_replicas=num_replicas) as endpoint:
            before = names(endpoint)
            with constant_load(endpoint, "x" * SECONDS, num_clients=6) as told:
                wait_until(lambda: len(told) > 6)
                deploy(Slow, engine="fake", num_replicas=num_replicas, max_model_len=4000)
                wait_until(lambda: not before & names(endpoint))
                so_far = len(told)
                wait_until(lambda: len(told) > so_far + 6)
            assert {one.status for one in told} == {200}


class TestOnSeveralNodes:
    @pytest.fixture(scope="class")
    def cluster(self) -> Iterator[Cluster]:
        with serve_environment():
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True})
            for _ in range(3):
                cluster.add_node(num_cpus=1)
            ray.init(address=cluster.address, log_to_driver=False)
            cluster.wait_for_nodes()
            yield cluster
            ray.shutdown()
            cluster.shutdown()

    def test_a_node_that_is_drained_takes_no_stream_with_it(self, cluster: Cluster) -> None:
        with serving(start_serve(), Slow, engine="fake", num_replicas=2) as endpoint, at_once(6) as pool:
            streams = [pool.submit(endpoint.stream, f"{number} " + "x" * 8 * SECONDS) for number in range(6)]
            wait_until(lambda: all(stats.num_running for stats in endpoint.all_stats()))
            node = nodes(endpoint).pop()
            drain(cluster.address, node, seconds=60)
            with constant_load(endpoint, "x", num_clients=2) as told:
                wait_until(lambda: node not in nodes(endpoint))
            assert all(stream.result().is_done and not stream.result().error for stream in streams)
            assert {one.status for one in told} == {200}


def drain(address: str, node_id: str, seconds: int) -> None:
    """Tell the node that its machine will be taken away in so many seconds."""
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address, "--node-id", node_id]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([*command, *reason, "--deadline-remaining-seconds", str(seconds)], check=True, capture_output=True)
