"""Starting and stopping an endpoint from this process: `vicuna serve` and the demo."""

import logging
import os
import random
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from data_prep.errors import ConfigError, ServeError
from ray_apps.local_ray import local_cluster
from ray_apps.serve import environment
from ray_apps.serve.app import build_app, choose_resources
from ray_apps.serve.auth import KEYS_VARIABLE, is_loopback, load_keys
from ray_apps.serve.config import resolve_models
from ray_apps.serve.config_file import HttpOptions, ServeFile

_ROUTE_TIMEOUT_S = 60.0
QUIET_PORTS = range(20_000, 32_768)
"""Between those that Ray gives its workers and those that the kernel gives to whoever asks for any: a port that is free
now still is when Serve's proxy comes to it.
"""
_ALL_INTERFACES = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - names what a user may have chosen


@contextmanager
def serving(file: ServeFile) -> Iterator[str]:
    """Serve `file` within the block; the value is the endpoint's base URL, without `/v1`. It answers by then.

    Ray is started, unless this process has it already. What can be wrong with the model or the port is found before.

    Raises:
        ModelError: there is no such model.
        ConfigError: it cannot be served on what there is.
        ServeError: the port is taken, or the application does not start.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    args = resolve_models(file.application.args)
    if any(model.device == "cuda" for model in args.all_models) and not os.environ.get("RAY_ADDRESS"):
        choose_resources(args)
    check_is_guarded(file)
    options = choose_port(file.http_options)
    if ray.is_initialized():
        try:
            yield _deploy(file, options)
        finally:
            serve.shutdown()
    else:
        environment.export()
        with local_cluster():
            url = _deploy(file, options)
            try:
                yield url
            finally:
                # Lets answers that are under way finish. The rest of Serve ends with the cluster.
                serve.delete(file.application.name)


def _deploy(file: ServeFile, options: HttpOptions) -> str:
    application = file.application
    try:
        serve.start(proxy_location=file.proxy_location, http_options=options.model_dump())
        serve.run(build_app(application.args), name=application.name, route_prefix=application.route_prefix)
    except (RayError, RayServeException, RuntimeError) as error:
        raise ServeError(_reason(application.name, error)) from None
    host = _ALL_INTERFACES.get(options.host, options.host)
    url = f"http://{host}:{options.port}{application.route_prefix.rstrip('/')}"
    wait_until_ready(url)
    return url


def check_is_guarded(file: ServeFile) -> None:
    """Keys are read where the ingress runs; here it is only seen to that nobody opens an endpoint without meaning to.

    Raises:
        ConfigError: other machines can reach it and no key is configured, or the keys cannot be used.
    """
    security, host = file.application.args.security, file.http_options.host
    if not load_keys(security.api_keys_file) and not security.allow_open and not is_loopback(host):
        raise ConfigError(
            f"http_options.host: {host} lets other machines ask, but there is no API key; set {KEYS_VARIABLE} or "
            "args.security.api_keys_file, or let anybody ask with args.security.allow_open=true"
        )


def choose_port(options: HttpOptions) -> HttpOptions:
    """`options` with a free port instead of 0.

    Raises:
        ServeError: the host cannot be listened on, or the port is taken.
    """
    ports = [options.port] if options.port else random.sample(QUIET_PORTS, 100)
    reasons = []
    for port in ports:
        reason = _why_taken(options.host, port)
        if reason is None:
            return options.model_copy(update={"port": port})
        reasons.append(reason)
    where = f"{options.host}:{options.port}"
    raise ServeError(f"http_options.port: cannot listen on {where}: {reasons[0]}; 0 takes a free port")


def _why_taken(host: str, port: int) -> str | None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def wait_until_ready(url: str) -> None:
    """Return once `/health` answers.

    Raises:
        ServeError: it does not within a minute, though the application runs.
    """
    deadline = time.monotonic() + _ROUTE_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health", timeout=10).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise ServeError(f"{url}/health does not answer, though the application runs")


def _reason(name: str, error: Exception) -> str:
    """One line that says why the application called `name` did not start.

    Serve keeps what a constructor raised as a traceback in the deployment's status; its last line is the error itself.
    """
    app = serve.status().applications.get(name)
    failed = [] if app is None else [d.message for d in app.deployments.values() if d.status == "DEPLOY_FAILED"]
    lines = (failed[0] if failed else str(error)).strip().splitlines()
    return re.sub(r"^data_prep\.errors\.\w+: ", "", lines[-1])
