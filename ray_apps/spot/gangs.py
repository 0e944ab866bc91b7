"""Machines of EC2 that come together: all that one request names run, or none stays. Knows nothing of Ray.

Three things could leave a machine that nobody counts, and is paid for: an answer that is lost after the request was
carried out, a gang of which a part fails, and a termination that fails. So each request has a token of its own, which
EC2 takes for the same request when it comes again and which is a tag of its machines; and what a failed request may
have left is looked for and terminated until EC2 would have listed it.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from ray_apps.spot.aws_errors import Blame, blame, blame_code, code_of, describe

logger = logging.getLogger(__name__)

TAG_LAUNCH = "vicuna-launch"
POLL_S = 3.0
MAX_TRIES = 4
"""How often one request is sent while AWS is busy or out of reach."""
UNSEEN_S = 180.0
"""After that long a machine is in EC2's lists, if there is one."""
AWS_ERRORS = (ClientError, BotoCoreError)


class LaunchError(Exception):
    """A request did not give all its machines, and none stays. `code`: AWS's, or `GangTimeout`."""

    def __init__(self, code: str, blamed: Blame, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.blame = blamed


@dataclass(frozen=True)
class _Leftover:
    """Of a request: what to terminate, and `keep` what was handed on. After `until` nothing new can appear."""

    known: frozenset[str]
    keep: frozenset[str]
    until: float


@dataclass
class Gangs:
    """Starts machines in one region. Thread-safe.

    `ec2`: boto3's resource, which tries again by itself. `ec2_fail_fast`: one that does not. Times are in seconds.
    """

    ec2: Any
    ec2_fail_fast: Any
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._leftovers: dict[str, _Leftover] = {}  # by token

    def launch(self, request: dict[str, Any], count: int, deadline: float) -> dict[str, Any]:
        """Have `count` machines run, all by `deadline`.

        Args:
            request: for EC2's RunInstances, with `TagSpecifications` of which the first is the instances'.
            count: of machines.
            deadline: in seconds of `now`.

        Returns:
            EC2's instances by id.

        Raises:
            LaunchError: they did not.
        """
        token = uuid.uuid4().hex
        first, *others = request["TagSpecifications"]
        tags = {**first, "Tags": [*first["Tags"], {"Key": TAG_LAUNCH, "Value": token}]}
        whole = {"MinCount": count, "MaxCount": count, "ClientToken": token, "TagSpecifications": [tags, *others]}
        created: dict[str, Any] = {}
        is_certain = False
        try:
            instances, is_certain = self._send({**request, **whole})
            created = {instance.id: instance for instance in instances}
            if len(created) < count:
                raise LaunchError("UnfulfillableCapacity", Blame.POOL, f"{len(created)} of {count} machines")
            self._wait_until_running(list(created), deadline)
        except _RejectedError as rejected:
            raise rejected.error from None
        except BaseException:
            self._leave(token, known=created, keep=())
            raise
        if not is_certain:
            self._leave(token, known=(), keep=created)
        return created

    def states(self, ids: Iterable[str]) -> dict[str, tuple[str, str]]:
        """State, and the code of its reason, of those machines that EC2 lists, by id.

        Raises:
            LaunchError: it refuses, or is out of reach.
        """
        try:
            # As a filter, an id that is not listed yet is no error.
            instances = self._instances({"Name": "instance-id", "Values": list(ids)})
        except AWS_ERRORS as error:
            raise LaunchError(code_of(error), blame(error), describe(error)) from error
        return {
            instance["InstanceId"]: (instance["State"]["Name"], instance.get("StateReason", {}).get("Code", ""))
            for instance in instances
        }

    def clean_up(self) -> None:
        """Terminate what failed requests have left. Cheap if there is none; what fails is tried at the next call."""
        with self._lock:
            leftovers = dict(self._leftovers)
        for token, leftover in leftovers.items():
            if self._terminate(token, leftover):
                with self._lock:
                    self._leftovers.pop(token, None)

    def _send(self, request: dict[str, Any]) -> tuple[list[Any], bool]:
        """What one request gives, and whether that is certain to be all. Raises LaunchError."""
        for attempt in range(1, MAX_TRIES + 1):
            try:
                return self.ec2_fail_fast.create_instances(**request), attempt == 1
            except AWS_ERRORS as error:
                failed = LaunchError(code_of(error), blame(error), describe(error))
                if failed.blame is not Blame.RETRY and attempt == 1:
                    raise _RejectedError(failed) from error
                # An earlier one may have been carried out, whatever a later one is told.
                if failed.blame is not Blame.RETRY or attempt == MAX_TRIES:
                    raise failed from error
            self.sleep(2.0**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _wait_until_running(self, ids: list[str], deadline: float) -> None:
        states: dict[str, tuple[str, str]] = {}
        while True:
            try:
                states = self.states(ids)
            except LaunchError as failed:
                if failed.blame is not Blame.RETRY:
                    raise
            for machine, (state, reason) in states.items():
                if state not in ("pending", "running"):
                    blamed = blame_code(reason)
                    # It was a machine: whatever ended it, the request was right.
                    blamed = Blame.POOL if blamed in (Blame.RETRY, Blame.STOP) else blamed
                    raise LaunchError(reason or state, blamed, f"{machine} is {state} ({reason or 'no reason given'})")
            num_running = sum(state == "running" for state, _ in states.values())
            if num_running == len(ids):
                return
            if self.now() >= deadline:
                raise LaunchError("GangTimeout", Blame.POOL, f"{num_running} of {len(ids)} machines ran in time")
            self.sleep(POLL_S)

    def _leave(self, token: str, known: Iterable[str], keep: Iterable[str]) -> None:
        with self._lock:
            self._leftovers[token] = _Leftover(frozenset(known), frozenset(keep), self.now() + UNSEEN_S)
        self.clean_up()

    def _terminate(self, token: str, leftover: _Leftover) -> bool:
        """Whether nothing of it is left."""
        is_late = self.now() >= leftover.until
        try:
            listed = self._instances(
                {"Name": f"tag:{TAG_LAUNCH}", "Values": [token]},
                {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]},
            )
            ids = ({instance["InstanceId"] for instance in listed} | leftover.known) - leftover.keep
            if ids:
                self.ec2.meta.client.terminate_instances(InstanceIds=sorted(ids))
                logger.warning("terminated what a failed request left: %s", ", ".join(sorted(ids)))
        except AWS_ERRORS as error:
            logger.warning("what a failed request left is not terminated yet: %s", describe(error))
            return is_late and code_of(error) == "InvalidInstanceID.NotFound"
        return is_late or bool(leftover.known)

    def _instances(self, *filters: dict[str, Any]) -> list[dict[str, Any]]:
        pages = self.ec2.meta.client.get_paginator("describe_instances").paginate(Filters=list(filters))
        return [
            instance for page in pages for reservation in page["Reservations"] for instance in reservation["Instances"]
        ]


class _RejectedError(Exception):
    """The first request was refused: there is certainly nothing."""

    def __init__(self, error: LaunchError) -> None:
        super().__init__(str(error))
        self.error = error
