"""Which replica a chat goes to: the one that has read it before, unless that one has much more to do than another.

Pure bookkeeping; `replica_router` is its adapter to Ray Serve.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Generic, TypeVar

from ray_apps.serve.jobs import ChatPrompt, Job

Replica = TypeVar("Replica")

MAX_SESSIONS = 100_000
"""Sessions that are remembered. The one that was quiet for longest is forgotten first."""

SLACK = 4
"""By how many requests a session's own replica may be busier than the idlest: to read a chat again costs more."""


def session_key(model: str, session: str | None, beginning: Sequence[str]) -> str:
    """What the turns of one chat have in common: the client's own name of it, or else how the chat begins.

    `beginning`: what every later turn repeats.
    """
    named = [session] if session else ["", *beginning]
    digest = hashlib.blake2b(digest_size=16)
    for part in (model, *named):
        digest.update(part.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


def session_of(job: Job, model: str, name: str | None) -> str:
    """The session of a job: a chat has one by itself, anything else if its client names one. Empty: none."""
    match job.prompts:
        case (ChatPrompt(messages),):
            return session_key(model, name, chat_beginning(messages))
    return session_key(model, name, []) if name else ""


def chat_beginning(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """What all turns of a chat begin with: its messages up to the first of the user."""
    users = (number for number, message in enumerate(messages, start=1) if message["role"] == "user")
    return [f"{message['role']}: {message['content']}" for message in messages[: next(users, len(messages))]]


class Affinity(Generic[Replica]):
    """Remembers where each session was answered last.

    Sessions that are new, or whose replica is gone or has too much to do, go where least is to do. Of equally busy
    replicas each session prefers its own by rendezvous hashing (Thaler and Ravishankar 1996), so that two routers that
    know nothing of each other mostly agree.
    """

    def __init__(self, max_sessions: int = MAX_SESSIONS, slack: int = SLACK) -> None:
        self._homes: OrderedDict[str, Replica] = OrderedDict()
        self._max_sessions = max_sessions
        self._slack = slack

    def rank(self, session: str, loads: Mapping[Replica, int], prepared: Collection[Replica] = ()) -> list[Replica]:
        """The replicas of `loads` (requests each has), best first, for a request of `session`.

        `prepared`: those that hold what the request needs, if it needs more than they all have.
        """
        most = min(loads.values(), default=0) + self._slack
        home = self._homes.get(session)

        def order(replica: Replica) -> tuple[bool, bool, int, bytes]:
            may_be_busier = loads[replica] <= most
            is_home, is_prepared = may_be_busier and replica == home, may_be_busier and replica in prepared
            return not is_home, not is_prepared, loads[replica], _weight(session, replica)

        return sorted(loads, key=order)

    def remember(self, session: str, replica: Replica) -> None:
        """`replica` has taken a request of `session`."""
        self._homes[session] = replica
        self._homes.move_to_end(session)
        if len(self._homes) > self._max_sessions:
            self._homes.popitem(last=False)


def _weight(session: str, replica: object) -> bytes:
    return hashlib.blake2b(f"{session} {replica}".encode(), digest_size=8).digest()
