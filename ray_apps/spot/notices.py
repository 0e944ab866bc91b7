"""What a cloud says to a machine that it is about to take away.

Each class asks one cloud's metadata server. An answer is a notice only if it is the one that the cloud documents; all
else raises, and says nothing. Who hears of a notice, and what is done, is not known here.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Protocol

from ray_apps.spot.metadata import MetadataError, MetadataServer, RefusedError

logger = logging.getLogger(__name__)

WITHIN_S = 3600.0
"""A notice of a time further off than this, in either direction, is not believed: clouds tell minutes ahead."""
SHORT_NOTICE_S = 30.0
"""Between the notice and the end of a machine, on GCP and Azure."""


@dataclass(frozen=True)
class Notice:
    """This machine will be taken away at `deadline`, in seconds since 1970.

    `id` tells notices to one machine apart. `kind`: the cloud's own word. An `advisory` one says only that this has
    become likelier, and has no deadline.
    """

    id: str
    kind: str
    deadline: float | None
    advisory: bool = False


@dataclass(frozen=True)
class Machine:
    """What a launcher has to know to look for another one. What the cloud did not tell is empty."""

    instance: str = ""
    zone: str = ""
    instance_type: str = ""


class Cloud(Protocol):
    """One cloud's metadata server, as a machine of it sees it. Every call may raise `MetadataError`."""

    name: ClassVar[str]

    def is_here(self) -> bool:
        """Whether this machine is one of this cloud's. Raises nothing."""

    def machine(self) -> Machine:
        """Which machine this is."""

    def notices(self) -> list[Notice]:
        """All that there are at this moment."""


class AWS:
    """EC2 spot interruptions and rebalance recommendations, by version 2 of the instance metadata service.

    Source: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    """

    name: ClassVar = "aws"
    url = "http://169.254.169.254"
    token_s = 21600
    """Seconds for which a token is asked for; it is renewed after half of them."""

    def __init__(self, url: str = url) -> None:
        self._server = MetadataServer(url)
        self._token: str | None = None
        self._renew_at = 0.0

    def is_here(self) -> bool:
        """Whether a token is given."""
        return _answers(self._renew)

    def machine(self) -> Machine:
        """Instance id, availability zone, instance type."""
        names = ("instance-id", "placement/availability-zone", "instance-type")
        instance, zone, kind = (self._find(f"/latest/meta-data/{name}") or "" for name in names)
        return Machine(instance, zone, kind)

    def notices(self) -> list[Notice]:
        """An interruption, two minutes ahead at best, and a recommendation to leave, which is advisory."""
        found = []
        if text := self._find("/latest/meta-data/spot/instance-action"):
            action = _parse(text)
            kind, when = _text(action, "action"), _text(action, "time")
            if kind not in ("terminate", "stop", "hibernate"):
                raise MetadataError(f"instance-action: {kind!r} is no action")
            found.append(Notice(f"{kind}-{when}", kind, _believed(_utc(when))))
        try:
            text = self._find("/latest/meta-data/events/recommendations/rebalance")
            if text:
                found.append(Notice(f"rebalance-{_text(_parse(text), 'noticeTime')}", "rebalance", None, advisory=True))
        except MetadataError as error:  # nothing about an advice may hide or delay an interruption
            logger.debug("no advice: %s", error)
        return found

    def _find(self, path: str) -> str | None:
        if self._token is None or time.monotonic() > self._renew_at:
            self._renew()
        try:
            return self._server.find(path, self._headers())
        except RefusedError:  # the server has forgotten it, as after the machine was stopped
            self._renew()
            return self._server.find(path, self._headers())

    def _headers(self) -> dict[str, str]:
        return {"X-aws-ec2-metadata-token": self._token or ""}

    def _renew(self) -> None:
        ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(self.token_s)}
        token = self._server.put("/latest/api/token", ttl).strip()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise MetadataError("/latest/api/token: this is no token")
        self._token, self._renew_at = token, time.monotonic() + self.token_s / 2


class GCP:
    """Compute Engine's preemption, of which the metadata server says no time: 30 s after it is first seen.

    The server is asked at its address, which needs no name server.

    Source: https://cloud.google.com/compute/docs/instances/create-use-preemptible
    """

    name: ClassVar = "gcp"
    url = "http://169.254.169.254"
    flavor: ClassVar = {"Metadata-Flavor": "Google"}
    """A header of every question and of every answer."""

    def __init__(self, url: str = url) -> None:
        self._server = MetadataServer(url)
        self._seen_at: float | None = None

    def is_here(self) -> bool:
        """Whether the server answers as Google's."""
        return _answers(lambda: self._get("id"))

    def machine(self) -> Machine:
        """Instance id, zone, machine type."""
        instance, zone, kind = (self._get(name).strip().rpartition("/")[2] for name in ("id", "zone", "machine-type"))
        return Machine(instance, zone, kind)

    def notices(self) -> list[Notice]:
        """The preemption, once there is one."""
        answer = self._get("preempted").strip()
        if answer not in ("TRUE", "FALSE"):
            raise MetadataError(f"preempted: {answer[:40]!r} is neither TRUE nor FALSE")
        if answer == "FALSE":
            self._seen_at = None
            return []
        self._seen_at = self._seen_at or time.time()
        return [Notice("preempted", "preempted", self._seen_at + SHORT_NOTICE_S)]

    def _get(self, name: str) -> str:
        return self._server.get(f"/computeMetadata/v1/instance/{name}", self.flavor, answers_with=self.flavor)


class Azure:
    """Scheduled events of the kind Preempt that name this machine; those of its neighbours are in the same list.

    Source: https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events
    """

    name: ClassVar = "azure"
    url = "http://169.254.169.254"
    headers: ClassVar = {"Metadata": "true"}

    def __init__(self, url: str = url) -> None:
        self._server = MetadataServer(url)
        self._name: str | None = None
        self._started_at: dict[str, float] = {}

    def is_here(self) -> bool:
        """Whether the server knows the machine's name."""
        return _answers(self._own_name)

    def machine(self) -> Machine:
        """Name, region and zone, size."""
        compute = _parse(
            self._server.get("/metadata/instance/compute?api-version=2021-02-01&format=json", self.headers)
        )
        name, location, zone, size = (str(compute.get(key) or "") for key in ("name", "location", "zone", "vmSize"))
        return Machine(name, f"{location}-{zone}" if zone else location, size)

    def notices(self) -> list[Notice]:
        """The preemptions of this machine, 30 s ahead."""
        document = _parse(self._server.get("/metadata/scheduledevents?api-version=2020-07-01", self.headers))
        events = document.get("Events")
        if not isinstance(events, list):
            raise MetadataError("scheduledevents: there is no list of events")
        return [self._notice(event) for event in events if self._is_ours(event)]

    def _is_ours(self, event: Any) -> bool:
        if not isinstance(event, dict) or event.get("EventType") != "Preempt":
            return False
        resources = event.get("Resources")
        named = [name.casefold() for name in resources if isinstance(name, str)] if isinstance(resources, list) else []
        return event.get("EventStatus") in ("Scheduled", "Started") and self._own_name().casefold() in named

    def _notice(self, event: dict[str, Any]) -> Notice:
        event_id = _text(event, "EventId")
        if event.get("EventStatus") == "Started" and not event.get("NotBefore"):  # it can be gone at any moment
            deadline = self._started_at.setdefault(event_id, time.time())
        else:
            deadline = _believed(_http_date(_text(event, "NotBefore")))
        return Notice(event_id, "Preempt", deadline)

    def _own_name(self) -> str:
        if self._name is None:
            path = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
            name = self._server.get(path, self.headers).strip()
            if not name or len(name) > 200 or not name.isprintable():
                raise MetadataError("compute/name: this is no name")
            self._name = name
        return self._name


CLOUDS: dict[str, Callable[..., Cloud]] = {"gcp": GCP, "aws": AWS, "azure": Azure}
"""In the order in which they are looked for: only Google's server says in each answer whose it is."""


def find_cloud(name: str | None = None, url: str | None = None) -> Cloud:
    """The cloud of this machine, or the one with the `name`; its metadata server is at `url` or at its usual place.

    Raises:
        MetadataError: none of them answers at this moment.
    """
    if name is not None:
        return _make(name, url)
    for cloud in (_make(name, url) for name in CLOUDS):
        if cloud.is_here():
            return cloud
    raise MetadataError(f"no metadata server of {', '.join(CLOUDS)} answers")


def _make(name: str, url: str | None) -> Cloud:
    return CLOUDS[name](url) if url else CLOUDS[name]()


def _answers(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except MetadataError:
        return False
    return True


def _parse(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MetadataError(f"{text[:40]!r} is no JSON") from error
    if not isinstance(value, dict):
        raise MetadataError(f"{text[:40]!r} is no JSON object")
    return value


def _text(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value:
        raise MetadataError(f"{key}: {value!r} is no text")
    return value


def _utc(text: str) -> float:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise MetadataError(f"{text[:40]!r} is no time") from error


def _http_date(text: str) -> float:
    try:
        when = parsedate_to_datetime(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError) as error:
        raise MetadataError(f"{text[:40]!r} is no time") from error


def _believed(when: float) -> float:
    if abs(when - time.time()) > WITHIN_S:
        raise MetadataError(f"a notice of {datetime.fromtimestamp(when, UTC):%Y-%m-%dT%H:%M:%SZ} is not of today's")
    return when
