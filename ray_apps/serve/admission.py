"""Who is let in: the answers there are at a time, against the room there is for them. Knows nothing of Ray."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray_apps.serve.errors import overloaded


class Admission:
    """Counts every answer, for each takes a place in an engine: a request for several counts as often."""

    def __init__(self) -> None:
        self.num_open = 0

    @contextmanager
    def admitted(self, num_answers: int, room: int) -> Iterator[None]:
        """Places for the answers to one request, while the block runs.

        Where nothing else is there a request is let in whatever the room is, or it never could be.

        Raises:
            ApiError: there is no room for all of them.
        """
        if self.num_open and self.num_open + num_answers > room:
            raise overloaded()
        self.num_open += num_answers
        try:
            yield
        finally:
            self.num_open -= num_answers
