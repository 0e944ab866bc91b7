"""Ray's launcher and autoscaler for real, in a cloud of three regions on this machine."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from data_prep.errors import ConfigError, SpotError
from ray_apps.spot import bring_up
from ray_apps.spot import launcher as launcher_module
from ray_apps.spot.bring_up import Launcher
from ray_apps.spot.config import SpotConfig
from ray_apps.spot.launcher import RayClusters
from tests.ray_apps.spot import loopback

ROOT = Path(__file__).parents[3]
ZONES = {"north": ["north-a"], "south": ["south-a"], "east": ["east-a"]}
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
    port, ray = free_port(), f"{Path(sys.executable).parent}/ray start --disable-usage-stats --num-cpus=1 --block"
    start = "nohup setsid {} > ~/ray.log 2>&1 < /dev/null & echo $! >> ~/pids"
    head = f"{ray} --head --port={port} --include-dashboard=False --autoscaling-config=~/ray_bootstrap_config.yaml"
    wait = f"for i in $(seq 200); do (echo > /dev/tcp/127.0.0.1/{port}) 2>/dev/null && exit 0; sleep 0.2; done; exit 1"
    node = {"InstanceType": "m", "InstanceMarketOptions": {"MarketType": "spot"}}
    return {
        "cluster_name": "replaced",
        "max_workers": 1,
        "provider": {"type": "external", "module": "tests.ray_apps.spot.loopback.Loopback"},
        "auth": {"ssh_user": "nobody"},
        "available_node_types": {
            "head": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": {"CPU": 1}, "node_config": node, "min_workers": 0, "max_workers": 1},
        },
        "head_node_type": "head",
        "head_start_ray_commands": [start.format(head), wait],
        "worker_start_ray_commands": [start.format(f"{ray} --address=$RAY_HEAD_IP:{port}")],
        **{f"{name}_commands": [] for name in ("setup", "head_setup", "worker_setup", "initialization")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        **{name: {} for name in ("docker", "file_mounts")},
        "file_mounts_sync_continuously": False,
        "idle_timeout_minutes": 5,
        "upscaling_speed": 1,
    }


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SpotConfig]:
    monkeypatch.setattr(bring_up, "POLL_S", 1.0)
    monkeypatch.setattr(launcher_module, "END_POLL_S", 0.3)
    monkeypatch.setenv(loopback.PLACE, str(tmp_path / "cloud"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_UP_enable_autoscaler_v2", "1")
    monkeypatch.setenv("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0")
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(template()))
    settings = {"template": str(tmp_path / "cluster.yaml"), "zones": ZONES, "state": str(tmp_path / "spot.json")}
    yield SpotConfig.parse({"name": "loop", "start_timeout_s": 120.0, **settings}, "spot")
    for machine in [path.name for path in (tmp_path / "cloud").glob("machine-*")]:
        loopback.kill(machine)


def launcher(config: SpotConfig) -> Launcher:
    return Launcher(config, RayClusters(config, prices=lambda region, kinds, zones: USD))


def machines() -> dict[str, str]:
    """Regions of the machines that there are."""
    with loopback.cloud() as state:
        return {machine: entry["region"] for machine, entry in state["machines"].items()}


@pytest.mark.ray
@pytest.mark.slow
def test_up_where_there_is_room_elsewhere_when_a_region_dies_and_down(config: SpotConfig) -> None:
    with loopback.cloud() as state:
        state["full"] = ["north"]
    first = launcher(config).up()
    assert (first.name, first.region, first.is_up) == ("loop-south-a", "south", True)
    assert sorted(machines().values()) == ["south", "south"]  # a head and its worker, on which Ray runs
    started = [process for machine in machines() for process in loopback.processes(machine)]
    assert any("raylet" in process.name() for process in started)

    for machine in machines():
        loopback.kill(machine)
    with loopback.cloud() as state:  # and the machines are gone
        state["machines"].clear()
        state["full"] = ["north", "south"]
    second = launcher(config).up()
    assert second.region == "east"
    assert set(machines().values()) == {"east"}
    started += [process for machine in machines() for process in loopback.processes(machine)]

    assert launcher(config).down() == 2
    assert machines() == {}
    _, alive = psutil.wait_procs(started, timeout=10)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.ray
def test_no_room_anywhere(config: SpotConfig) -> None:
    with loopback.cloud() as state:
        state["full"] = list(ZONES)
    with pytest.raises(SpotError, match=r"north-a: .*north is full.*; south-a: .*; east-a: "):
        launcher(config).up()
    assert machines() == {}


def test_orphans_are_found_by_name_without_a_state(config: SpotConfig) -> None:
    provider = loopback.Loopback({"region": "south"}, "loop-south-a")
    provider.create_node({}, {"ray-node-kind": "worker"}, 2)
    loopback.Loopback({"region": "south"}, "another").create_node({}, {"ray-node-kind": "head"}, 1)
    assert launcher(config).down() == 2
    assert list(machines()) == ["machine-3"]


def test_the_template_in_its_place(config: SpotConfig) -> None:
    rendered = RayClusters(config.model_copy(update={"num_workers": 3})).render("loop-south-a", "south", "south-a")
    assert rendered["cluster_name"] == "loop-south-a"
    assert rendered["provider"]["region"] == "south"
    assert rendered["provider"]["availability_zone"] == "south-a"
    gpu = rendered["available_node_types"]["gpu"]
    assert (gpu["min_workers"], gpu["max_workers"], rendered["max_workers"]) == (3, 3, 3)


def test_a_node_type_that_the_template_lacks(config: SpotConfig) -> None:
    with pytest.raises(ConfigError, match=r"spot.node_type: 'tpu' is not in .*cluster.yaml; valid: gpu, head"):
        RayClusters(config.model_copy(update={"node_type": "tpu"}))
