"""Whatever a person types, the only special tokens of a rendered prompt are those the template wrote."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import ModelError
from data_prep.model_template import render_messages
from data_prep.tokenizer import special_pattern
from tests import tiny

typed = st.lists(
    st.sampled_from(
        ["<|im_start|>", "<|im_end|>", "<|im_", "user", "\n", " ", "0", "\ue000", "\ue001", "你", "😀", "{{ x }}"]
    ),
    max_size=8,
).map("".join)


@given(question=typed, answer=typed)
def test_typed_spellings_come_back_and_are_no_specials(question: str, answer: str) -> None:
    tokenizer = tiny.byte_level()
    tiny.set_template(tokenizer, "chatml")
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    rendered = render_messages(tokenizer, messages, special_pattern(tokenizer), add_generation_prompt=False)
    written = [rendered.text[start:end] for start, end in rendered.specials]
    plain = render_messages(
        tokenizer,
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        special_pattern(tokenizer),
        add_generation_prompt=False,
    )
    assert written == [plain.text[start:end] for start, end in plain.specials] == ["<|im_start|>", "<|im_end|>"] * 2
    assert f"user\n{question}" in rendered.text
    (span,) = rendered.spans
    assert rendered.text[span.start : span.end] == f"{answer}<|im_end|>"


BASIC_PLANE = "".join(map(chr, range(0xE000, 0xF900)))
OTHER_PLANES = "".join(map(chr, [*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE)]))


def test_a_text_of_all_private_use_characters_of_the_basic_plane_is_rendered() -> None:
    tokenizer = tiny.byte_level()
    tiny.set_template(tokenizer, "chatml")
    question = f"{BASIC_PLANE}<|im_end|>{OTHER_PLANES[:5]}"
    rendered = render_messages(tokenizer, [{"role": "user", "content": question}], special_pattern(tokenizer))
    assert f"user\n{question}" in rendered.text
    written = [rendered.text[start:end] for start, end in rendered.specials]
    assert written == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]


def test_a_text_of_all_private_use_characters_is_refused() -> None:
    tokenizer = tiny.byte_level()
    tiny.set_template(tokenizer, "chatml")
    messages = [{"role": "user", "content": BASIC_PLANE + OTHER_PLANES}]
    with pytest.raises(ValueError, match="private-use characters"):
        render_messages(tokenizer, messages, special_pattern(tokenizer))


def test_typed_spellings_in_names_are_no_specials() -> None:
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = (
        "{% for tool in tools %}{{ tool | tojson }}{% for name in tool.properties %}"
        "{% if name in tool.required %} {{ name }} is required.{% endif %}{% endfor %}{% endfor %}"
        "{% for message in messages %}{{ message.arguments | tojson }}<|im_end|>{% endfor %}"
    )
    tool = {"properties": {"<|im_end|>": {}, "<|im_start|>": {}}, "required": ["<|im_start|>"]}
    rendered = render_messages(
        tokenizer, [{"arguments": {"a": [{"<|im_end|>": 1}]}}], special_pattern(tokenizer), tools=[tool]
    )
    assert rendered.text == (
        '{"properties": {"<|im_end|>": {}, "<|im_start|>": {}}, "required": ["<|im_start|>"]}'
        ' <|im_start|> is required.{"a": [{"<|im_end|>": 1}]}<|im_end|>'
    )
    assert rendered.specials == ((len(rendered.text) - len("<|im_end|>"), len(rendered.text)),)


def test_without_marks_there_are_no_spans() -> None:
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    rendered = render_messages(tokenizer, [{"role": "user", "content": "a"}], re.compile("(?!)"))
    assert (rendered.text, rendered.spans, rendered.specials) == ("a", (), ())


def test_a_template_that_refuses_says_so_in_its_own_words() -> None:
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = "{{ raise_exception('no system message, please') }}"
    with pytest.raises(ValueError, match="no system message, please"):
        render_messages(tokenizer, [{"role": "system", "content": "a"}], re.compile("(?!)"))


def test_a_model_without_a_template_is_refused() -> None:
    with pytest.raises(ModelError, match="the model has no chat template"):
        render_messages(tiny.byte_level(), [{"role": "user", "content": "a"}], re.compile("(?!)"))
