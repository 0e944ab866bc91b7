import socket
from collections.abc import Iterator

import pytest

from data_prep.errors import ServeError
from ray_apps.serve.config_file import HttpOptions
from ray_apps.serve.run import choose_port


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_port_0_becomes_a_free_one() -> None:
    port = choose_port(HttpOptions(port=0)).port
    assert choose_port(HttpOptions(port=port)).port == port != 0


def test_a_taken_port_is_one_clear_line(taken: int) -> None:
    with pytest.raises(
        ServeError, match=rf"^http_options.port: cannot listen on 127.0.0.1:{taken}: .*; 0 takes a free"
    ):
        choose_port(HttpOptions(port=taken))


def test_a_host_that_is_not_here_is_one_clear_line() -> None:
    with pytest.raises(ServeError, match=r"cannot listen on 192\.0\.2\.77:0"):
        choose_port(HttpOptions(host="192.0.2.77", port=0))
