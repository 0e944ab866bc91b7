"""Workers answer, fail, die or hang, and the report says which one."""

import os
import time
from collections.abc import Iterator

import pytest

from ray_apps.doctor.workers import Answer, LocalWorkers, attempt, failures, first_ranks


def place(rank: int, world_size: int, offset: int) -> tuple[int, int, int]:
    return rank + offset, world_size, os.getpid()


def fail_on_1(rank: int, world_size: int) -> int:
    if rank == 1:
        raise ValueError("no such thing\nand more")
    return rank


def die_on_1(rank: int, world_size: int) -> None:
    if rank == 1:
        os._exit(7)


def hang_on_1(rank: int, world_size: int) -> None:
    if rank == 1:
        time.sleep(60)


@pytest.fixture
def workers() -> Iterator[LocalWorkers]:
    with LocalWorkers(2) as workers:
        yield workers


@pytest.mark.slow
def test_every_worker_is_a_process_of_its_own_that_stays(workers: LocalWorkers) -> None:
    first = workers.run(place, 10, timeout_s=60)
    assert [answer.value[:2] for answer in first] == [(10, 2), (11, 2)]
    assert len({answer.value[2] for answer in first} | {os.getpid()}) == 3
    (again,) = workers.run(place, 10, timeout_s=60, ranks=[1])
    assert again == first[1]


@pytest.mark.slow
def test_an_error_is_an_answer_and_the_worker_goes_on(workers: LocalWorkers) -> None:
    answers = workers.run(fail_on_1, timeout_s=60)
    assert [answer.value for answer in answers] == [0, None]
    assert failures(answers) == f"rank 1 ({workers.nodes[1]}): no such thing"
    assert not failures(workers.run(place, 0, timeout_s=60))


@pytest.mark.slow
def test_a_worker_that_dies_is_named_and_the_other_goes_on(workers: LocalWorkers) -> None:
    assert failures(workers.run(die_on_1, timeout_s=60)).endswith("its process died with exit code 7")
    gone, still = (workers.run(place, 0, timeout_s=60)[rank] for rank in (1, 0))
    assert gone.silent
    assert gone.failure == "its process has ended"
    assert still.failure is None


@pytest.mark.slow
def test_a_worker_that_hangs_is_ended(workers: LocalWorkers) -> None:
    workers.run(place, 0, timeout_s=60)
    answers = workers.run(hang_on_1, timeout_s=1)
    assert [answer.silent for answer in answers] == [False, True]
    assert failures(answers) == f"rank 1 ({workers.nodes[1]}): no answer within 1 s"


@pytest.mark.slow
def test_the_answer_to_an_interrupted_call_is_not_taken_for_the_next(
    workers: LocalWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ray_apps.doctor.workers.wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            workers.run(fail_on_1, timeout_s=60)
    assert [answer.value[0] for answer in workers.run(place, 5, timeout_s=60)] == [5, 6]


def test_those_who_said_nothing_are_to_blame() -> None:
    error = Answer(0, "a", failure="rank 1 did not join")
    silent = Answer(1, "b", failure="no answer within 9 s", silent=True)
    assert failures([error, silent]) == "rank 1 (b): no answer within 9 s"
    assert failures([error, Answer(1, "b", 1)]) == "rank 0 (a): rank 1 did not join"
    assert failures([Answer(0, "a", 1)]) == ""


def test_one_worker_speaks_for_its_node() -> None:
    assert first_ranks(["a", "a", "b", "a", "c"]) == [0, 2, 4]


def test_an_error_without_words_is_named() -> None:
    def fail() -> None:
        raise ValueError

    assert attempt(fail) == (None, "ValueError")
