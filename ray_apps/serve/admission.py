"""Who is let in: the answers there are at a time, against the room there is for them. Knows nothing of Ray."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray_apps.serve.errors import overloaded


class Admission:
    """Counts every answer, for each takes a place in an engine. No request counts for more than a quarter of the room.

    The places in an engine are given in turns, so a request with very many answers does not keep others out of it.
    """

    def __init__(self) -> None:
        self.num_open = 0

    @contextmanager
    def admitted(self, num_answers: int, room: int) -> Iterator[None]:
        """Places for the answers to one request, while the block runs.

        Raises:
            ApiError: there is no room for all of them.
        """
        num_places = min(num_answers, max(1, room // 4))
        if self.num_open + num_places > room:
            raise overloaded()
        self.num_open += num_places
        try:
            yield
        finally:
            self.num_open -= num_places
