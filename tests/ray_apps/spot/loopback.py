"""A cloud on this machine: regions are names in a file, machines are folders, and what runs on them are processes.

Ray's launcher and autoscaler use it as they use any cloud, but for SSH: commands are run here, with the machine's
folder as home. What a command leaves running is named in `~/pids`, and dies with the machine.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from ray.autoscaler.command_runner import CommandRunnerInterface
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import NODE_KIND_WORKER, TAG_RAY_NODE_KIND

PLACE = "LOOPBACK_CLOUD"
"""The environment variable that names the cloud's folder."""


def place() -> Path:
    return Path(os.environ[PLACE])


@contextmanager
def cloud() -> Iterator[dict[str, Any]]:
    """What there is, to be read and changed: `machines`; `num_made`; regions that are `full`, or for workers alone."""
    place().mkdir(parents=True, exist_ok=True)
    with (place() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = place() / "cloud.json"
        state = (
            json.loads(file.read_text())
            if file.exists()
            else {"full": [], "full_for_workers": [], "machines": {}, "num_made": 0}
        )
        yield state
        file.write_text(json.dumps(state))


def home(machine: str) -> Path:
    return place() / machine


def processes(machine: str) -> list[psutil.Process]:
    """What runs on a machine."""
    found = []
    pids = home(machine) / "pids"
    for pid in pids.read_text().split() if pids.exists() else []:
        if psutil.pid_exists(int(pid)):
            process = psutil.Process(int(pid))
            found += [*process.children(recursive=True), process]
    return found


def kill(machine: str) -> None:
    """As when the power goes."""
    for process in processes(machine):
        process.send_signal(signal.SIGKILL)


class Loopback(NodeProvider):
    """`region` of the provider's settings says where its machines are."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        region = self.provider_config["region"]
        with cloud() as state:
            full = [
                *state["full"],
                *(state["full_for_workers"] if tags.get(TAG_RAY_NODE_KIND) == NODE_KIND_WORKER else []),
            ]
            if region in full:
                raise NodeLaunchException("InsufficientInstanceCapacity", f"{region} is full", None)
            for _ in range(count):
                state["num_made"] += 1
                machine = f"machine-{state['num_made']}"
                home(machine).mkdir()
                entry = {"region": region, "cluster": self.cluster_name, "tags": dict(tags)}
                state["machines"][machine] = entry

    def find_clusters(self, prefix: str, regions: set[str]) -> set[tuple[str, str]]:
        with cloud() as state:
            entries = [(entry["cluster"], entry["region"]) for entry in state["machines"].values()]
        return {entry for entry in entries if entry[0].startswith(prefix)}

    def _mine(self) -> dict[str, dict[str, str]]:
        region = self.provider_config["region"]
        with cloud() as state:
            return {
                machine: entry["tags"]
                for machine, entry in state["machines"].items()
                if entry["cluster"] == self.cluster_name and entry["region"] == region
            }

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        return [machine for machine, tags in self._mine().items() if tag_filters.items() <= tags.items()]

    def is_running(self, node_id: str) -> bool:
        return node_id in self._mine()

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._mine()

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self._mine()[node_id]

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        with cloud() as state:
            if node_id in state["machines"]:
                state["machines"][node_id]["tags"].update(tags)

    def external_ip(self, node_id: str) -> str:
        return "127.0.0.1"

    def internal_ip(self, node_id: str) -> str:
        return "127.0.0.1"

    def terminate_node(self, node_id: str) -> None:
        kill(node_id)
        with cloud() as state:
            state["machines"].pop(node_id, None)

    def get_command_runner(self, log_prefix: str, node_id: str, *rest: Any, **more: Any) -> "Runner":
        return Runner(node_id)


class Runner(CommandRunnerInterface):
    """Commands run as over SSH: in a shell that has read ~/.bashrc, and what they print are bytes."""

    def __init__(self, machine: str) -> None:
        self._home = home(machine)

    def run(self, cmd: str | None = None, *rest: Any, **options: Any) -> Any:
        from ray.autoscaler._private.command_runner import _with_environment_variables

        command = cmd or "true"
        assert "ray stop" not in command, "it would stop every Ray of this machine"
        if variables := options.get("environment_variables"):
            command = _with_environment_variables(command, variables)
        environment = {**os.environ, "HOME": str(self._home)}
        shell = ["bash", "-c", f"[ ! -e ~/.bashrc ] || . ~/.bashrc\n{command}"]
        return subprocess.run(shell, env=environment, check=True, stdout=subprocess.PIPE).stdout

    def run_rsync_up(self, source: str, target: str, options: Any = None) -> None:
        path = Path(target.replace("~", str(self._home), 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        if Path(source).is_dir():
            shutil.copytree(source, path, dirs_exist_ok=True)
        else:
            shutil.copy(source, path)

    def run_rsync_down(self, source: str, target: str, options: Any = None) -> None:
        shutil.copy(source.replace("~", str(self._home), 1), target)

    def remote_shell_command_str(self) -> str:
        return "bash"

    def run_init(self, *, as_head: bool, file_mounts: Any, sync_run_yet: bool) -> bool | None:
        return None
