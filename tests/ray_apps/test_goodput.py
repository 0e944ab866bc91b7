from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ray_apps.goodput import Recovery, account, find_recoveries

Records = list[dict[str, Any]]


def start(step: int, time: float) -> dict[str, Any]:
    return {"event": "start", "step": step, "time": time, "num_steps": 99, "pids": [1]}


def step(number: int, time: float) -> dict[str, Any]:
    return {"step": number, "time": time, "loss": 1.0}


def saved(number: int, time: float) -> dict[str, Any]:
    return {"event": "checkpoint", "step": number, "time": time}


def test_a_run_that_was_never_interrupted_has_no_recovery() -> None:
    assert find_recoveries([]) == []
    finish = {"event": "finish", "step": 2, "time": 5.0}
    assert find_recoveries([start(0, 1.0), step(1, 2.0), step(2, 3.0), saved(2, 4.0), finish]) == []


def test_an_interruption_costs_the_steps_since_the_checkpoint_and_the_time_to_the_next_step() -> None:
    before = [start(0, 10.0), step(1, 11.0), step(2, 12.0), saved(2, 12.5), step(3, 13.0), step(4, 14.0)]
    (recovery,) = find_recoveries([*before, start(2, 20.0), step(3, 21.5), step(4, 22.5)])
    assert recovery == Recovery(lost_step=4, resumed_step=2, seconds=7.5)
    assert recovery.steps_redone == 2


def test_nothing_is_redone_when_the_checkpoint_was_just_saved() -> None:
    (recovery,) = find_recoveries([start(0, 1.0), step(1, 2.0), saved(1, 3.0), start(1, 9.0), step(2, 10.0)])
    assert recovery == Recovery(lost_step=1, resumed_step=1, seconds=7.0)
    assert recovery.steps_redone == 0


def test_a_recovery_is_counted_when_work_has_gone_on() -> None:
    assert find_recoveries([start(0, 1.0), step(1, 2.0), start(0, 9.0)]) == []


def test_a_restart_that_dies_before_its_first_step_belongs_to_the_same_recovery() -> None:
    records = [start(0, 1.0), step(1, 2.0), step(2, 3.0), saved(2, 3.5), step(3, 4.0)]
    (recovery,) = find_recoveries([*records, start(2, 10.0), start(2, 20.0), step(3, 21.0)])
    assert recovery == Recovery(lost_step=3, resumed_step=2, seconds=17.0)


def test_a_first_start_that_dies_before_its_first_step_is_an_interruption() -> None:
    assert find_recoveries([start(0, 1.0), start(0, 5.0), step(1, 6.0)]) == [Recovery(0, 0, 5.0)]


@given(attempts=st.lists(st.integers(0, 6), min_size=1, max_size=6), every=st.integers(1, 4))
def test_every_step_that_was_thrown_away_is_counted_once(attempts: list[int], every: int) -> None:
    """Each attempt does some steps from the last checkpoint on, and is then killed."""
    records: Records = []
    checkpoint, clock = 0, 1.0
    for num_steps in attempts:
        records.append(start(checkpoint, clock := clock + 10))
        for number in range(checkpoint + 1, checkpoint + num_steps + 1):
            records.append(step(number, clock := clock + 1))
            if number % every == 0:
                records.append(saved(checkpoint := number, clock := clock + 1))
    done = [record["step"] for record in records if "loss" in record]
    recoveries = find_recoveries(records)
    if attempts[-1] > 0:
        assert sum(recovery.steps_redone for recovery in recoveries) == len(done) - done[-1]
    assert all(recovery.seconds > 10 for recovery in recoveries)
    assert all(recovery.resumed_step % every == 0 for recovery in recoveries)


def test_every_second_of_a_run_is_in_one_bucket() -> None:
    launch = {"event": "launch", "time": 100.0}
    first = [{**start(0, 110.0), "build_s": 1.0, "restore_s": 0.0}]
    steps = [{**step(number, 110.0 + 2 * number), "seconds": 2.0, "tokens": 10} for number in (1, 2, 3)]
    save = {**saved(2, 116.0), "blocked_s": 0.5}  # beside the training: training stood still before, during step 3
    again = [{**start(2, 130.0), "restore_s": 3.0}, {**step(3, 132.0), "seconds": 2.0, "tokens": 10}]
    goodput = account([launch, *first, *steps[:2], save, {**steps[2], "time": 116.5, "save_s": 0.5}, *again])
    assert goodput.buckets() == {
        "productive": 6.0,
        "initialisation": 10.0,
        "save": 0.5,
        "restore": 3.0,
        "wasted": 2.0,
        "recovery": 10.5,
        "other": 0.0,
    }
    assert goodput.elapsed == 132.0 - 100.0
    assert goodput.tokens == 30


def test_time_between_two_commands_is_not_the_run_s() -> None:
    records = [{"event": "launch", "time": 0.0}, start(0, 5.0), {**step(1, 6.0), "seconds": 1.0}]
    later = [{"event": "launch", "time": 1000.0}, start(1, 1004.0), {**step(2, 1005.0), "seconds": 1.0}]
    goodput = account([*records, *later])
    assert (goodput.elapsed, goodput.initialisation, goodput.recovery) == (11.0, 9.0, 0.0)
