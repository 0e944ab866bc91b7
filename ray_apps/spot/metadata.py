"""Questions to the metadata server of a cloud machine. Everything that is not a sound answer is a `MetadataError`."""

import http.client
import time
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import urlsplit

from data_prep.errors import ConfigError

TIMEOUT_S = 2.0
MAX_BYTES = 256 * 1024


class MetadataError(Exception):
    """The metadata server does not answer, or not with what it is asked for. Says nothing about the machine."""


class RefusedError(MetadataError):
    """It wants another token."""


class MetadataServer:
    """The server at `url`, which must not be silent for `timeout_s` seconds, nor its answer take longer.

    A connection of its own for each question, to no proxy: that would answer for another machine.

    Raises:
        ConfigError: the URL is none of plain HTTP.
    """

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ConfigError(f"--metadata-url: {url!r} is not http://HOST or http://HOST:PORT")
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s

    def get(self, path: str, headers: Mapping[str, str], *, answers_with: Mapping[str, str] | None = None) -> str:
        """The text at `path`.

        `answers_with`: headers that the right server's answer has.

        Raises:
            MetadataError: there is no such text.
        """
        text = self.find(path, headers, answers_with=answers_with)
        if text is None:
            raise MetadataError(f"{self.url}{path}: 404")
        return text

    def find(
        self, path: str, headers: Mapping[str, str], *, answers_with: Mapping[str, str] | None = None
    ) -> str | None:
        """The text at `path`; None if the server says that there is none.

        Raises:
            MetadataError: it says anything else, or nothing.
        """
        return self._ask("GET", path, headers, answers_with or {})

    def put(self, path: str, headers: Mapping[str, str]) -> str:
        """What a PUT to `path` is answered.

        Raises:
            MetadataError: it is not answered.
        """
        text = self._ask("PUT", path, headers, {})
        if text is None:
            raise MetadataError(f"{self.url}{path}: 404")
        return text

    def _ask(self, method: str, path: str, headers: Mapping[str, str], wanted: Mapping[str, str]) -> str | None:
        where, parts = f"{self.url}{path}", urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=self._timeout_s)
        try:
            connection.request(method, parts.path + path, headers=dict(headers))
            response = connection.getresponse()
            body = self._read(response)
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise MetadataError(f"{where}: {error or type(error).__name__}") from error
        finally:
            connection.close()
        if any(response.headers.get(name) != value for name, value in wanted.items()):
            raise MetadataError(f"{where}: this is not the metadata server that is asked for")
        if response.status == HTTPStatus.NOT_FOUND:
            return None
        if response.status == HTTPStatus.UNAUTHORIZED:
            raise RefusedError(f"{where}: 401")
        if response.status != HTTPStatus.OK:
            raise MetadataError(f"{where}: {response.status}")
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise MetadataError(f"{where}: the answer is no text") from error

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        body, until = b"", time.monotonic() + self._timeout_s
        while piece := response.read1(MAX_BYTES):
            body += piece
            if len(body) > MAX_BYTES or time.monotonic() > until:
                raise OSError("the answer does not end")
        if response.length:
            raise http.client.IncompleteRead(body, response.length)
        return body
