"""What the spot policy costs on recorded availability and prices of V100 machines, beside what was published of them.

    make bench-spot TRACES=DIR

DIR holds one `ZONE_v100.csv` for each zone, as `vicuna spot simulate` reads them, and `aws_egress_pricing.csv`. The
runs are those of SkyNomad (NSDI 2027): 39.94 h of work to be done in 59.91 h, restarts of 0.2 h, a checkpoint of 50 GB.
Policies were tuned on TUNED windows and are reported on REPORTED ones. Ends with one JSON line per goal.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.support.goals import goal_line
from ray_apps.spot.policy import EAGER, PolicySettings
from ray_apps.spot.pricing import read_egress
from ray_apps.spot.simulator.compare import Line, run_all, windows
from ray_apps.spot.simulator.job import SimulatedJob
from ray_apps.spot.simulator.optimum import optimum_usd
from ray_apps.spot.simulator.traces import Trace, read_traces

DEADLINE_H = 59.90833
JOB = SimulatedJob(work_h=39.93889, cold_start_h=0.2, on_demand_usd_per_hour=3.06, checkpoint_gb=50)
REPORTED = (3, 5, 7, 8, 14)
TUNED = (0, 1, 2, 4, 6, 9, 10, 11, 12, 13, 15, 16, 17)
"""Numbers of windows, each of which begins where the one before ends."""

PUBLISHED_EAGER_USD, PUBLISHED_ZONE_USD, PUBLISHED_BEST_USD, PUBLISHED_OPTIMUM_USD = 47.02, 68.71, 41.73, 37.37
POLICIES = {
    "default": PolicySettings(deadline_h=DEADLINE_H),
    "half an hour of patience": PolicySettings(deadline_h=DEADLINE_H, patience_h=0.5, price_margin=0.15),
    "eager failover": EAGER.model_copy(update={"deadline_h": DEADLINE_H}),
}
INTERVALS_H = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

Egress = Mapping[tuple[str, str], float]
Parts = Sequence[Sequence[Trace]]


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: make bench-spot TRACES=DIR")
    folder = Path(sys.argv[1])
    traces = read_traces(sorted(folder.glob("*-[0-9][a-z]_*.csv")))
    egress = read_egress(folder / "aws_egress_pricing.csv")
    reported, tuned = (windows(traces, [DEADLINE_H * n for n in which], DEADLINE_H) for which in (REPORTED, TUNED))
    lines = {name: run_all(name, JOB, settings, reported, egress) for name, settings in POLICIES.items()}
    zones = [
        run_all(trace.zone, JOB, POLICIES["eager failover"], alone(reported, n), egress)
        for n, trace in enumerate(traces)
    ]
    best = Line("offline optimum", tuple(optimum_usd(JOB, part, DEADLINE_H, egress) for part in reported))
    print(f"windows {', '.join(map(str, REPORTED))}")
    tell([*lines.values(), *zones, best])
    print(f"\nwindows {', '.join(map(str, TUNED))}, on which the defaults were chosen")
    tell([run_all(name, JOB, settings, tuned, egress) for name, settings in POLICIES.items()])
    tell_urgent(reported, egress)
    print("\n".join(goals(lines, zones, best)))


def alone(parts: Parts, number: int) -> Parts:
    """One zone of each window."""
    return [[part[number]] for part in parts]


def tell(lines: Sequence[Line]) -> None:
    """A table of Markdown."""
    print("| | $ (least to most) | hours | late | migrations | goodput per paid hour; per hour |")
    print("|---|---|---|---|---|---|")
    for line in lines:
        row = f"| {line.name} | {line.mean_usd:.2f} ({min(line.usd):.2f} to {max(line.usd):.2f}) |"
        if line.outcomes:
            goodput = [line.mean(f"goodput_per_{hour}_hour") for hour in ("paid", "wall")]
            row += f" {line.mean('wall_h'):.1f} | {line.num_late} | {line.mean('num_migrations'):.1f} |"
            row += f" {goodput[0]:.3f}; {goodput[1]:.3f} |"
        print(row)


def tell_urgent(parts: Parts, egress: Egress) -> None:
    """What it costs to save only every so often, with and without a checkpoint when a machine is taken away."""
    print(
        "\n| hours between checkpoints | $, hours with urgent ones | $, hours without | hours of work done twice |"
        "\n|---|---|---|---|"
    )
    for interval in INTERVALS_H:
        often = JOB.model_copy(update={"checkpoint_every_h": interval})
        urgent, none = (
            run_all("", job, POLICIES["default"], parts, egress)
            for job in (often, often.model_copy(update={"notice_h": 0.0}))
        )
        late = f" ({none.num_late} late)" if none.num_late else ""
        costs = (f"{line.mean_usd:.2f}, {line.mean('wall_h'):.1f}" for line in (urgent, none))
        print(f"| {interval:g} | {' | '.join(costs)}{late} | {none.mean('wasted_h'):.2f} |")


def goals(lines: Mapping[str, Line], zones: Sequence[Line], best: Line) -> list[str]:
    """One JSON line for each goal."""
    default, eager = lines["default"], lines["eager failover"]
    off = abs(eager.mean_usd / PUBLISHED_EAGER_USD - 1)
    zone_usd = statistics.fmean(zone.mean_usd for zone in zones)
    goodput = default.mean("goodput_per_paid_hour")
    return [
        goal_line("eager failover: share by which it is off the published $47.02", off, at_most=0.02),
        goal_line("eager failover: migrations, 9 or fewer", eager.mean("num_migrations"), at_most=9),
        goal_line("eager failover: migrations, 7 or more", eager.mean("num_migrations"), at_least=7),
        goal_line("one zone: dollars against the published", zone_usd, PUBLISHED_ZONE_USD),
        goal_line("offline optimum: dollars against the published", best.mean_usd, PUBLISHED_OPTIMUM_USD),
        goal_line("default policy: dollars", default.mean_usd, at_most=45),
        goal_line("default policy: dollars, the best published", default.mean_usd, at_most=41.7),
        goal_line("default policy: dollars against the best published", default.mean_usd, PUBLISHED_BEST_USD),
        goal_line("default policy: windows that end late", default.num_late, at_most=0),
        goal_line("default policy: hours", default.mean("wall_h"), eager.mean("wall_h")),
        goal_line("default policy: goodput per paid hour", goodput, at_least=0.95),
    ]


if __name__ == "__main__":
    main()
