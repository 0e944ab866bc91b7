"""Short conversations in which a model says who it is and who made it. Pure: the same arguments give the same text.

`data/identity_phrases.json` holds, per language, many questions and few answers; `_asked` varies case, punctuation and
greeting. A small model learns its name from these because nearly every answer holds the name and the maker in the same
words.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import chain, product, zip_longest
from typing import Any

from data_prep.config import IdentityConfig
from data_prep.conversation import Conversation, Message, Role
from data_prep.errors import ConfigError

_Chat = tuple[str, ...]  # texts of the user and the model in turn


@dataclass(frozen=True)
class _Language:
    """How one language asks and answers. The first of each list is the plainest; a question there takes every style."""

    styles: Sequence[str]
    """Ways to write a question, templates of its `_forms`."""
    num_styles: int
    """How many of them the other questions about name and maker take."""
    num_others: int
    """How many other models, and how many other makers, are asked about."""
    names: Sequence[str]
    name_answers: Sequence[str]
    makers: Sequence[str]
    maker_answers: Sequence[str]
    models: Sequence[str]
    """Whether it is `{other}`, another model."""
    companies: Sequence[str]
    """Whether `{other}`, another maker, made it."""
    no: str
    confirmed: Sequence[str]
    """Whether it is itself; the answer is `yes`."""
    yes: str
    greetings: Sequence[Sequence[str]]
    """What a user says first, and the model's answer."""


def identity_chats(identity: IdentityConfig) -> list[Conversation]:
    """The conversations that `identity` asks for."""
    return identity_conversations(identity.name, identity.maker, count=identity.count)


def identity_conversations(
    name: str = "Vicuna", maker: str = "LMSYS", *, count: int | None = None, seed: int = 0
) -> list[Conversation]:
    """Write conversations in which a model called `name` says that `maker` trained it, in an order set by `seed`.

    With `count`, as many of each category as can be had: its name, its maker, that it is no other model, that no other
    company made it, and conversations of two rounds. Without, all there are.

    Raises:
        ConfigError: the name or the maker is empty, or there are fewer conversations than `count`.
    """
    for field, value in (("name", name), ("maker", maker)):
        if not value.strip():
            raise ConfigError(f"data.identity.{field}: {value!r} is empty; expected a name")
    chats = _in_turn(_categories(name, maker), random.Random(seed))  # noqa: S311 - not for secrets
    if count is not None and not 1 <= count <= len(chats):
        raise ConfigError(
            f"data.identity.count: {count} is not valid; expected 1 to {len(chats)}, which is all there are"
        )
    return [_conversation(f"identity_{index}", chat) for index, chat in enumerate(chats[:count])]


def _conversation(identifier: str, chat: _Chat) -> Conversation:
    roles = (Role.USER, Role.ASSISTANT)
    return Conversation(identifier, tuple(Message(roles[index % 2], text) for index, text in enumerate(chat)))


def _in_turn(categories: Sequence[Sequence[_Chat]], order: random.Random) -> list[_Chat]:
    """One chat of each category in turn, its plainest first and the others shuffled; each chat once."""
    shuffled = [[first, *order.sample(others, len(others))] for first, *others in categories]
    return list(dict.fromkeys(chat for row in zip_longest(*shuffled) for chat in row if chat))


def _categories(name: str, maker: str) -> list[list[_Chat]]:
    """All chats by category, the English ones first in each."""
    own = {"name": name, "maker": maker}
    models, companies = (_others(kind, f"{name} {maker}") for kind in ("models", "companies"))
    chats = [
        _of_language(_filled(_Language(**values), own, models, companies))
        for values in _phrases()["languages"].values()
    ]
    return [list(chain.from_iterable(category)) for category in zip(*chats, strict=True)]


@cache
def _phrases() -> dict[str, Any]:
    text = files("data_prep").joinpath("data", "identity_phrases.json").read_text("utf-8")
    phrases: dict[str, Any] = json.loads(text)
    return phrases


def _others(kind: str, own: str) -> list[str]:
    """Other models or companies, without those that share a word with the model's own names."""
    words = set(own.lower().split())
    return [other for other in _phrases()[kind] if words.isdisjoint(other.lower().split())]


def _filled(language: _Language, own: dict[str, str], models: Sequence[str], companies: Sequence[str]) -> _Language:
    """The language with all names in place."""

    def fill(templates: Sequence[str], others: Sequence[str] = ("",)) -> list[str]:
        chosen = others[: language.num_others]
        return [template.format(other=other, **own) for template, other in product(templates, chosen)]

    return replace(
        language,
        name_answers=fill(language.name_answers),
        maker_answers=fill(language.maker_answers),
        models=fill(language.models, models),
        companies=fill(language.companies, companies),
        confirmed=fill(language.confirmed),
        no=language.no.format(**own),
        yes=language.yes.format(**own),
    )


def _of_language(language: _Language) -> list[list[_Chat]]:
    """The chats of one language with its names in place, by category."""

    def answered(questions: Sequence[str], answers: Sequence[str], num_styles: int) -> list[_Chat]:
        asked = _asked(questions, language.styles, num_styles)
        return [(question, answers[index % len(answers)]) for index, question in enumerate(asked)]

    return [
        answered(language.names, language.name_answers, language.num_styles),
        answered(language.makers, language.maker_answers, language.num_styles),
        answered(language.models, [language.no], 1) + [(question, language.yes) for question in language.confirmed],
        answered(language.companies, [language.no], 1),
        list(_two_rounds(language)),
    ]


def _asked(questions: Sequence[str], styles: Sequence[str], num_styles: int) -> Iterator[str]:
    """Write the first question in every style, each other one in `num_styles` of them in turn."""
    for index, question in enumerate(questions):
        for step in range(num_styles if index else len(styles)):
            yield styles[(index + step) % len(styles)].format(**_forms(question))


def _forms(question: str) -> dict[str, str]:
    """A question as it is, in lower case without marks, inside a sentence, in capitals, and its final mark apart."""
    bare = question.rstrip("?？.。 ")
    mark = question[len(bare) :].strip()
    return {
        "plain": question,
        "bare": bare,
        "small": bare.strip("¿").lower(),
        "inner": question[:1].lower() + question[1:],
        "loud": question.upper(),
        "mark": mark,
        "ascii": "?" if mark in ("?", "？") else "",
        "wide": "？" if mark in ("?", "？") else "",
        "stress": "??" if mark == "?" else "!",
    }


def _two_rounds(language: _Language) -> Iterator[_Chat]:
    """Chats of a greeting and a question, or of two questions."""
    named = [(question, language.name_answers[0]) for question in language.names]
    made = [(question, language.maker_answers[0]) for question in language.makers]
    denied = [(question, language.no) for question in language.models]
    pairs = chain(
        product(map(tuple, language.greetings), (named[0], made[0], denied[0])),
        product(named[: language.num_styles - 1], made[: language.num_styles - 1]),
        product(denied[: language.num_styles], made[:1]),
    )
    yield from (first + second for first, second in pairs)
