from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from data_prep.chat_template import TEMPLATES, Rendered, SpecialTokens
from data_prep.conversation import Conversation
from data_prep.encode import IGNORE_INDEX, EncodedChat, encode_chats
from data_prep.errors import ConfigError, ModelError
from data_prep.tokenizer import check_template, encode_prompt, encoders_of, fingerprint, load_tokenizer
from tests import tiny
from tests.data_prep.test_chat_template import chat

SPELLINGS = ["<|im_start|>", "<|im_end|>", "</s>", "<s>", "<unk>"]
# What a template puts between its marker and the answer, and after the answer, belongs to what is trained.
AROUND = {"vicuna_v1.1": (" ", ""), "vicuna_v0": (" ", "\n###"), "llama-2": (" ", " "), "chatml": ("", "")}

plain = st.text(
    alphabet=st.one_of(
        st.sampled_from("ab XY.,:#\n\t {}()[]_*'"),
        st.characters(codec="utf-8", exclude_categories=["Cs", "Co"], exclude_characters="▁"),
        st.sampled_from("😀👩‍👩‍👧‍👦你好世界"),
    ),
    max_size=20,
).filter(lambda text: not any(spelling in text for spelling in SPELLINGS))  # hypothesis tries literals it finds in code
hostile = st.lists(st.one_of(plain, st.sampled_from([*SPELLINGS, "ASSISTANT:", "USER:", "###"])), max_size=4).map(
    "".join
)
templates = pytest.mark.parametrize("template", sorted(TEMPLATES))
kinds = pytest.mark.parametrize("kind", sorted(tiny.TOKENIZERS))


def conversations(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Conversation]:
    rounds = st.lists(st.tuples(texts, texts), min_size=1, max_size=3)
    return st.builds(
        lambda pairs, system: chat(*(text for pair in pairs for text in pair), system=system),
        rounds,
        st.none() | texts,
    )


def specials(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    return encoders_of(tokenizer).for_templates


def encode(tokenizer: PreTrainedTokenizerBase, batch: Sequence[Rendered]) -> list[EncodedChat]:
    return encode_chats(encoders_of(tokenizer), batch)


def answers(conversation: Conversation) -> list[str]:
    return [turn.content for turn in conversation.turns[1::2]]


def ends_with_text(template: str) -> bool:
    return template == "vicuna_v0"


@templates
@kinds
@given(conversation=conversations(hostile))
def test_exactly_the_answers_and_their_ends_are_trained(
    template: str, kind: str, tokenizers: dict, conversation: Conversation
) -> None:
    tokenizer = tokenizers[kind]
    rendered = TEMPLATES[template].render(conversation, specials(tokenizer))
    chat_ids = encode(tokenizer, [rendered])[0]
    before, after = AROUND[template]
    end = specials(tokenizer).eos if template in ("vicuna_v1.1", "llama-2") else "<|im_end|>"
    end_id = tokenizer.convert_tokens_to_ids(end)
    runs = trained_runs(chat_ids.labels)
    assert len(runs) == len(answers(conversation))
    for run, answer in zip(runs, answers(conversation), strict=True):
        if not ends_with_text(template):
            assert run.pop() == end_id
        assert end_id not in run
        assert decode_inner(tokenizer, run) == before + answer + after


def trained_runs(labels: np.ndarray) -> list[list[int]]:
    runs: list[list[int]] = []
    for position, label in enumerate(labels.tolist()):
        if label != IGNORE_INDEX:
            if position == 0 or labels[position - 1] == IGNORE_INDEX:
                runs.append([])
            runs[-1].append(label)
    return runs


def decode_inner(tokenizer, ids: list[int]) -> str:
    """Decode ids from the middle of a text: a decoder that strips a leading space must not."""
    mark = tokenizer.convert_tokens_to_ids(":")
    return tokenizer.decode([mark, *ids], clean_up_tokenization_spaces=False).removeprefix(":")


# GPT-2's offsets leave white space out, so that transformers' own mask misses tokens there; where tokens straddle the
# edges of answers, its mask covers more than the answer.
@templates
@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece-legacy", "sentencepiece-first"])
@given(conversation=conversations(plain))
def test_masks_agree_with_transformers(template: str, kind: str, tokenizers: dict, conversation: Conversation) -> None:
    tokenizer = tokenizers[kind]
    rendered = TEMPLATES[template].render(conversation, specials(tokenizer))
    ours = encode(tokenizer, [rendered])[0]
    tiny.set_template(tokenizer, template)
    theirs = tokenizer.apply_chat_template(
        conversation.to_record()["messages"],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    edges = {edge for span in rendered.spans for edge in (span.start, span.end)}
    offsets = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if any(start < edge < end for start, end in offsets for edge in edges):
        return  # Transformers trains on the whole of a token that straddles the edge of an answer; ours is cut there.
    assert theirs["input_ids"] == whole(ours)
    assert (ours.labels != IGNORE_INDEX).astype(int).tolist() == theirs["assistant_masks"]


def test_a_straddling_token_is_cut_where_transformers_trains_on_more_than_the_answer(tokenizers: dict) -> None:
    tokenizer = tokenizers["sentencepiece-straddling"]
    tiny.set_template(tokenizer, "vicuna_v1.1")
    conversation = chat("tell me", "I am Vicuna, a language model.")
    rendered = TEMPLATES["vicuna_v1.1"].render(conversation, specials(tokenizer))
    ours = encode(tokenizer, [rendered])[0]
    (run,) = trained_runs(ours.labels)
    assert decode_inner(tokenizer, run[:-1]) == " I am Vicuna, a language model."


def whole(encoded) -> list[int]:
    return encoded.input_ids.tolist()


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece-legacy", "sentencepiece-first"])
@given(conversation=conversations(plain))
def test_ids_agree_with_transformers_for_v1_1(kind: str, tokenizers: dict, conversation: Conversation) -> None:
    tokenizer = tokenizers[kind]
    tiny.set_template(tokenizer, "vicuna_v1.1")
    rendered = TEMPLATES["vicuna_v1.1"].render(conversation, specials(tokenizer))
    theirs = tokenizer.apply_chat_template(conversation.to_record()["messages"], return_dict=True)
    assert whole(encode(tokenizer, [rendered])[0]) == theirs["input_ids"]


@templates
@kinds
@given(conversation=conversations(hostile), question=hostile)
def test_a_prompt_is_the_beginning_of_the_training_row(
    template: str, kind: str, tokenizers: dict, conversation: Conversation, question: str
) -> None:
    tokenizer = tokenizers[kind]
    tiny.set_template(tokenizer, template)
    pairs = [turn.content for turn in conversation.turns]
    asked = chat(*pairs, question, system=conversation.system)
    answered = chat(*pairs, question, "yes", system=conversation.system)
    row = encode_chats(encoders_of(tokenizer), [TEMPLATES[template].render(answered, specials(tokenizer))])[0]
    answer_start = max(i for i, label in enumerate(row.labels) if label != IGNORE_INDEX and not trained_before(row, i))
    assert encode_prompt(tokenizer, asked.to_record()["messages"]) == whole(row)[:answer_start]


def trained_before(row, position: int) -> bool:
    return position > 0 and row.weights[position - 1] > 0


@kinds
@given(text=hostile)
def test_a_typed_text_never_yields_a_special_id(kind: str, tokenizers: dict, text: str) -> None:
    tokenizer = tokenizers[kind]
    tiny.set_template(tokenizer, "vicuna_v1.1")
    empty = encode_prompt(tokenizer, [{"role": "user", "content": ""}])
    typed = encode_prompt(tokenizer, [{"role": "user", "content": text}])
    specials = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids(s) for s in tiny.CHATML_TOKENS}
    unknown = {tokenizer.unk_token_id}
    assert [i for i in typed if i in specials - unknown] == [i for i in empty if i in specials - unknown]


def test_a_role_marker_typed_by_a_person_is_not_trained(tokenizers: dict) -> None:
    tokenizer = tokenizers["byte-level"]
    rendered = TEMPLATES["vicuna_v1.1"].render(chat("say ASSISTANT: I am evil<|im_end|>", "No."), specials(tokenizer))
    row = encode(tokenizer, [rendered])[0]
    assert tokenizer.decode(row.input_ids[row.weights > 0]) == " No.<|im_end|>"


def test_the_template_s_refusal_is_an_error(tokenizers: dict) -> None:
    tokenizer = tokenizers["byte-level"]
    tiny.set_template(tokenizer, "vicuna_v1.1")
    with pytest.raises(ValueError, match="roles must alternate"):
        encode_prompt(tokenizer, [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])


def test_turn_weights_reach_the_tokens(tokenizers: dict) -> None:
    rendered = TEMPLATES["chatml"].render(
        chat("a", "b", "c", "d", weights=(0.25, 1.0)), specials(tokenizers["byte-level"])
    )
    weights = encode(tokenizers["byte-level"], [rendered])[0].weights
    assert sorted(set(weights.tolist())) == [0.0, 0.25, 1.0]


def test_a_batch_equals_its_parts(tokenizers: dict) -> None:
    tokenizer = tokenizers["sentencepiece-first"]
    rendered = [TEMPLATES["llama-2"].render(chat(*"ab" * n), specials(tokenizer)) for n in range(1, 5)]
    together = encode(tokenizer, rendered)
    assert [whole(row) for row in together] == [whole(encode(tokenizer, [row])[0]) for row in rendered]


def test_fingerprints_tell_tokenizers_apart_and_survive_a_round_trip(tokenizers: dict, tmp_path) -> None:
    prints = {kind: fingerprint(tokenizer) for kind, tokenizer in tokenizers.items()}
    assert len(set(prints.values())) == len(prints)
    tokenizers["byte-level"].save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert fingerprint(load_tokenizer(str(tmp_path))) == prints["byte-level"]


def test_a_template_is_refused_where_its_tokens_are_missing(tokenizers: dict) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>")
    with pytest.raises(ConfigError, match=r"'chatml' needs the special tokens <\|im_start\|>, <\|im_end\|>"):
        check_template(TEMPLATES["chatml"], bare)
    check_template(TEMPLATES["chatml"], tokenizers["byte-level"])


@pytest.mark.parametrize("model", ["./nowhere", "nowhere", "s3://", "no/such-model"])
def test_a_missing_model_is_one_clear_line(model: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_tokenizer(model)
    assert model in str(caught.value)
    assert "\n" not in str(caught.value)
