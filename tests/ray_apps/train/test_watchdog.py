import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_apps.run_dir import RunDir
from ray_apps.train.config import TrainConfig
from ray_apps.train.watchdog import (
    EXIT_CODE,
    LAG_BEATS,
    Beat,
    Seen,
    Watchdog,
    describe_hanging,
    find_hanging,
    find_lagging,
)
from tests.processes import CPU, group, start

WAITING = Beat(9, 4, "distributed_c10d.py:1 all_reduce", waits=True, place="process 1 on a")
BUSY = Beat(9, 4, "loop.py:7 oversleep", waits=False, place="process 2 on b")


def test_a_silent_rank_is_named_before_a_busy_one() -> None:
    seen = {0: Seen(BUSY, 1.0), 1: Seen(WAITING, 60.0), 2: Seen(WAITING, 1.0)}
    assert find_hanging(seen, silent_s=15) == {1: "no sign of life for 60 s"}


def test_a_rank_that_does_not_wait_for_others_is_named() -> None:
    seen = {0: Seen(WAITING, 1.0), 1: Seen(BUSY, 1.0)}
    assert describe_hanging(seen, silent_s=15) == (
        "rank 1 (process 2 on b) hangs after step 4: stuck at loop.py:7 oversleep"
    )


def test_where_none_is_seen_to_wait_those_elsewhere_than_most_are_named() -> None:
    waiting = Beat(9, 4, "loop.py:60 train_step", waits=False, place="process 1 on a")
    assert find_hanging({0: Seen(waiting, 1.0), 1: Seen(BUSY, 1.0), 2: Seen(waiting, 1.0)}, silent_s=15) == {
        1: "stuck at loop.py:7 oversleep"
    }
    assert set(find_hanging({0: Seen(waiting, 1.0), 1: Seen(BUSY, 1.0)}, silent_s=15)) == {0, 1}
    assert set(find_hanging({0: Seen(waiting, 1.0), 1: Seen(waiting, 1.0)}, silent_s=15)) == {0, 1}


def test_ranks_that_all_wait_are_told_with_their_places() -> None:
    message = describe_hanging({0: Seen(WAITING, 1.0), 1: Seen(WAITING, 1.0)}, silent_s=15)
    assert message.startswith("all ranks wait for each other: 0 at distributed_c10d.py:1 all_reduce, 1 at")


def beats(waits: int, *, steps: int = 2) -> list[Beat]:
    """Of a rank that waits in so many of 20 looks."""
    return [
        Beat(number, number * steps // LAG_BEATS, "loop.py:1 step", waits=number < waits, place="process 1 on a")
        for number in range(LAG_BEATS)
    ]


@pytest.mark.parametrize(
    ("told", "lagging"),
    [
        ({0: beats(15), 1: beats(1), 2: beats(12)}, {1}),
        ({0: beats(1), 1: beats(18)}, {0}),
        ({0: beats(15), 1: beats(14)}, set()),
        ({0: beats(3), 1: beats(5)}, set()),
        ({0: beats(0), 1: beats(1)}, set()),  # as with NCCL, where a rank that waits looks busy
        ({0: beats(15), 1: beats(1, steps=0)}, set()),
        ({0: beats(15), 1: beats(1)[:10]}, set()),
    ],
)
def test_a_rank_lags_that_hardly_waits_where_all_others_mostly_do(
    told: dict[int, list[Beat]], lagging: set[int]
) -> None:
    assert find_lagging(told).keys() == lagging


def train_slowly(rank: int, rendezvous: str, config: TrainConfig, slow_rank: int) -> None:
    """Train on two ranks, one of which takes longer over each step."""
    from ray_apps.train import loop

    load = loop.load_batch

    def load_slowly(*arguments: object) -> object:
        time.sleep(0.3 if rank == slow_rank else 0)
        return load(*arguments)  # type: ignore[arg-type]

    loop.load_batch = load_slowly  # type: ignore[assignment]
    with group(rank, 2, rendezvous):
        loop.run_training(config, CPU)


@pytest.mark.slow
@pytest.mark.parametrize("slow_rank", [pytest.param(0, marks=pytest.mark.soak), 1])
def test_a_rank_that_lags_is_named(make_config: Callable[..., TrainConfig], tmp_path: Path, slow_rank: int) -> None:
    config = make_config(max_steps=24, epochs=99, num_workers=2, hang_timeout_s=6.0)
    ranks = [start(train_slowly, rank, str(tmp_path / "rendezvous"), config, slow_rank) for rank in (0, 1)]
    for rank in ranks:
        rank.join(90)
        assert rank.exitcode == 0
    records = [record for record in RunDir(config.run_dir).read_metrics() if record.get("event") == "lag"]
    assert any(
        re.search(rf"^rank {slow_rank} \(process \d+ on .*\) lags: it waits in", one["message"]) for one in records
    )


def hang_at_step(rank: int, rendezvous: str, config: TrainConfig, step: int, frozen: bool, hanging_rank: int) -> None:
    """Train on two ranks; one of them hangs after `step`: its whole process is frozen, or it oversleeps."""
    from ray_apps.train.loop import run_training
    from ray_apps.train.saving import Keeper

    after_step = Keeper.after_step

    def oversleep(self: Keeper, state: object, *arguments: object, **options: object) -> bool:
        if state.step == step and rank == hanging_rank:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGSTOP) if frozen else time.sleep(60)
        return after_step(self, state, *arguments, **options)  # type: ignore[arg-type]

    Keeper.after_step = oversleep  # type: ignore[method-assign, assignment]
    with group(rank, 2, rendezvous):
        run_training(config, CPU)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frozen", "hanging_rank", "expected"),
    [
        (True, 1, r"rank 1 \(process \d+ on .*\) hangs after step \d+: no sign of life for \d+ s"),
        (False, 1, r"rank 1 \(process \d+ on .*\) hangs after step 3: stuck at \S+ oversleep"),
        (True, 0, r"rank 0 .*hangs"),
    ],
    ids=["frozen", "oversleeping", "rank 0 frozen"],
)
def test_a_rank_that_hangs_is_named_and_not_waited_for(
    make_config: Callable[..., TrainConfig], tmp_path: Path, frozen: bool, hanging_rank: int, expected: str
) -> None:
    config = make_config(max_steps=8, num_workers=2, hang_timeout_s=8.0)
    ranks = [
        start(hang_at_step, rank, str(tmp_path / "rendezvous"), config, 3, frozen, hanging_rank) for rank in (0, 1)
    ]
    ranks[1 - hanging_rank].join(60)
    assert ranks[1 - hanging_rank].exitcode in (EXIT_CODE, 1)  # 1: the hanging one was the first to give up
    ranks[hanging_rank].kill()
    ranks[hanging_rank].join()
    records = RunDir(config.run_dir).read_metrics()
    (hang,) = [record for record in records if record.get("event") == "hang"]
    assert re.search(expected, hang["message"])
    assert [record for record in records if record.get("event") == "lag"]


@pytest.mark.parametrize("fails", [True, False], ids=["full", "hanging"])
def test_a_disk_that_takes_no_metrics_does_not_keep_a_hang_alive(
    process_group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    def append(run: RunDir, record: object) -> None:
        if fails:
            raise OSError(28, "No space left on device")
        time.sleep(30)

    monkeypatch.setattr(RunDir, "append_metrics", append)
    ended: list[int] = []
    with Watchdog(RunDir(str(tmp_path / "run")), 0.4, end=ended.append):
        deadline = time.monotonic() + 20
        while not ended and time.monotonic() < deadline:
            time.sleep(0.05)
    assert ended[0] == EXIT_CODE
