"""`vicuna spot …`. Like the rest of the command line, each command imports what it needs when it runs."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from data_prep.errors import ConfigError
from ray_apps.options import OVERRIDES

if TYPE_CHECKING:
    from ray_apps.spot.bring_up import Launcher
    from ray_apps.spot.config import SpotConfig


@click.group()
def spot() -> None:
    """Machines that cost a third and are taken away at a moment's notice."""


@spot.command()
@click.option("--cloud", type=click.Choice(["aws", "gcp", "azure"]), help="Instead of the one that answers.")
@click.option("--records", metavar="PLACE", help="A folder or s3:// path that gets a JSON file for each notice.")
@click.option("--margin", "margin_s", type=click.FloatRange(min=0), default=5, show_default=True, metavar="SECONDS")
@click.option("--every", "every_s", type=click.FloatRange(min=0.1), default=1, show_default=True, metavar="SECONDS")
@click.option("--address", envvar="RAY_ADDRESS", default="auto", help="The Ray cluster: host:port.")
@click.option("--node", help="The name of the Ray node, where there are several on this machine.")
@click.option("--metadata-url", "url", help="Where the cloud's metadata server is, instead of its usual place.")
def watch(
    cloud: str | None,
    records: str | None,
    margin_s: float,
    every_s: float,
    address: str,
    node: str | None,
    url: str | None,
) -> None:
    """Drain this machine's Ray node when its cloud is about to take it away; until SIGTERM.

    Asks the cloud --every so often. Workers are told a deadline that is --margin before the real one.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    from ray_apps.spot.watcher import watch

    watch(cloud=cloud, url=url, address=address, node=node, records=records, margin_s=margin_s, every_s=every_s)


@spot.command()
@click.argument("words", nargs=-1, required=True, metavar="TRACE.csv... [policy.key=value | job.key=value]...")
@click.option(
    "--start",
    "starts_h",
    type=click.FloatRange(min=0),
    multiple=True,
    metavar="HOURS",
    help="Where in the traces runs start; may be repeated.",
)
@click.option("--recipe", help="A recipe whose section spot gives job and policy; what is set here goes before.")
@click.option("--egress", type=click.Path(path_type=Path), help="CSV from_region,to_region,price_usd_per_gb.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write an SVG of the first window.")
@click.option("--json", "as_json", is_flag=True, help="Print a list for programs instead.")
def simulate(
    words: tuple[str, ...],
    starts_h: tuple[float, ...],
    recipe: str | None,
    egress: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Try the spot policy on recorded availability and prices, beside what else one could do.

    Each TRACE is a CSV file of one zone, named after it: date,available,spot_usd_per_hour. Example:
    vicuna spot simulate us-east-1c.csv us-west-2a.csv job.work_h=40 policy.deadline_h=60
    """
    from ray_apps.spot.simulator.report import report

    base = {}
    if recipe is not None:
        from ray_apps.recipe import load_recipe, spot_section

        chosen = spot_section(load_recipe(recipe), recipe)
        base = {
            "job": chosen.job.model_dump(exclude_unset=True),
            "policy": chosen.policy.model_dump(exclude_unset=True),
        }
    traces = [Path(word) for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    report(traces, overrides, base=base, starts_h=starts_h or (0.0,), egress=egress, plot=plot, as_json=as_json)


@spot.command()
@click.argument("recipe")
@click.option("--cluster-only", is_flag=True, help="Have a cluster with all its workers, and leave it.")
@OVERRIDES
def up(recipe: str, cluster_only: bool, overrides: tuple[str, ...]) -> None:
    """Train RECIPE on spot machines in the best of the zones of its section spot.

    Where there is no room, or a region dies, it goes on elsewhere from its last checkpoint. At the end, at a limit and
    after Ctrl-C everything is taken down; after a kill the same command goes on. Example:
    vicuna spot up vicuna_7b spot.zones='{us-west-2: [us-west-2a, us-west-2b]}' spot.store=s3://bucket/vicuna_7b
    """
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("ray_apps").setLevel(logging.INFO)
    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)  # it warns of what itself put into a cluster file
    from ray_apps.recipe import load_recipe, spot_section

    loaded = load_recipe(recipe, overrides)
    config = spot_section(loaded, recipe)
    from ray_apps.spot.launch_state import held

    if config.run_dir is None and not cluster_only:
        raise ConfigError("spot.store: is required to train; expected s3://bucket/key; else give --cluster-only")
    with held(Path(config.state_path)), _interrupted_when_told_to_end():
        if config.run_dir is None or cluster_only:
            cluster = _launcher(config).up()
            click.echo(f"{cluster.name} is up in {cluster.zone}, ${cluster.usd_per_hour:.2f}/h")
            return
        from ray_apps.run_dir import RunDir
        from ray_apps.spot.job_run import JobRun
        from ray_apps.spot.launcher import make_launcher
        from ray_apps.spot_job import job_recipe, model_in_store, put_dataset

        job = job_recipe(loaded, recipe)
        launcher, clusters = make_launcher(config)
        launcher.holdings.begin(config.store)
        if model := model_in_store(loaded, recipe):
            if launcher.holdings.are_any:  # an earlier launcher was killed before it took them down
                launcher.down()
                launcher.forget()
            click.echo(f"{model} is there already; with another spot.store another model is trained")
            return
        put_dataset(loaded, recipe)
        took = JobRun(launcher, clusters, job, RunDir(config.run_dir)).finish()
        click.echo(f"{model_in_store(loaded, recipe)}: {took}")


@spot.command()
@click.argument("recipe")
@OVERRIDES
def down(recipe: str, overrides: tuple[str, ...]) -> None:
    """Terminate all machines of RECIPE's clusters, wherever their tags are found.

    A `vicuna spot up` of the same state that is under way saves and ends first.
    """
    from ray_apps.recipe import load_recipe, spot_section

    config = spot_section(load_recipe(recipe, overrides), recipe)
    from ray_apps.spot.launch_state import held

    with held(Path(config.state_path), end_other=True):
        click.echo(f"{_launcher(config).down()} machines were terminated, none is left")


@spot.command()
@click.argument("recipe")
@OVERRIDES
def status(recipe: str, overrides: tuple[str, ...]) -> None:
    """Say where RECIPE's cluster is, with how many workers, how far its run is, and what was spent."""
    from ray_apps.recipe import load_recipe, spot_section

    config = spot_section(load_recipe(recipe, overrides), recipe)
    click.echo(_launcher(config).status())
    if config.run_dir is not None:
        from ray_apps.run_dir import RunDir
        from ray_apps.spot.progress import read_progress

        click.echo(f"{config.run_dir}: {read_progress(RunDir(config.run_dir).read_metrics(), config.job)}")


@spot.command(hidden=True)
@click.argument("recipe")
def job(recipe: str) -> None:
    """What `vicuna spot up` has a cluster run."""
    from ray_apps.recipe import load_recipe
    from ray_apps.spot_job import run_job

    run_job(load_recipe(recipe), recipe)


def _launcher(config: "SpotConfig") -> "Launcher":
    from ray_apps.spot.launcher import make_launcher

    return make_launcher(config)[0]


@contextmanager
def _interrupted_when_told_to_end() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is closed, are as Ctrl-C."""
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
