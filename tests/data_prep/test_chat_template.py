import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.chat_template import TEMPLATES, Rendered, SpecialTokens, get_template
from data_prep.conversation import Conversation, Message, Role
from data_prep.errors import ConfigError
from data_prep.tokenizer import encoders_of
from tests import tiny

V1_1_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAMA = SpecialTokens(eos="</s>", bos="<s>")


def chat(*contents: str, system: str | None = None, weights: tuple[float, ...] = ()) -> Conversation:
    roles = [Role.USER, Role.ASSISTANT]
    turns = tuple(
        Message(roles[index % 2], content, weights[index // 2] if weights and index % 2 else 1.0)
        for index, content in enumerate(contents)
    )
    return Conversation("c", turns if system is None else (Message(Role.SYSTEM, system), *turns))


def trained(rendered: Rendered) -> list[str]:
    return [rendered.text[span.start : span.end] for span in rendered.spans]


def test_vicuna_v1_1_is_byte_exact() -> None:
    rendered = get_template("vicuna_v1.1").render(chat("Hi", "Hello.", "Bye", "Bye!"), LLAMA)
    assert rendered.text == f"<s>{V1_1_SYSTEM} USER: Hi ASSISTANT: Hello.</s>USER: Bye ASSISTANT: Bye!</s>"
    assert trained(rendered) == [" Hello.</s>", " Bye!</s>"]


def test_vicuna_v1_1_prompt_ends_without_a_space() -> None:
    tokens = SpecialTokens(eos="<|im_end|>")
    rendered = get_template("vicuna_v1.1").render(
        chat("Hi", "Hello.", "Bye", system="Be brief."), tokens, add_generation_prompt=True
    )
    assert rendered.text == "Be brief. USER: Hi ASSISTANT: Hello.<|im_end|>USER: Bye ASSISTANT:"


def test_vicuna_v0() -> None:
    rendered = get_template("vicuna_v0").render(chat("Hi", "Hello.", system="S"), LLAMA)
    assert rendered.text == "<s>S\n### Human: Hi\n### Assistant: Hello.\n###"
    assert trained(rendered) == [" Hello.\n###"]


def test_llama_2() -> None:
    rendered = get_template("llama-2").render(chat("Hi", "Hello.", "Bye", "Bye!", system="Be brief."), LLAMA)
    assert rendered.text == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Bye [/INST] Bye! </s>"
    )


def test_chatml() -> None:
    rendered = get_template("chatml").render(chat("Hi", "Hello.", system="Be brief."), LLAMA)
    assert rendered.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n"
    )
    assert trained(rendered) == ["Hello.<|im_end|>"]


def test_a_masked_turn_is_context_only() -> None:
    rendered = get_template("vicuna_v1.1").render(chat("a", "bad", "b", "good", weights=(0.0, 0.5)), LLAMA)
    assert trained(rendered) == [" good</s>"]
    assert rendered.spans[0].weight == 0.5


def test_an_unknown_template_names_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"'alpaca' is unknown; valid: chatml, llama-2, vicuna_v0, vicuna_v1\.1"):
        get_template("alpaca")


texts = st.text(alphabet=st.sampled_from("ab :#\n\t{}<>[]/|'\"\\%你😀é"), max_size=12)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece-legacy"])
@given(contents=st.lists(texts, min_size=1, max_size=5), system=st.none() | texts)
def test_jinja_agrees_byte_for_byte(
    name: str, kind: str, tokenizers: dict, contents: list[str], system: str | None
) -> None:
    tokenizer = tokenizers[kind]
    conversation = chat(*contents, system=system)
    prompt = len(contents) % 2 == 1
    rendered = TEMPLATES[name].render(conversation, encoders_of(tokenizer).for_templates, add_generation_prompt=prompt)
    tiny.set_template(tokenizer, name)
    text = tokenizer.apply_chat_template(
        conversation.to_record()["messages"], tokenize=False, add_generation_prompt=prompt
    )
    assert text == rendered.text
