from contextlib import AsyncExitStack, ExitStack, aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from ray_apps.serve.admission import Admission
from ray_apps.serve.errors import ApiError
from ray_apps.serve.jobs import Delta, Job, Started, TextPrompt
from ray_apps.serve.replicas import QueueLimits, ReplicaBackend


def enter(stack: ExitStack, admission: Admission, num_answers: int, room: int) -> None:
    stack.enter_context(admission.admitted(num_answers, room))


def test_every_answer_takes_a_place() -> None:
    admission = Admission()
    with ExitStack() as stack:
        for num_answers in (3, 4, 4, 4):
            enter(stack, admission, num_answers, room=16)
        with pytest.raises(ApiError) as refused:
            enter(stack, admission, 2, room=16)
        assert (refused.value.failure.status, refused.value.failure.retry_after_s) == (429, 1)
        enter(stack, admission, 1, room=16)
        with pytest.raises(ApiError):
            enter(stack, admission, 1, room=16)
    assert admission.num_open == 0


def test_no_request_takes_more_than_a_quarter_of_the_room() -> None:
    admission = Admission()
    with ExitStack() as stack:
        for _ in range(4):
            enter(stack, admission, 256, room=80)
        with pytest.raises(ApiError):
            enter(stack, admission, 1, room=80)
    assert admission.num_open == 0


def test_a_request_that_fails_leaves_its_places() -> None:
    admission = Admission()
    with pytest.raises(ValueError), admission.admitted(3, 4):
        raise ValueError
    assert admission.num_open == 0


class Replicas:
    """A handle whose replicas begin every answer, as far as a backend looks at one."""

    app_name, deployment_name = "app", "replica"

    def options(self, **options: Any) -> "Replicas":
        return self

    @property
    def generate(self) -> Any:
        return SimpleNamespace(remote=lambda job: Endless())


class Endless:
    """An answer without end."""

    def __init__(self) -> None:
        self._has_started = False

    def __aiter__(self) -> "Endless":
        return self

    async def __anext__(self) -> Started | Delta:
        item = Delta("x", 1, 1) if self._has_started else Started()
        self._has_started = True
        return item

    def cancel(self) -> None:
        pass


async def test_requests_for_several_answers_leave_no_room_for_another() -> None:
    replicas: Any = Replicas()
    backend = ReplicaBackend(replicas, QueueLimits(max_ongoing=4, max_queued=4, max_replicas=1))
    backend._census = SimpleNamespace(latest=None)  # type: ignore[assignment]
    several = Job("several", (TextPrompt("a"), TextPrompt("b")), num_answers=3, streams=True)
    one = Job("one", (TextPrompt("a"),), streams=True)
    async with AsyncExitStack() as stack:
        for _ in range(4):
            await anext(await stack.enter_async_context(aclosing(backend.generate(several))))
        with pytest.raises(ApiError) as refused:
            await anext(backend.generate(one))
        assert refused.value.failure.status == 429
    async with aclosing(backend.generate(one)) as deltas:
        await anext(deltas)
