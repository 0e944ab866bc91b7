"""The files a cluster is started from, checked offline by Ray's own code."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import click
import psutil
import pytest
import yaml

from data_prep.chat_template import TEMPLATES
from ray_apps.recipe import RECIPES, load_recipe, spot_section
from ray_apps.serve.environment import VARIABLES
from ray_apps.spot.commands import watch
from ray_apps.spot.launch_state import Cluster
from ray_apps.spot.launcher import RayClusters
from tests import s3
from tests.ray_apps.spot import aws

ROOT = Path(__file__).parent.parent


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_the_cluster(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert set(prepared["available_node_types"]) == {"head", "cpu", "gpu"}


def test_ray_refuses_an_unknown_field(cluster: dict[str, Any]) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster["available_node_types"]["gpu"]["spot"] = True
    with pytest.raises(ValidationError, match="spot"):
        validate_config(prepare_config(cluster))


@pytest.fixture
def aws_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """AWS over real HTTP, on loopback; a home of its own, as Ray writes an SSH key; no waiting for rights to spread."""
    from moto.backends import get_backend
    from ray.autoscaler._private.aws import config as ray_aws
    from ray.autoscaler._private.aws.utils import client_cache, resource_cache

    caches = (client_cache, resource_cache, ray_aws._get_subnets_or_die)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray_aws.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")  # Ray's role takes two of them
    get_backend("iam").reset()
    with s3.serving() as address:
        for name, value in {**aws.CREDENTIALS, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        for cache in caches:
            cache.cache_clear()
        yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.slow
def test_the_cluster_bootstraps_and_its_machines_start(aws_service: None, cluster: dict[str, Any]) -> None:
    """All of `ray up` before there is a machine to log in to, then the workers as the head asks for them."""
    from ray.autoscaler._private.commands import _bootstrap_config
    from ray.autoscaler._private.providers import _clear_provider_cache, _get_node_provider

    ready = _bootstrap_config(cluster, no_config_cache=True)
    types = ready["available_node_types"]
    assert types["gpu"]["resources"]["GPU"] == 8
    assert types["cpu"]["resources"]["CPU"] == 32
    assert "GPU" not in types["cpu"]["resources"]
    assert types["head"]["resources"] | {"CPU": 0, "GPU": 0} == types["head"]["resources"]
    assert len(types["gpu"]["node_config"]["SubnetIds"]) == 3
    assert Path(ready["auth"]["ssh_private_key"]).exists()

    provider = _get_node_provider(ready["provider"], ready["cluster_name"])
    _clear_provider_cache()
    image = boto3.client("ec2").describe_images()["Images"][0]["ImageId"]  # moto knows no names of SSM's
    for name, count in {"head": 1, "cpu": 1, "gpu": 2}.items():
        node = (
            {**ready.get("head_node", {}), **types[name]["node_config"]}
            if name == "head"
            else types[name]["node_config"]
        )
        kind = "head" if name == "head" else "worker"
        tags = {"ray-node-kind": kind, "ray-user-node-type": name, "ray-launch-config": "", "ray-node-name": name}
        provider.create_node_with_resources_and_labels({**node, "ImageId": image}, tags, count, {}, {})
    nodes = {node: provider.node_tags(node) for node in provider.non_terminated_nodes({})}
    assert sorted(tags["ray-user-node-type"] for tags in nodes.values()) == ["cpu", "gpu", "gpu", "head"]
    bought = {(tags["ray-user-node-type"], tags["vicuna-purchase"]) for tags in nodes.values()}
    assert bought == {("head", "on_demand"), ("cpu", "spot"), ("gpu", "spot")}
    provider.terminate_nodes(list(nodes))
    assert provider.non_terminated_nodes({}) == []


@pytest.mark.slow
def test_the_recipe_for_spot_machines_bootstraps_in_another_region(
    aws_service: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.autoscaler._private.commands import _bootstrap_config

    monkeypatch.chdir(ROOT)
    config = spot_section(load_recipe("smollm2_spot", ["spot.store=s3://bucket/key"]), "smollm2_spot")
    place = Cluster("smollm2_us-east-1b", "us-east-1", "us-east-1b", "spot", 0.0, 0.0, 0.0)
    ready = _bootstrap_config(RayClusters(config).render(place), no_config_cache=True)
    head, gpu = (ready["available_node_types"][name] for name in ("head", "gpu"))
    assert gpu["resources"]["GPU"] == 1
    assert (gpu["min_workers"], gpu["node_config"]["InstanceType"]) == (1, "g5.xlarge")
    assert [len(node["node_config"]["SubnetIds"]) for node in (head, gpu)] == [1, 1]
    assert head["node_config"]["IamInstanceProfile"] == {"Name": "vicuna-head"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cooldown": 5}, "provider.placement.cooldown: unknown field; did you mean 'cooldown_s'?"),
        ({"timeout_s": 0}, "provider.placement.timeout_s: 0 is not valid"),
        ({"instance_types": {"gpus": ["p4de.24xlarge"]}}, "'gpus' is no node type; valid: cpu, gpu, head"),
        (5, "provider.placement: 5 is not valid; expected a section"),
    ],
)
def test_a_wrong_placement_is_told_before_anything_is_made(cluster: dict[str, Any], change: Any, message: str) -> None:
    from ray_apps.spot.provider import SpotNodeProvider

    cluster["provider"]["placement"] = change
    with pytest.raises(click.ClickException) as caught:
        SpotNodeProvider.bootstrap_config(cluster)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"InstanceMarketOptions": {"SpotOptions": {"MaxPrice": 16}}}, "SpotOptions.MaxPrice: 16 is not valid"),
        ({"InstanceMarketOptions": {"SpotOptions": {"MaxPrice": "free"}}}, "SpotOptions.MaxPrice: 'free' is not valid"),
        ({"NetworkInterfaces": []}, "available_node_types.gpu.node_config.NetworkInterfaces: binds machines to a zone"),
    ],
)
def test_a_node_type_that_cannot_be_placed(cluster: dict[str, Any], change: dict[str, Any], message: str) -> None:
    from ray_apps.spot.provider import SpotNodeProvider

    cluster["available_node_types"]["gpu"]["node_config"] |= change
    with pytest.raises(click.ClickException) as caught:
        SpotNodeProvider.bootstrap_config(cluster)
    assert message in str(caught.value)


def test_ray_is_started_with_what_serving_needs(cluster: dict[str, Any]) -> None:
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        (start,) = (command for command in commands if "ray start" in command)
        before, _, _ = start.partition("ray start")
        assert {f"{name}={value}" for name, value in VARIABLES.items()} <= {*before.split()}


def test_the_head_takes_no_work_and_workers_are_capped_spot_machines(cluster: dict[str, Any]) -> None:
    head, worker = cluster["available_node_types"]["head"], cluster["available_node_types"]["gpu"]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    market = worker["node_config"]["InstanceMarketOptions"]
    assert market["MarketType"] == "spot"
    assert float(market["SpotOptions"]["MaxPrice"]) > 0
    assert len(cluster["provider"]["availability_zone"].split(",")) >= 2
    assert not cluster["provider"]["placement"]["fall_back_to_on_demand"]


def test_every_node_gets_this_project_and_the_pinned_ray(cluster: dict[str, Any]) -> None:
    commands = "\n".join(cluster["setup_commands"])
    assert cluster["file_mounts"]["~/vicuna-ray"] == "."
    assert "ray[data,serve,train]==2.60.0" in commands
    assert "pip install -q --no-deps -e ~/vicuna-ray" in commands
    assert "ray==2.60.0" in (ROOT / "requirements.lock").read_text()


def test_the_bashrc_line_is_added_once(cluster: dict[str, Any], tmp_path: Path) -> None:
    command = next(command for command in cluster["setup_commands"] if ".bashrc" in command)
    for _ in range(2):
        subprocess.run(["bash", "-c", command], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True)
    assert (tmp_path / ".bashrc").read_text().count("export PATH=~/venv/bin:$PATH") == 1


@pytest.mark.slow
def test_the_watcher_outlives_its_connection_is_started_again_and_replaced(
    cluster: dict[str, Any], tmp_path: Path
) -> None:
    (command,) = (command for command in cluster["worker_start_ray_commands"] if "spot watch" in command)
    (tmp_path / "vicuna-ray").mkdir()
    vicuna = tmp_path / "venv/bin/vicuna"
    vicuna.parent.mkdir(parents=True)
    vicuna.write_text('#!/bin/sh\necho $$ "$@" >> ~/started\nexec sleep 600\n')
    vicuna.chmod(0o755)

    def run() -> None:  # to the end of all that holds its output: a session ends then
        env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1"}
        subprocess.run(["bash", "-c", command], env=env, check=True, capture_output=True, timeout=60)

    def started(count: int) -> list[int]:
        until = time.monotonic() + 60
        while not (log := tmp_path / "started").exists() or len(log.read_text().splitlines()) < count:
            assert time.monotonic() < until, "it was not started"
            time.sleep(0.05)
        return [int(line.split()[0]) for line in log.read_text().splitlines()]

    try:
        run()
        os.kill(started(1)[0], signal.SIGKILL)
        again = psutil.Process(started(2)[1])
        run()
        started(3)
        until = time.monotonic() + 60
        with suppress(psutil.NoSuchProcess):
            while again.is_running() and again.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < until, f"the old one goes on: {again}"
                time.sleep(0.05)
        _, *arguments = (tmp_path / "started").read_text().splitlines()[-1].split()
        context = watch.make_context("watch", arguments[2:])
        assert (arguments[:2], context.params["address"]) == (["spot", "watch"], "10.0.0.1:6379")
        assert context.params["records"] == "artifacts/spot/notices"
    finally:
        os.killpg(int((tmp_path / ".spot-watch.pid").read_text()), signal.SIGKILL)


def test_serve_accepts_its_config() -> None:
    from ray.serve.schema import ServeDeploySchema

    from ray_apps.serve.config_file import load_serve_file

    config = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "serve_config.yaml").read_text()))
    assert config.http_options.host == "127.0.0.1"
    assert load_serve_file(ROOT / "serve_config.yaml").application.args.model == "artifacts/demo/model"


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_recipes_are_valid(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.data is not None
    assert recipe.train is not None
    assert recipe.data.template in TEMPLATES
    assert recipe.data.output == recipe.train.dataset


@pytest.mark.parametrize("name", ["vicuna_7b", "vicuna_13b"])
def test_published_hyperparameters(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.data is not None
    assert recipe.train is not None
    train = recipe.train
    assert (train.epochs, train.learning_rate, train.schedule, train.warmup_ratio) == (3, 2e-5, "cosine", 0.03)
    assert (train.weight_decay, train.global_batch_size, train.precision, train.tf32) == (0.0, 128, "bf16", True)
    assert train.fsdp.reshard_after_forward
    assert train.activation_checkpointing
    assert recipe.data.context_length == 2048
    assert recipe.data.template == "vicuna_v1.1"
