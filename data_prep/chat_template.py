"""Chat templates: a conversation as the text a model sees, the same template twice.

`ChatTemplate.render` gives the text with the spans the loss covers; `ChatTemplate.jinja` gives the template that
travels with a model directory. The two agree byte for byte. One template fits every tokenizer: where Vicuna v1.1 has
`</s>`, the tokenizer's own end token stands, and a begin token stands where the tokenizer adds one by itself.

Formats: Vicuna v1.1 and v0 (Chiang et al. 2023), Llama-2 chat (Touvron et al. 2023, A.2), ChatML (OpenAI 2023).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data_prep.conversation import Conversation, Message, Role
from data_prep.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The spellings a tokenizer gives to the special tokens a template uses.

    `bos` is empty where the tokenizer does not open a text by itself; then no template opens one either.
    """

    eos: str
    bos: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `[start, end)` of a rendered text that the loss covers with `weight`."""

    start: int
    end: int
    weight: float


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text.

    `spans` are the assistant's texts with their end markers, in order. `specials` are the character ranges that the
    template itself wrote as special tokens; the same spelling anywhere else was typed by a person.
    """

    text: str
    spans: tuple[Span, ...]
    specials: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    weight: float = 0.0
    special: bool = False


Pieces = Iterator[_Piece]


@dataclass(frozen=True)
class ChatTemplate:
    """One named template.

    `default_system` stands where a conversation has no system message; None writes no system part at all.
    `stop_strings` end an answer where the end marker is ordinary text. `required_tokens` must be special tokens of the
    tokenizer.
    """

    name: str
    default_system: str | None
    pieces: Callable[[str | None, tuple[Message, ...], SpecialTokens, bool], Pieces]
    body: str
    stop_strings: tuple[str, ...] = ()
    required_tokens: tuple[str, ...] = ()

    def render(
        self, conversation: Conversation, tokens: SpecialTokens, *, add_generation_prompt: bool = False
    ) -> Rendered:
        """Render `conversation`; with `add_generation_prompt` the text ends where the assistant's answer begins."""
        system = conversation.system if conversation.system is not None else self.default_system
        return _join(self.pieces(system, conversation.turns, tokens, add_generation_prompt))

    def jinja(self, *, opens_with_bos: bool) -> str:
        """The same template for `tokenizer.chat_template`, with `generation` marks around what `spans` cover."""
        bos = "{{- bos_token -}}" if opens_with_bos else ""
        return _PREAMBLE.replace("@DEFAULT@", _quote(self.default_system)) + self.body.replace("@BOS@", bos)


def _quote(text: str | None) -> str:
    return "none" if text is None else "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _join(pieces: Pieces) -> Rendered:
    texts: list[str] = []
    spans: list[Span] = []
    specials: list[tuple[int, int]] = []
    end = 0
    for piece in pieces:
        start, end = end, end + len(piece.text)
        texts.append(piece.text)
        if piece.special and piece.text:
            specials.append((start, end))
        if piece.weight > 0 and piece.text:
            if spans and spans[-1].end == start and spans[-1].weight == piece.weight:
                start = spans.pop().start
            spans.append(Span(start, end, piece.weight))
    return Rendered("".join(texts), tuple(spans), tuple(specials))


def _v1_1(system: str | None, turns: tuple[Message, ...], tokens: SpecialTokens, prompt: bool) -> Pieces:
    yield _Piece(tokens.bos, special=True)
    yield _Piece(f"{system} ")
    for turn in turns:
        if turn.role is Role.USER:
            yield _Piece(f"USER: {turn.content} ")
        else:
            yield _Piece("ASSISTANT:")
            yield _Piece(f" {turn.content}", turn.weight)
            yield _Piece(tokens.eos, turn.weight, special=True)
    if prompt:
        yield _Piece("ASSISTANT:")


def _v0(system: str | None, turns: tuple[Message, ...], tokens: SpecialTokens, prompt: bool) -> Pieces:
    yield _Piece(tokens.bos, special=True)
    yield _Piece(f"{system}\n###")
    for turn in turns:
        if turn.role is Role.USER:
            yield _Piece(f" Human: {turn.content}\n###")
        else:
            yield _Piece(" Assistant:")
            yield _Piece(f" {turn.content}\n###", turn.weight)
    if prompt:
        yield _Piece(" Assistant:")


def _llama_2(system: str | None, turns: tuple[Message, ...], tokens: SpecialTokens, prompt: bool) -> Pieces:
    for index, turn in enumerate(turns):
        if turn.role is Role.USER:
            yield _Piece(tokens.bos, special=True)
            opening = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if index == 0 and system is not None else ""
            yield _Piece(f"[INST] {opening}{turn.content} [/INST]")
        else:
            yield _Piece(f" {turn.content} ", turn.weight)
            yield _Piece(tokens.eos, turn.weight, special=True)


def _chatml(system: str | None, turns: tuple[Message, ...], tokens: SpecialTokens, prompt: bool) -> Pieces:
    messages = turns if system is None else (Message(Role.SYSTEM, system), *turns)
    for message in messages:
        weight = message.weight if message.role is Role.ASSISTANT else 0.0
        yield _Piece("<|im_start|>", special=True)
        yield _Piece(f"{message.role.value}\n")
        yield _Piece(message.content, weight)
        yield _Piece("<|im_end|>", weight, special=True)
        yield _Piece("\n")
    if prompt:
        yield _Piece("<|im_start|>", special=True)
        yield _Piece("assistant\n")


# Splits off the system message and holds the rule of `Conversation`.
_PREAMBLE = """\
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = @DEFAULT@ -%}{%- set turns = messages -%}
{%- endif -%}
{%- if not turns -%}{{- raise_exception('a conversation needs a message besides the system message') -}}{%- endif -%}
{%- for turn in turns -%}
{%- if turn['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
{{- raise_exception('after the system message, roles must alternate: user, assistant, user, assistant, ...') -}}
{%- endif -%}
{%- endfor -%}
"""

_V1_1_BODY = """\
@BOS@{{- system + ' ' -}}
{%- for turn in turns -%}
{%- if turn['role'] == 'user' -%}
{{- 'USER: ' + turn['content'] + ' ' -}}
{%- else -%}
{{- 'ASSISTANT:' -}}{%- generation -%}{{- ' ' + turn['content'] + eos_token -}}{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""

_V0_BODY = """\
@BOS@{{- system + '\\n###' -}}
{%- for turn in turns -%}
{%- if turn['role'] == 'user' -%}
{{- ' Human: ' + turn['content'] + '\\n###' -}}
{%- else -%}
{{- ' Assistant:' -}}{%- generation -%}{{- ' ' + turn['content'] + '\\n###' -}}{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ' Assistant:' -}}{%- endif -%}
"""

_LLAMA_2_BODY = """\
{%- for turn in turns -%}
{%- if turn['role'] == 'user' -%}
@BOS@{{- '[INST] ' -}}
{%- if loop.index0 == 0 and system is not none -%}{{- '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' -}}{%- endif -%}
{{- turn['content'] + ' [/INST]' -}}
{%- else -%}
{%- generation -%}{{- ' ' + turn['content'] + ' ' + eos_token -}}{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
"""

_CHATML_BODY = """\
{%- if system is not none -%}{{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' -}}{%- endif -%}
{%- for turn in turns -%}
{{- '<|im_start|>' + turn['role'] + '\\n' -}}
{%- if turn['role'] == 'assistant' -%}
{%- generation -%}{{- turn['content'] + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- turn['content'] + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

_V1_1_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_V0_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)

TEMPLATES = {
    template.name: template
    for template in (
        ChatTemplate("vicuna_v1.1", _V1_1_SYSTEM, _v1_1, _V1_1_BODY),
        ChatTemplate("vicuna_v0", _V0_SYSTEM, _v0, _V0_BODY, stop_strings=("\n###", "###")),
        ChatTemplate("llama-2", None, _llama_2, _LLAMA_2_BODY),
        ChatTemplate("chatml", None, _chatml, _CHATML_BODY, required_tokens=("<|im_start|>", "<|im_end|>")),
    )
}


def get_template(name: str) -> ChatTemplate:
    """The template called `name`.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        return TEMPLATES[name]
    except KeyError:
        raise ConfigError(f"template: {name!r} is unknown; valid: {', '.join(sorted(TEMPLATES))}") from None
