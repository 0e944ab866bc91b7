"""The page beside the API, in one app."""

from collections.abc import Sequence

import gradio as gr
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_apps.serve.auth import ApiKeys, is_loopback
from ray_apps.serve.errors import error_response, unauthorized
from ray_apps.serve.policy import Page
from ray_apps.serve.rate_limits import Rates
from ray_apps.serve.record import ANYBODY
from ray_apps.serve.request_log import Journal
from ray_apps.serve.routing import ServedModel
from ray_apps.serve.web.asking import Asking
from ray_apps.serve.web.page import build_page
from ray_apps.votes import VoteFile

PATHS = {"/", "/login", "/login/", "/logout", "/config", "/config/", "/theme.css", "/favicon.ico", "/manifest.json"}
FOLDERS = ("/gradio_api/", "/assets/", "/static/", "/svelte/", "/pwa_icon")
"""What the page consists of; all other paths are the API's to answer or to refuse."""
CONFINED = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; form-action 'self'; frame-src 'none'; "
    "object-src 'none'; base-uri 'self'"
)
HOW_TO_ENTER = "The password is an API key. Choose any name that nobody has taken with another key."


class WithPage:
    """Answers with `api` or `page`.

    The page is for whoever may ask: with an API key as the password, or on this machine where there are no keys.
    """

    def __init__(self, api: ASGIApp, page: ASGIApp, keys: ApiKeys, *, allow_open: bool) -> None:
        self._api = api
        self._page = page
        self._is_open = bool(keys) or allow_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] == "lifespan":
            await self._page(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path not in PATHS and not path.startswith(FOLDERS):
            await self._api(scope, receive, send)
        elif self._is_open or is_loopback((scope.get("client") or ("",))[0]):
            await self._page(scope, receive, _confined(send))
        else:
            refused = unauthorized("No API key is configured here, so only the machine itself may ask.")
            await error_response(refused.failure)(scope, receive, send)


def _confined(send: Send) -> Send:
    """Has the browser fetch nothing from anywhere else, whatever stands on the page."""

    async def send_confined(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Content-Security-Policy"] = CONFINED
        await send(message)

    return send_confined


class Doorkeeper:
    """Who is on the page: names that people give themselves, each with the API key that it came with first."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys
        self._key_names: dict[str, str] = {}

    def may_enter(self, user: str, password: str) -> bool:
        """Whether `password` is a key, and no other key came under that name."""
        key_name = self._keys.name_of(password.encode())
        return key_name is not None and self._key_names.setdefault(user, key_name) == key_name

    def key_name_of(self, user: str | None) -> str:
        """The key that `user` came with."""
        return self._key_names.get(user or "", ANYBODY)


def mount_page(
    models: Sequence[ServedModel],
    settings: Page,
    keys: ApiKeys,
    rates: Rates | None = None,
    journal: Journal | None = None,
) -> ASGIApp:
    """The page for `models` as an app; who it is for is asked where there are `keys`.

    Its chats count in `rates` and are told to `journal`.
    """
    doorkeeper = Doorkeeper(keys)
    asked = {"auth": doorkeeper.may_enter, "auth_message": HOW_TO_ENTER} if keys else {}
    votes = VoteFile(settings.votes) if settings.votes else None
    theme = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    app: ASGIApp = gr.mount_gradio_app(
        FastAPI(),
        build_page(Asking(models, settings, rates, journal), votes, settings, doorkeeper.key_name_of),
        path="/",
        show_error=True,
        footer_links=[],
        ssr_mode=False,
        theme=theme,
        **asked,
    )
    return app
