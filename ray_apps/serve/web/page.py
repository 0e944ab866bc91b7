"""The page itself, in gradio: one model, two side by side, or two in a battle."""

import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio looks

import gradio as gr

from ray_apps.serve.policy import Page
from ray_apps.serve.web.asking import Asking, Sampling
from ray_apps.serve.web.rooms import Mode, Room, Visit
from ray_apps.votes import VoteFile

USUAL = Sampling()
TITLES: dict[Mode, str] = {"chat": "Chat", "side_by_side": "Side by side", "battle": "Battle"}
MATHS: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
"""What the page does is no API; there is one beside it."""
NARROW = 70
"""Pixels of a button at least: four stand side by side on a phone."""
CHOICES = {"◀ A is better": "a", "B is better ▶": "b", "Tie": "tie", "Both are bad": "both_bad"}


KeyNameOf = Callable[[str | None], str]
"""The API key of who has signed in under a name."""


def build_page(asking: Asking, votes: VoteFile | None, settings: Page, key_name_of: KeyNameOf) -> gr.Blocks:
    """The page for the models of `asking`."""
    page: gr.Blocks
    with gr.Blocks(title="vicuna-ray", analytics_enabled=False, fill_height=True) as page:
        modes: tuple[Mode, ...] = ("chat",) if len(asking.names) < 2 else ("chat", "side_by_side", "battle")
        with gr.Tabs():
            for mode in modes:
                with gr.Tab(TITLES[mode], id=mode):
                    _build_room(Room(mode, asking, votes, settings), asking.names, votes is not None, key_name_of)
    page.queue(default_concurrency_limit=None)
    return page


def _build_room(room: Room, names: Sequence[str], has_votes: bool, key_name_of: KeyNameOf) -> None:
    visit = gr.State(Visit)
    pickers, chats = _build_lanes(room, names, has_votes)
    field = gr.Textbox(
        placeholder="Say something; Enter sends, Shift+Enter begins a line",
        label="Message",
        show_label=False,
        submit_btn="Send",
        stop_btn=False,
        lines=1,
        max_lines=12,
        elem_id=f"{room.mode}-field",
        autofocus=room.mode == "chat",
    )
    note = gr.Markdown(elem_id=f"{room.mode}-note", sanitize_html=True)
    with gr.Row():
        names_of = ("Stop", "Regenerate", "Undo", "New chat")
        stop, again, undo, clear = (gr.Button(name, size="sm", min_width=NARROW) for name in names_of)
    if has_votes and room.num_lanes == 2:
        with gr.Row():
            ballots = {verdict: gr.Button(name, size="sm", min_width=NARROW) for name, verdict in CHOICES.items()}
    else:
        ballots = {}
    with gr.Accordion("System prompt and sampling", open=False):
        system = gr.Textbox("", label="System prompt", lines=2)
        temperature = gr.Slider(0, 2, USUAL.temperature, step=0.05, label="Temperature")
        top_p = gr.Slider(0.05, 1, USUAL.top_p, step=0.05, label="Top p")
        max_tokens = gr.Slider(16, 4096, USUAL.max_tokens, step=16, label="Longest answer, in tokens")
    settings = [system, temperature, top_p, max_tokens, *pickers]
    shown = [visit, field, note, *chats]
    regenerate = _known(room.regenerate, key_name_of)
    answering: list[dict[str, Any]] = [
        field.submit(_known(room.send, key_name_of), [visit, field, *settings], shown, **PRIVATE),
        again.click(regenerate, [visit, *settings], shown, **PRIVATE),
        *(chat.retry(regenerate, [visit, *settings], shown, **PRIVATE) for chat in chats),
        *(
            chat.edit(_editing(room, key_name_of, number), [visit, *settings], shown, **PRIVATE)
            for number, chat in enumerate(chats)
        ),
    ]
    stop.click(None, cancels=answering, **PRIVATE).then(room.stopped, [visit], shown, **PRIVATE)
    undo.click(room.undo, [visit], shown, cancels=answering, **PRIVATE)
    for emptied in (clear.click, *(chat.clear for chat in chats)):
        emptied(room.clear, [visit], shown, cancels=answering, **PRIVATE)
    for verdict, button in ballots.items():
        button.click(_voting(room, verdict), [visit], shown, **PRIVATE)
    if has_votes:
        for number, chat in enumerate(chats):
            chat.like(_rating(room, number), [visit], [note], **PRIVATE)
    if room.mode == "chat":
        _build_files(room, visit, pickers, [*shown, system, *pickers], answering)


def _build_lanes(room: Room, names: Sequence[str], has_votes: bool) -> tuple[list[gr.Dropdown], list[gr.Chatbot]]:
    pickers, chats = [], []
    with gr.Row(equal_height=True):
        for number in range(room.num_lanes):
            with gr.Column(min_width=280):
                side = f" {'AB'[number]}" if room.num_lanes == 2 else ""
                if room.mode != "battle":
                    chosen = names[number % len(names)]
                    pickers.append(gr.Dropdown(list(names), value=chosen, label=f"Model{side}"))
                chats.append(
                    gr.Chatbot(
                        label=f"Model{side}" if room.mode == "battle" else f"Answer{side}",
                        height=480,
                        buttons=["copy", "copy_all"],
                        latex_delimiters=MATHS,
                        sanitize_html=True,
                        editable="user",
                        allow_tags=False,
                        allow_file_downloads=False,
                        feedback_options=("Like", "Dislike", "Flag") if has_votes else None,
                        elem_id=f"{room.mode}-{number}",
                    )
                )
    return pickers, chats


def _build_files(
    room: Room, visit: gr.State, pickers: list[gr.Dropdown], shown: list[Any], answering: list[dict[str, Any]]
) -> None:
    with gr.Row():
        export = gr.Button("Export", size="sm", min_width=NARROW)
        load = gr.UploadButton("Import", size="sm", file_types=[".json"], file_count="single", min_width=NARROW)
    # The file is made when it is asked for, and then fetched by a button that nobody sees.
    fetch = gr.DownloadButton("Download", visible="hidden", elem_id="chat-download")
    made = export.click(room.export, [visit], [fetch], **PRIVATE)
    made.then(None, js="() => document.querySelector('#chat-download')?.click()", **PRIVATE)
    load.upload(room.load, [visit, load, *pickers], shown, cancels=answering, **PRIVATE)


def _voting(room: Room, verdict: str) -> Callable[[Visit], list[Any]]:
    return lambda visit: room.vote(visit, verdict)


Ask = Callable[..., AsyncGenerator[list[Any], None]]


def _known(ask: Ask, key_name_of: KeyNameOf) -> Ask:
    """`ask`, once it is noted who does."""

    async def asked(visit: Visit, request: gr.Request, *settings: Any) -> AsyncGenerator[list[Any], None]:
        visit.key_name = key_name_of(request.username)
        async with aclosing(ask(visit, *settings)) as answer:
            async for shown in answer:
                yield shown

    return asked


def _editing(room: Room, key_name_of: KeyNameOf, lane: int) -> Ask:
    ask = _known(partial(room.edit, lane=lane), key_name_of)

    async def edit(
        visit: Visit, data: gr.EditData, request: gr.Request, *settings: Any
    ) -> AsyncGenerator[list[Any], None]:
        place = data.index if isinstance(data.index, int) else data.index[0]
        async with aclosing(ask(visit, request, place, str(data.value), *settings)) as answer:
            async for shown in answer:
                yield shown

    return edit


def _rating(room: Room, lane: int) -> Callable[..., str]:
    def rate(visit: Visit, data: gr.LikeData) -> str:
        place = data.index if isinstance(data.index, int) else data.index[0]
        return room.rate(visit, data.liked, lane, place)

    return rate
