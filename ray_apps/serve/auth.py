"""API keys: who may ask. A key is known by its name everywhere but here, and here by its digest."""

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from data_prep.errors import ConfigError
from ray_apps.serve.errors import ApiError, error_response, unauthorized
from ray_apps.serve.record import current_request

KEYS_VARIABLE = "VICUNA_API_KEYS"
_HEALTH = "/health"
_POLICY_VIOLATION = 1008


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The keys that are accepted, as names and SHA-256 digests."""

    digests: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)

    def __bool__(self) -> bool:
        return bool(self.digests)

    def name_of(self, key: bytes) -> str | None:
        """The name of `key`, or None. It takes as long for any key: all digests are compared, each in constant time."""
        digest, found = hashlib.sha256(key).digest(), None
        for name, known in self.digests:
            if hmac.compare_digest(digest, known):
                found = name
        return found


def load_keys(file: str | None, environment: Mapping[str, str] = os.environ) -> ApiKeys:
    """The keys of `VICUNA_API_KEYS` and of `file`, each `key` or `name: key`, one per line (the variable: or comma).

    A key without a name is called `key-1`, `key-2` and so on, by its place.

    Raises:
        ConfigError: there is no such file, or no key where keys are announced, or a key is unusable or there twice. No
            message repeats a key.
    """
    entries: list[tuple[str, str]] = []
    if (value := environment.get(KEYS_VARIABLE)) is not None:
        entries += _read_keys(value.replace(",", "\n"), KEYS_VARIABLE)
    if file is not None:
        try:
            text = Path(file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"args.security.api_keys_file: cannot read {file}: {reason}") from None
        entries += _read_keys(text, f"args.security.api_keys_file: {file}")
    named = [(name or f"key-{place}", key) for place, (name, key) in enumerate(entries, 1)]
    for column, what in enumerate(("name", "key")):
        if len({entry[column] for entry in named}) < len(named):
            raise ConfigError(f"API keys: a {what} is there twice; each needs one of its own")
    return ApiKeys(tuple((name, hashlib.sha256(key.encode()).digest()) for name, key in named))


def _read_keys(text: str, source: str) -> list[tuple[str, str]]:
    """Pairs of a name, which may be empty, and a key. Empty lines and those that begin with # are passed over."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    keys = []
    for number, line in lines:
        if line and not line.startswith("#"):
            name, _, key = line.rpartition(":")
            keys.append((name.strip(), key.strip()))
            if not key.strip() or not all("!" <= character <= "~" for character in key.strip()):
                raise ConfigError(f"{source}: entry {number} is no key; expected visible ASCII characters, no spaces")
    if not keys:
        raise ConfigError(f"{source} holds no key; expected one per line, as `key` or `name: key`")
    return keys


class Authentication:
    """Lets through who presents one of `keys`; `/health` needs none. There is no other way past it.

    Where there are no keys, only this machine may ask, unless `allow_open`.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, *, allow_open: bool = False) -> None:
        self._app = app
        self._keys = keys
        self._allow_open = allow_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        try:
            if scope["type"] != "lifespan" and not is_health(scope):
                self._identify(scope)
        except ApiError as error:
            await error_response(error.failure)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _identify(self, scope: Scope) -> None:
        """Note who asks.

        Raises:
            ApiError: it is nobody that may.
        """
        if not self._keys:
            if not self._allow_open and not is_loopback((scope.get("client") or ("",))[0]):
                raise unauthorized("No API key is configured here, so only the machine itself may ask.")
            return
        presented = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        if not presented:
            raise unauthorized("You did not provide an API key: send 'Authorization: Bearer KEY'.")
        scheme, _, key = presented[0].partition(b" ")
        name = self._keys.name_of(key.strip())
        if len(presented) > 1 or scheme.lower() != b"bearer" or name is None:
            raise unauthorized("Incorrect API key provided.")
        current_request().key_name = name


def is_health(scope: Scope) -> bool:
    """Whether it is a request that the router will take for `/health`, and nothing else."""
    return scope["path"] == scope.get("root_path", "") + _HEALTH and scope["method"] in ("GET", "HEAD")


def is_loopback(host: str) -> bool:
    """Whether `host`, an address or `localhost`, is this machine to itself."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
