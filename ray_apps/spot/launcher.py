"""Clusters of Ray's launcher: one template, put in place for each zone; started, given jobs, taken down by name."""

import base64
import copy
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import click
from ray.autoscaler import sdk
from ray.autoscaler._private import constants
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from data_prep.errors import ConfigError, SpotError
from ray_apps.config import load_yaml
from ray_apps.spot.autoscaler_log import last_failure
from ray_apps.spot.aws_errors import Blame, blame, blame_code, describe
from ray_apps.spot.bring_up import Launcher
from ray_apps.spot.clusters import Sight, SilentError, StartError, start_error
from ray_apps.spot.config import SpotConfig
from ray_apps.spot.launch_state import Cluster
from ray_apps.spot.placement import Offer
from ray_apps.spot.pricing import read_egress, read_rates, spot_prices_of
from ray_apps.spot.provider_config import max_spot_price
from ray_apps.spot.records import NewNotices

END_POLL_S = 3.0
END_S = 300.0
"""Within which machines must be gone that are terminated."""
_FINDS = "only ray_apps.spot.provider.SpotNodeProvider finds machines by their tags"
AUTOSCALER_LOG = "/tmp/ray/session_latest/logs/monitor.log"  # noqa: S108 - where Ray has it, on the head
PROJECT = "~/vicuna-ray"
"""Where the template puts this project on each machine."""

Prices = Callable[[str, list[str], list[str]], Mapping[tuple[str, str], float]]


class RayClusters:
    """Clusters of the template that `config` names, and jobs on them.

    Raises:
        ConfigError: the template has no such node type, or it is not bought as spot machines.
    """

    def __init__(self, config: SpotConfig, prices: Prices = spot_prices_of) -> None:
        self._config = config
        self._prices = prices
        self._template = load_yaml(Path(config.template))
        types = self._template.get("available_node_types") or {}
        for field, name in [
            ("node_type", config.node_type),
            *(("instance_profiles", n) for n in config.instance_profiles),
        ]:
            if name not in types:
                raise ConfigError(f"spot.{field}: {name!r} is not in {config.template}; valid: {', '.join(types)}")
        self._node = types[config.node_type]["node_config"]
        if (self._node.get("InstanceMarketOptions") or {}).get("MarketType") != "spot":
            raise ConfigError(
                f"{config.template}: available_node_types.{config.node_type}.node_config.InstanceMarketOptions: "
                "is required, with MarketType: spot"
            )
        if config.instance_type is not None:
            self._node["InstanceType"] = config.instance_type
        if config.max_usd_per_hour is not None:
            options = self._node["InstanceMarketOptions"].setdefault("SpotOptions", {})
            options["MaxPrice"] = f"{config.max_usd_per_hour:g}"
        for name, profile in config.instance_profiles.items():
            types[name]["node_config"]["IamInstanceProfile"] = {"Name": profile}
        self._known_prices: dict[tuple[str, str], float] = {}
        self._rates = read_rates(Path(config.rates)) if config.rates else {}

    def offers(self) -> list[Offer]:
        """The template's instance type in each zone, at the price of now: spot machines, and those with a rate.

        What costs more than the template's `MaxPrice` is left out.
        """
        kind, most = self._node.get("InstanceType", ""), max_spot_price(self._node)
        found = []
        for region, zones in self._config.zones.items():
            self._known_prices |= self._prices(region, [kind], zones)
            for zone in zones:
                usd = self._known_prices.get((zone, kind), most)
                if most is None or usd is None or usd <= most:
                    found.append(Offer(region, zone, kind, "spot", usd))
                if rate := self._rates.get((region, kind)):
                    found.append(Offer(region, zone, kind, "on_demand", rate))
        return found

    def render(self, cluster: Cluster) -> dict[str, Any]:
        """The template with place, name, number of workers, what they are bought as, and where notices go."""
        rendered = copy.deepcopy(self._template)
        num = self._config.num_workers
        rendered["cluster_name"] = cluster.name
        rendered["provider"] |= {"region": cluster.region, "availability_zone": cluster.zone}
        rendered["provider"]["cache_stopped_nodes"] = False  # a stopped machine is not gone, and its disk is paid for
        if placement := rendered["provider"].get("placement"):  # what is bought, and at what price, is decided here
            placement["fall_back_to_on_demand"] = False
            placement.get("instance_types", {}).pop(self._config.node_type, None)
        node = rendered["available_node_types"][self._config.node_type]
        node["min_workers"] = num
        node["max_workers"] = max(num, node.get("max_workers", num))
        if cluster.purchase == "on_demand":
            del node["node_config"]["InstanceMarketOptions"]
        rendered["max_workers"] = max(num, rendered.get("max_workers", num))
        if self._config.notices:
            rendered["worker_start_ray_commands"] = [
                re.sub(r"(spot watch .*--records )[^\s;]+", rf"\g<1>{self._config.notices}", command)
                for command in rendered["worker_start_ray_commands"]
            ]
        return rendered

    def start(self, cluster: Cluster) -> None:
        """`ray up`, without its questions and its cache."""
        try:
            sdk.create_or_update_cluster(self.render(cluster), no_config_cache=True)
        except NodeLaunchException as error:
            raise start_error(blame_code(error.category), str(error)) from error
        except (Exception, SystemExit) as error:
            if (refused := _of_aws(error)) is not None:
                raise start_error(blame(refused), describe(refused)) from error
            text = error.message if isinstance(error, click.ClickException) else str(error)
            text = text or "Ray's launcher gave up; see above"
            if "No usable subnets" in text:
                raise StartError(Blame.OFFER, text) from error
            was_paid = self._has_machines(cluster)  # before there are any, the file is wrong
            raise StartError(Blame.ZONE if was_paid else Blame.STOP, text, was_paid=was_paid) from error

    def _has_machines(self, cluster: Cluster) -> bool:
        try:
            with _silence():
                return bool(self._provider(cluster).non_terminated_nodes({}))
        except SilentError:
            return True

    def look(self, cluster: Cluster) -> Sight:
        """Its machines on which Ray runs."""
        with _silence():
            provider = self._provider(cluster)
            alive = {TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}
            head = provider.non_terminated_nodes({TAG_RAY_NODE_KIND: NODE_KIND_HEAD, **alive})
            kind = {TAG_RAY_NODE_KIND: NODE_KIND_WORKER, TAG_RAY_USER_NODE_TYPE: self._config.node_type}
            return Sight(bool(head), len(provider.non_terminated_nodes({**kind, **alive})))

    def trouble(self, cluster: Cluster) -> StartError | None:
        """The last failure of the last two minutes of which the head's autoscaler tells.

        Ray's older autoscaler tells the reason in `ray status`, its newer one only in its log.
        """
        try:
            told = self._on_head(cluster, f"date +%T; timeout 60 ray status 2>&1; tail -n 200 {AUTOSCALER_LOG}")
        except SilentError:
            return None
        return last_failure(told, self._config.node_type)

    def end(self, cluster: Cluster) -> int:
        """Terminate all machines with the cluster's name; `ray down` would first wait for a head that may be dead."""
        try:
            with _silence():
                return self._end(self._provider(cluster), f"{cluster.name} in {cluster.region}")
        except SilentError as error:
            raise SpotError(f"{cluster.name}: {error}") from None

    def _end(self, provider: Any, where: str) -> int:
        """A head that is shutting down may still ask for workers in place of those that it sees go."""
        had_head = bool(provider.non_terminated_nodes({TAG_RAY_NODE_KIND: NODE_KIND_HEAD}))
        quiet_s = getattr(provider, "head_dies_s", 0.0) if had_head else 0.0
        ended: set[str] = set()
        started = last_seen = time.monotonic()
        while True:
            if nodes := provider.non_terminated_nodes({}):
                provider.terminate_nodes(nodes)
                ended |= set(nodes)
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen >= quiet_s:
                return len(ended)
            if time.monotonic() - started > END_S:
                raise SpotError(f"{where}: {len(nodes)} machines are not terminated: {', '.join(sorted(nodes))}")
            time.sleep(END_POLL_S)

    def end_all(self, name: str) -> int:
        """Terminate machines whose tag says that they belong to a cluster of this name, in all regions there are."""
        any_region, zones = next(iter(self._config.zones.items()))
        sample = Cluster(f"{name}_{zones[0]}", any_region, zones[0], "spot", 0.0, 0.0, 0.0)
        try:
            with _silence():
                provider = self._provider(sample)
                if not hasattr(provider, "find_clusters"):
                    raise ConfigError(f"{self._config.template}: provider.module: {_FINDS}")
                found = provider.find_clusters(f"{name}_", set(self._config.zones))
        except SilentError as error:
            raise SpotError(f"machines cannot be looked for: {error}") from None
        num_ended, problems = 0, []
        for cluster, region in sorted(found):
            try:
                num_ended += self.end(Cluster(cluster, region, zones[0], "spot", 0.0, 0.0, 0.0))
            except SpotError as error:
                problems.append(str(error))
        if problems:
            raise SpotError("; ".join(problems))
        return num_ended

    def submit(self, cluster: Cluster, job: str, recipe: str) -> None:
        """Hand a job to the cluster: the training that the recipe, YAML, describes. Raises SilentError."""
        file, text = f"artifacts/spot/{job}.yaml", base64.b64encode(recipe.encode()).decode()
        train = f"cd {PROJECT} && exec vicuna spot job {file}"
        self._on_head(
            cluster,
            f"cd {PROJECT} && mkdir -p artifacts/spot && echo {text} | base64 -d > {file} && "
            # Ray gives a job the environment of its daemons, which were not started from a shell of a person's.
            f"timeout 120 ray job submit --no-wait --submission-id {job} "
            f'-- env "PATH=$PATH" sh -c {shlex.quote(train)}',
        )

    def job_status(self, cluster: Cluster, job: str) -> str | None:
        """Ray's word for where the job is; None if the cluster does not know it. Raises SilentError."""
        told = self._on_head(cluster, f"timeout 60 ray job status {job} 2>&1 || true")
        if found := re.search(rf"[Jj]ob '{job}'(?::| was)? (\w+)", told):
            return found[1].upper()
        if "does not exist" in told:
            return None
        raise SilentError(f"{cluster.name}: {_last_line(told)}")

    def job_log(self, cluster: Cluster, job: str) -> str:
        """The last lines that the job printed. Raises SilentError."""
        return self._on_head(cluster, f"timeout 60 ray job logs {job} 2>&1 | tail -n 20")

    def _on_head(self, cluster: Cluster, command: str) -> str:
        """What a command prints there, in a shell as a person has it."""
        with _silence(), redirect_stdout(StringIO()):
            told: Any = sdk.run_on_cluster(
                self.render(cluster), cmd=command, with_output=True
            )  # bytes, whatever it says
            return str(told.decode(errors="replace"))

    def _provider(self, cluster: Cluster) -> Any:
        with redirect_stdout(StringIO()):  # it tells of each client that it makes
            return _get_node_provider(self.render(cluster)["provider"], cluster.name)


@contextmanager
def _silence() -> Iterator[None]:
    """What Ray's launcher and boto3 raise where a cloud or a machine does not answer, as SilentError."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except click.ClickException as error:
        raise SilentError(_last_line(error.format_message())) from error
    except (
        *(ClientError, BotoCoreError, ResponseParserError),
        *(OSError, RuntimeError, subprocess.SubprocessError),
    ) as error:
        raise SilentError(_last_line(str(error))) from error


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing was said")


def _of_aws(error: BaseException | None) -> BaseException | None:
    """The answer of AWS that an error came of, if it did."""
    from botocore.exceptions import BotoCoreError, ClientError

    while error is not None and not isinstance(error, BotoCoreError | ClientError):
        error = error.__cause__ or error.__context__
    return error


def _ask_briefly() -> None:
    """Have this process wait seconds, not minutes, for a region that does not answer: the others are waiting."""
    import botocore.config

    botocore.config.Config.OPTION_DEFAULTS |= {"connect_timeout": 10, "read_timeout": 30}
    constants.BOTO_MAX_RETRIES = 2


def make_launcher(config: SpotConfig) -> tuple[Launcher, RayClusters]:
    """The launcher of a recipe, and what gives jobs to its clusters.

    Raises:
        ConfigError: a file is wrong.
        SpotError: the state is.
    """
    egress = read_egress(Path(config.egress)) if config.egress else {}
    _ask_briefly()
    clusters = RayClusters(config)
    return Launcher(config, clusters, egress, NewNotices(config.notices)), clusters
