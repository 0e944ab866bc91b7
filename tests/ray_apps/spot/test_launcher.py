"""Ray's launcher and autoscaler for real, in a cloud of three regions on this machine."""

import gc
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import psutil
import pytest
import yaml
from botocore.exceptions import EndpointConnectionError
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import NODE_KIND_WORKER, TAG_RAY_NODE_KIND

from data_prep.errors import ConfigError, SpotError
from ray_apps.run_dir import RunDir
from ray_apps.spot import launcher as launcher_module
from ray_apps.spot.autoscaler_log import last_failure
from ray_apps.spot.aws_errors import Blame
from ray_apps.spot.bring_up import Launcher
from ray_apps.spot.clusters import StartError
from ray_apps.spot.config import SpotConfig
from ray_apps.spot.launch_state import Cluster
from ray_apps.spot.launcher import RayClusters
from ray_apps.train.config import TrainConfig
from tests import s3, tiny
from tests.integration.test_recovery import fixed_run
from tests.ray_apps.spot import loopback
from tests.ray_apps.spot.aws import client_error
from tests.ray_apps.spot.test_bring_up import Clock
from tests.ray_apps.train.test_loop import losses
from tests.s3 import Bucket

ROOT = Path(__file__).parents[3]
ZONES = {"north": ["north-a"], "south": ["south-a"], "east": ["east-a"]}
STEPS = 160
USD = {("north-a", "m"): 1.0, ("south-a", "m"): 2.0, ("east-a", "m"): 3.0}


# Ray's launcher leaves the file of a cluster open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def free_port() -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if not 10002 <= port <= 19999:  # Ray gives those to workers
            return port


def template() -> dict[str, Any]:
    """A head that takes no work and spot workers with a CPU. The shell of a person finds Ray and `vicuna`."""
    port, binaries = free_port(), Path(sys.executable).parent
    ray = f"{binaries}/ray start --disable-usage-stats --block --dashboard-agent-listen-port={{}} --num-cpus={{}}"
    start = "cd ~/vicuna-ray; nohup setsid {} > ~/ray.log 2>&1 < /dev/null & echo $! >> ~/pids"
    head = f"{ray.format(free_port(), 0)} --head --port={port} --dashboard-port={free_port()}"
    worker = f"{ray.format(free_port(), 1)} --address=$RAY_HEAD_IP:{port}"
    wait = f"for i in $(seq 300); do (echo > /dev/tcp/127.0.0.1/{port}) 2>/dev/null && exit 0; sleep 0.2; done; exit 1"
    bashrc = f"export PATH={binaries}:$PATH RAY_ADDRESS=127.0.0.1:{port}"
    node = {"InstanceType": "m", "InstanceMarketOptions": {"MarketType": "spot"}}
    return {
        "cluster_name": "replaced",
        "max_workers": 1,
        "provider": {"type": "external", "module": "tests.ray_apps.spot.loopback.Loopback"},
        "auth": {"ssh_user": "nobody"},
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": {"CPU": 1}, "node_config": node, "min_workers": 0, "max_workers": 1},
        },
        "head_node_type": "head",
        "setup_commands": [f"mkdir -p ~/vicuna-ray && echo '{bashrc}' > ~/.bashrc"],
        "head_start_ray_commands": [start.format(f"{head} --autoscaling-config=~/ray_bootstrap_config.yaml"), wait],
        "worker_start_ray_commands": [start.format(worker)],
        **{f"{name}_commands": [] for name in ("head_setup", "worker_setup", "initialization")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        **{name: {} for name in ("docker", "file_mounts")},
        "file_mounts_sync_continuously": False,
        "idle_timeout_minutes": 5,
        "upscaling_speed": 1,
    }


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SpotConfig]:
    monkeypatch.setattr(launcher_module, "END_POLL_S", 0.3)
    monkeypatch.setenv(loopback.PLACE, str(tmp_path / "cloud"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_UP_enable_autoscaler_v2", "1")
    monkeypatch.setenv("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0")
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(template()))
    yield SpotConfig.parse(
        {
            "name": "loop",
            "template": str(tmp_path / "cluster.yaml"),
            "zones": ZONES,
            "start_timeout_s": 120.0,
            "poll_s": 3.0,
            "give_up_h": 0,
            "policy": {"patience_h": 0, "price_margin": None},
            "state": str(tmp_path / "spot.json"),
        },
        "spot",
    )
    for machine in [path.name for path in (tmp_path / "cloud").glob("machine-*")]:
        loopback.kill(machine)
    gc.collect()


def launcher(config: SpotConfig) -> Launcher:
    return Launcher(config, RayClusters(config, prices=lambda region, kinds, zones: USD))


def cluster(region: str, zone: str, purchase: Any = "spot") -> Cluster:
    return Cluster(f"loop_{zone}", region, zone, purchase, 1.0, 0.0, 0.0)


def machines() -> dict[str, str]:
    """Regions of the machines that there are."""
    with loopback.cloud() as state:
        return {machine: entry["region"] for machine, entry in state["machines"].items()}


def take_away(region: str) -> None:
    """All machines of a region are gone, at once, and there are no others."""
    for machine, place in machines().items():
        if place == region:
            loopback.kill(machine)
    with loopback.cloud() as state:
        state["machines"] = {
            machine: entry for machine, entry in state["machines"].items() if entry["region"] != region
        }
        state["full"].append(region)


def vicuna(*words: str) -> subprocess.Popen[str]:
    """A command in a process of its own, as a person gives it."""
    command = [sys.executable, "-m", "ray_apps.cli", "spot", *words]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(condition: Callable[[], bool], *processes: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 240
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "it never came so far"
        time.sleep(0.2)


def ray_processes() -> list[psutil.Process]:
    found = [process for machine in machines() for process in loopback.processes(machine)]
    assert any("raylet" in process.name() for process in found)
    return found


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_goes_on_in_another_region_whoever_dies(
    config: SpotConfig, tiny_model_dir: Path, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first region has room for a head alone. In the second the run saves; its launcher is killed, then the region.

    The run ends in the third as if nothing had happened, and nothing is left.
    """
    for name, value in s3.variables(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    bucket = Bucket(s3_endpoint, tmp_path.name)
    train = tiny.train_settings(
        tiny_model_dir,
        tiny.write_dataset(tmp_path / "dataset", tiny_model_dir, template="chatml"),
        run_dir=str(tmp_path / "unused"),
        output=str(tmp_path / "nowhere"),
        global_batch_size=2,
        max_steps=STEPS,
        num_workers=1,
        checkpoint={"every_steps": 20},
    )
    fixed = fixed_run(TrainConfig.parse(train), tmp_path)
    spot = config.model_copy(update={"store": f"{bucket.uri}/store"}).model_dump(mode="json", exclude_unset=True)
    recipe = tmp_path / "recipe.yaml"
    train["model"] = bucket.upload(tiny_model_dir, "base")
    recipe.write_text(yaml.safe_dump({"train": train, "spot": spot}, sort_keys=False))
    with loopback.cloud() as state:
        state["full_for_workers"] = ["north"]
    run = RunDir(f"{bucket.uri}/store/run")

    first = vicuna("up", str(recipe))
    wait_for(lambda: run.latest_checkpoint() is not None, first)
    first.kill()
    first.communicate()
    assert sorted(machines().values()) == ["south", "south"]  # a head and its worker
    started = ray_processes()
    second = vicuna("up", str(recipe))
    time.sleep(2)
    take_away("south")
    wait_for(lambda: len(machines()) == 2, second)
    started += ray_processes()
    told, _ = second.communicate(timeout=400)
    assert second.returncode == 0, told
    assert f"{bucket.uri}/store/model: " in told.splitlines()[-1]

    starts = [record["step"] for record in run.read_metrics() if record.get("event") == "start"]
    assert len(starts) == 2
    assert starts[0] == 0 < starts[1] < STEPS
    trained = {record["step"]: record["loss"] for record in run.read_metrics() if "loss" in record}
    assert list(trained.values()) == pytest.approx(losses(fixed), abs=1e-3)
    exported = {f"store/model/{name}" for name in ("config.json", "model.safetensors", "origin.json")}
    assert exported <= {*bucket.list_keys()}
    assert machines() == {}
    _, alive = psutil.wait_procs(started, timeout=10)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.ray
def test_no_room_anywhere(config: SpotConfig) -> None:
    with loopback.cloud() as state:
        state["full"] = list(ZONES)
    with pytest.raises(SpotError, match=r"east-a: .*east is full.*; north-a: .*; south-a: "):
        launcher(config).up()
    assert machines() == {}


def test_orphans_are_found_by_name_without_a_state(config: SpotConfig) -> None:
    """Also those of a zone that the recipe no longer has, or of on-demand machines; not those of another recipe."""
    for name, region in (("loop_south-a", "south"), ("loop_west-b_on-demand", "west"), ("loop-2_south-a", "south")):
        provider = loopback.Loopback({"region": region}, name)
        provider.create_node({}, {TAG_RAY_NODE_KIND: NODE_KIND_WORKER}, 2)
    assert launcher(config).down() == 4
    assert list(machines()) == ["machine-5", "machine-6"]


def test_the_template_in_its_place(config: SpotConfig) -> None:
    clusters = RayClusters(config.model_copy(update={"num_workers": 3}))
    rendered = clusters.render(cluster("south", "south-a"))
    assert rendered["cluster_name"] == "loop_south-a"
    assert rendered["provider"]["region"] == "south"
    assert rendered["provider"]["availability_zone"] == "south-a"
    gpu = rendered["available_node_types"]["gpu"]
    assert (gpu["min_workers"], gpu["max_workers"], rendered["max_workers"]) == (3, 3, 3)
    assert "InstanceMarketOptions" in gpu["node_config"]
    on_demand = clusters.render(cluster("south", "south-a", "on_demand"))["available_node_types"]["gpu"]
    assert "InstanceMarketOptions" not in on_demand["node_config"]


def test_the_cluster_file_that_comes_along_in_its_place(config: SpotConfig) -> None:
    told = {
        "template": str(ROOT / "cluster.yaml"),
        "store": "s3://bucket/key",
        "instance_type": "g5.xlarge",
        "max_usd_per_hour": 0.7,
        "instance_profiles": {"head": "vicuna-head", "gpu": "vicuna-worker"},
    }
    clusters = RayClusters(config.model_copy(update=told))
    rendered = clusters.render(cluster("us-east-1", "us-east-1a"))
    watcher = next(line for line in rendered["worker_start_ray_commands"] if "spot watch" in line)
    assert "--records s3://bucket/key/notices; sleep 1" in watcher
    placement = rendered["provider"]["placement"]
    assert placement["fall_back_to_on_demand"] is False
    assert "gpu" not in placement["instance_types"]  # at a price that was not counted
    head, gpu = (rendered["available_node_types"][name]["node_config"] for name in ("head", "gpu"))
    assert head["IamInstanceProfile"] == {"Name": "vicuna-head"}
    assert gpu["IamInstanceProfile"] == {"Name": "vicuna-worker"}
    assert gpu["InstanceType"] == "g5.xlarge"
    assert gpu["InstanceMarketOptions"]["SpotOptions"]["MaxPrice"] == "0.7"
    validate_config(prepare_config(rendered))


def test_offers_keep_to_the_price_limit_of_the_template(config: SpotConfig, tmp_path: Path) -> None:
    (tmp_path / "rates.yaml").write_text("north: {m: 9.5}")
    limited = yaml.safe_load(Path(config.template).read_text())
    limited["available_node_types"]["gpu"]["node_config"]["InstanceMarketOptions"]["SpotOptions"] = {"MaxPrice": "2.5"}
    Path(config.template).write_text(yaml.safe_dump(limited))
    config = config.model_copy(update={"rates": str(tmp_path / "rates.yaml")})
    prices = {key: usd for key, usd in USD.items() if key[0] != "south-a"}
    offers = RayClusters(config, prices=lambda region, kinds, zones: prices).offers()
    assert [(offer.zone, offer.purchase, offer.usd_per_hour) for offer in offers] == [
        ("north-a", "spot", 1.0),
        ("north-a", "on_demand", 9.5),
        ("south-a", "spot", 2.5),  # not known, but no more than that
    ]


OLDER = """09:10:30
======== Autoscaler status: 2026-11-26 09:10:28.708117 ========
Recent failures:
 gpu: {code} (latest_attempt: 09:1{minute}:00) - no room
"""
NEWER = """00:00:30
 gpu: LaunchFailed (latest_attempt: 23:59:50)
2026-11-26 23:59:50,319\tINFO -- Failed to launch 1 nodes of type gpu: Node Launch Exception ({code}): no room
2026-11-26 23:59:51,346\tINFO -- Failed to launch 1 nodes of type cpu: Node Launch Exception (AuthFailure): no
"""


@pytest.mark.parametrize("told", [OLDER.replace("{minute}", "0"), NEWER])
@pytest.mark.parametrize(
    ("code", "blame"), [("InsufficientInstanceCapacity", Blame.POOL), ("MaxSpotInstanceCountExceeded", Blame.REGION)]
)
def test_what_a_head_tells_of_its_failures(told: str, code: str, blame: Blame) -> None:
    failed = last_failure(told.replace("{code}", code), "gpu")
    assert failed is not None
    assert failed.blame is blame
    assert "no room" in str(failed)


def test_failures_of_our_own_provider_and_no_clock() -> None:
    failed = last_failure(NEWER.replace("{code}", "GangTimeout"), "gpu")
    assert failed is not None
    assert failed.blame is Blame.POOL
    unknown = last_failure(NEWER.replace("{code}", "NobodyKnows"), "gpu")
    assert unknown is not None
    assert unknown.blame is Blame.STOP
    assert last_failure("bash: ray: command not found", "gpu") is None


def test_a_failure_that_is_long_past() -> None:
    old = OLDER.replace("{code}", "InsufficientInstanceCapacity").replace("09:1{minute}:00", "09:07:00")
    assert last_failure(old, "gpu") is None


def failing(error: BaseException, cause: BaseException | None = None) -> Callable[..., None]:
    def start(*arguments: Any, **options: Any) -> None:
        raise error from cause

    return start


@pytest.mark.parametrize(
    ("error", "cause", "blame", "text"),
    [
        (NodeLaunchException("VcpuLimitExceeded", "no quota", None), None, Blame.REGION, "no quota"),
        (NodeLaunchException("RequestLimitExceeded", "busy", None), None, Blame.POOL, "busy"),
        (click.ClickException("gave up"), client_error("UnauthorizedOperation"), Blame.STOP, "UnauthorizedOperation"),
        (SystemExit(1), client_error("InsufficientInstanceCapacity"), Blame.POOL, "InsufficientInstanceCapacity"),
        (EndpointConnectionError(endpoint_url="https://ec2"), None, Blame.POOL, "Could not connect"),
        (click.ClickException("No usable subnets matching availability zone"), None, Blame.OFFER, "No usable subnets"),
        (click.ClickException("provider.placement.cooldown: unknown"), None, Blame.STOP, "placement.cooldown: unknown"),
    ],
)
def test_what_ray_raises_on_a_start(
    config: SpotConfig,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    cause: BaseException | None,
    blame: Blame,
    text: str,
) -> None:
    monkeypatch.setattr(launcher_module.sdk, "create_or_update_cluster", failing(error, cause))
    with pytest.raises(StartError, match=text) as caught:
        RayClusters(config).start(cluster("south", "south-a"))
    assert caught.value.blame is blame


def test_a_head_that_cannot_be_set_up_is_no_mistake_in_the_file(
    config: SpotConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = failing(click.ClickException("Failed to setup head node."))
    monkeypatch.setattr(launcher_module.sdk, "create_or_update_cluster", failed)
    loopback.Loopback({"region": "south", "availability_zone": "south-a"}, "loop_south-a").create_node({}, {}, 1)
    with pytest.raises(StartError, match="Failed to setup head node") as caught:
        RayClusters(config).start(cluster("south", "south-a"))
    assert caught.value.blame is Blame.ZONE


def test_templates_that_will_not_do(config: SpotConfig) -> None:
    with pytest.raises(ConfigError, match=r"spot.node_type: 'tpu' is not in .*cluster.yaml; valid: gpu, head"):
        RayClusters(config.model_copy(update={"node_type": "tpu"}))
    with pytest.raises(ConfigError, match=r"spot.instance_profiles: 'gpus' is not in .*cluster.yaml; valid: gpu, head"):
        RayClusters(config.model_copy(update={"instance_profiles": {"gpus": "any"}}))
    with pytest.raises(ConfigError, match=r"available_node_types.head.node_config.InstanceMarketOptions: is required"):
        RayClusters(config.model_copy(update={"node_type": "head"}))


class Dying:
    """A provider whose head asks for one more worker while it shuts down."""

    head_dies_s = 5.0

    def __init__(self, clock: Clock) -> None:
        self.clock, self.asks_at = clock, clock.time + 4.0
        self.alive = {"head", "worker-1"}

    def non_terminated_nodes(self, tags: dict[str, str]) -> list[str]:
        if self.clock.time >= self.asks_at:
            self.alive.add("worker-2")
            self.asks_at = float("inf")
        return sorted(name for name in self.alive if not tags or name == "head")

    def terminate_nodes(self, names: list[str]) -> None:
        self.alive -= set(names)


def test_workers_that_a_dying_head_still_asks_for_are_ended_too(
    config: SpotConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(launcher_module.time, "monotonic", clock.now)
    monkeypatch.setattr(launcher_module.time, "sleep", clock.sleep)
    provider = Dying(clock)
    assert RayClusters(config)._end(provider, "here") == 3
    assert provider.alive == set()
