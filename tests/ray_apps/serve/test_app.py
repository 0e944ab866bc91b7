"""The composition root, without a cluster."""

from typing import Any

import pytest
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.exceptions import RayServeException

from data_prep.errors import ConfigError
from ray_apps.serve.app import build_app, choose_page, choose_resources, ingress_options, replica_options
from ray_apps.serve.config import ServeArgs
from ray_apps.serve.policy import Page
from ray_apps.serve.scaling import Autoscaling


def test_the_arguments_of_a_config_file_are_read_strictly() -> None:
    builder: Any = build_app
    application = call_user_app_builder_with_args_if_necessary(builder, {"engine": "fake"})
    assert isinstance(application, Application)
    assert isinstance(
        call_user_app_builder_with_args_if_necessary(builder, {"engine": "fake", "num_replicas": "2"}), Application
    )
    with pytest.raises(RayServeException, match=r"^args\.modle: unknown field; did you mean 'model'\?[^\n]*$"):
        call_user_app_builder_with_args_if_necessary(builder, {"modle": "x"})


def test_an_absent_model_reaches_serve_as_one_line() -> None:
    with pytest.raises(
        RayServeException, match=r"^model directory no/such/place does not exist; run `make demo`[^\n]*$"
    ):
        build_app(ServeArgs(model="no/such/place"))


def test_a_gpu_is_reserved_only_where_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_apps.serve.app.count_gpus", lambda: 0)
    on_cpu = choose_resources(ServeArgs(engine="fake"))
    assert on_cpu.device == "cpu"
    assert replica_options(on_cpu)["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0}
    assert replica_options(ServeArgs(device="cuda"))["ray_actor_options"]["num_gpus"] == 1
    with pytest.raises(ConfigError, match=r"args\.device: 'cuda' is not valid"):
        choose_resources(ServeArgs(device="cuda"))


def test_each_device_of_a_replica_is_a_bundle_of_its_placement_group() -> None:
    options = replica_options(ServeArgs(engine="vllm", tensor_parallel_size=2, device="cuda"))
    assert options["placement_group_bundles"] == [{"CPU": 1, "GPU": 1}] * 2
    assert options["placement_group_strategy"] == "STRICT_PACK"
    assert options["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0}
    on_cpu = replica_options(ServeArgs(engine="vllm", tensor_parallel_size=2, device="cpu"))
    assert on_cpu["placement_group_bundles"] == [{"CPU": 1}] * 2
    native = replica_options(ServeArgs(engine="native", tensor_parallel_size=2, device="cuda"))
    assert native["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 1}


def test_cores_are_shared_among_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_apps.serve.app.usable_cpus", lambda: 8)
    assert choose_resources(ServeArgs(device="cpu")).num_threads == 8
    assert choose_resources(ServeArgs(device="cpu", num_replicas=3)).num_threads == 2
    assert choose_resources(ServeArgs(device="cpu", autoscaling=Autoscaling(max_replicas=20))).num_threads == 1
    assert choose_resources(ServeArgs(device="cpu", num_threads=5)).num_threads == 5


def test_replicas_are_counted_or_scaled() -> None:
    assert replica_options(ServeArgs())["num_replicas"] == 1
    assert replica_options(ServeArgs(num_replicas=3))["num_replicas"] == 3
    scaled = replica_options(ServeArgs(autoscaling=Autoscaling(min_replicas=2, max_replicas=5)))
    assert "num_replicas" not in scaled
    assert scaled["autoscaling_config"]["max_replicas"] == 5


@pytest.mark.parametrize("fields", [{}, {"num_replicas": 2}, {"autoscaling": Autoscaling(max_replicas=3)}])
def test_serve_takes_the_options(fields: dict[str, Any]) -> None:
    assert isinstance(build_app(ServeArgs(engine="fake", **fields)), Application)


def test_the_ingress_lets_more_in_than_the_replicas_take_so_that_it_can_refuse() -> None:
    args = ServeArgs(num_replicas=2, max_ongoing_requests=3, max_queued_requests=4)
    assert ingress_options(args)["max_ongoing_requests"] > 2 * 3 + 4


def test_the_page_is_there_where_its_packages_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_page(Page(is_shown="auto")).is_shown is True
    monkeypatch.setattr("ray_apps.serve.app.find_spec", lambda name: None)
    assert choose_page(Page(is_shown="auto")).is_shown is False
    with pytest.raises(ConfigError, match=r"args\.page\.is_shown: needs gradio; run `pip install"):
        choose_page(Page(is_shown=True))
    with pytest.raises(ConfigError, match=r"args\.page\.votes: 'votes.jsonl' is not valid; expected an absolute"):
        choose_page(Page(votes="votes.jsonl"))
