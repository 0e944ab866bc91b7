"""A model's own chat template, rendered so that typed text stays typed text. Knows nothing of token ids."""

import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import Any, cast

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from data_prep.chat_template import Rendered, Span
from data_prep.errors import ModelError


def render_messages(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    special_pattern: re.Pattern[str],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
) -> Rendered:
    """Render `messages` by the tokenizer's own chat template. `special_pattern` matches its special tokens.

    `tools` are put where the template puts them, as OpenAI describes them.

    Spellings of special tokens inside the messages are hidden from the template and put back afterwards, so that
    `specials` holds exactly those the template wrote. `spans` come from the template's `generation` marks, if any.

    Raises:
        ModelError: the tokenizer has no chat template.
        ValueError: the template refuses the messages, and the message is the template's own; or they leave
            fewer than two private-use characters unused.
    """
    if not tokenizer.chat_template:
        raise ModelError("the model has no chat template (chat_template in its tokenizer)")
    offered = [dict(tool) for tool in tools]
    template = tokenizer.get_chat_template(tools=offered or None)
    marked = re.search(r"{%-?\s*generation\s*-?%}", template) is not None
    disguise = _Disguise(special_pattern, [*messages, *offered])
    try:
        rendered: Any = render_jinja_template(
            conversations=[[disguise.hide(message) for message in messages]],
            tools=[disguise.hide(tool) for tool in offered] or None,
            chat_template=template,
            return_assistant_tokens_mask=marked,
            add_generation_prompt=add_generation_prompt,
            **cast(dict[str, Any], tokenizer.special_tokens_map),
        )
    except TemplateError as error:
        raise ValueError(str(error)) from None
    (text,), spans = rendered
    return disguise.reveal(text, spans[0] if marked else [])


_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class _Disguise:
    """Hides typed spellings of special tokens behind private-use characters that occur nowhere in the messages.

    Raises:
        ValueError: there are no such characters.
    """

    def __init__(self, pattern: re.Pattern[str], messages: Sequence[Mapping[str, Any]]) -> None:
        self.pattern = pattern
        self.hidden: dict[str, int] = {}
        typed = set(json.dumps(messages, ensure_ascii=False, default=str))
        free = list(islice((code for code in chain(*_PRIVATE_USE) if chr(code) not in typed), 2))
        if len(free) < 2:
            raise ValueError("the messages leave fewer than two private-use characters of Unicode unused")
        self.open, self.close = map(chr, free)

    def hide(self, value: Any) -> Any:
        """A copy of `value`, a message or a part of one, with every typed spelling hidden."""
        if isinstance(value, str):
            return self.pattern.sub(self._remember, value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(inner) for key, inner in value.items()}
        return [self.hide(inner) for inner in value] if isinstance(value, list) else value

    def _remember(self, match: re.Match[str]) -> str:
        # What was equal stays equal: a template may look for a name that is required among those there are.
        number = self.hidden.setdefault(match[0], len(self.hidden))
        return f"{self.open}{number}{self.close}"

    def reveal(self, text: str, spans: Sequence[tuple[int, int]]) -> Rendered:
        pieces: list[str] = []
        spellings = list(self.hidden)
        specials: list[tuple[int, int]] = []
        moved = {0: 0}  # where each piece of `text` begins in the revealed text
        end = before = 0
        for piece in re.split(f"({self.open}\\d+{self.close})|({self.pattern.pattern})", text):
            if not piece:
                continue
            before += len(piece)
            if piece[0] == self.open:
                piece = spellings[int(piece[1:-1])]
            elif self.pattern.fullmatch(piece):
                specials.append((end, end + len(piece)))
            pieces.append(piece)
            end += len(piece)
            moved[before] = end
        starts = sorted(moved)

        def place(position: int) -> int:
            start = starts[bisect_right(starts, position) - 1]
            return moved[start] + position - start

        revealed = tuple(Span(place(start), place(stop), 1.0) for start, stop in spans if stop > start)
        return Rendered("".join(pieces), revealed, tuple(specials))
