import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import ConfigError, ServeError
from ray_apps.serve.auth import KEYS_VARIABLE
from ray_apps.serve.config_file import HttpOptions, ServeFile
from ray_apps.serve.run import check_is_guarded, choose_port


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


def served(host: str, **security: Any) -> ServeFile:
    application = {"import_path": "ray_apps.serve.app:build_app", "args": {"engine": "fake", "security": security}}
    return ServeFile.parse({"http_options": {"host": host}, "applications": [application]})


def test_an_endpoint_that_others_reach_has_keys_or_says_that_it_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    for host in ("0.0.0.0", "::", "192.0.2.77", "example.org"):
        with pytest.raises(ConfigError, match=rf"^http_options\.host: {host} lets other machines ask[^\n]*$"):
            check_is_guarded(served(host))
        check_is_guarded(served(host, allow_open=True))
    for host in ("127.0.0.1", "localhost", "::1"):
        check_is_guarded(served(host))
    (tmp_path / "keys").write_text("sk-of-the-file")
    check_is_guarded(served("0.0.0.0", api_keys_file=str(tmp_path / "keys")))
    with pytest.raises(ConfigError, match="cannot read"):
        check_is_guarded(served("127.0.0.1", api_keys_file=str(tmp_path / "none")))
    monkeypatch.setenv(KEYS_VARIABLE, "sk-of-the-environment")
    check_is_guarded(served("0.0.0.0"))
