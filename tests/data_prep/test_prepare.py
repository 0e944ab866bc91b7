"""Every record of a group is in a row or a counted drop."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.config import DataConfig
from data_prep.contamination import EvaluationQuestions
from data_prep.moderation import NoModerator, PatternModerator
from data_prep.prepare import Chunk, Item, Preparation, Prepared, leave_out, pack_chats
from data_prep.tokenizer import encoders_of
from tests import tiny

ROUND = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]
TOKENIZER = tiny.byte_level()


def config(**fields: Any) -> DataConfig:
    values = {
        "output": "x",
        "tokenizer": "x",
        "sources": ["chats.json"],
        "template": "chatml",
        "context_length": 128,
        "dedup": {"exact": False},
    }
    return DataConfig.parse({**values, **fields})


def prepared(*records: Any, tokenizer: Any = TOKENIZER, weight: float = 1.0, **fields: Any) -> Prepared:
    """What a group of `records`, None for one that could not be read, gives."""
    items = [Item(position, value, None if value else "torn") for position, value in enumerate(records)]
    preparation = Preparation(config(**fields), encoders_of(tokenizer), NoModerator())
    return preparation.prepare(Chunk(1, "chats.json", items, weight))


def kept(result: Prepared) -> list[str]:
    return [chat.document.id for chat in result.chats]


def text(result: Prepared, index: int = 0) -> str:
    return str(TOKENIZER.decode(result.chats[index].document.tokens.input_ids))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "unreadable"),
        ({"id": "a", "conversations": []}, "no_messages"),
        ({"id": "a", "conversations": ROUND[:1]}, "no_answer"),
        ({"id": "a", "conversations": ROUND[1:]}, "no_messages"),
        ({"id": "a", "conversations": [ROUND[0], *ROUND]}, "roles_not_alternating"),
        ({"id": "a", "conversations": [ROUND[0], {"from": "gpt", "value": "network error"}]}, "error_message"),
        ({"id": "a", "instruction": "Add.", "input": "1 1"}, "content_not_text"),
        ({"id": "a", "conversations": [{"from": "martian", "value": "x"}]}, "unknown_role"),
        ({"id": "a", "conversations": [ROUND[0], {"from": "gpt", "value": "long " * 500}]}, "too_long"),
    ],
)
def test_a_record_that_cannot_be_trained_on_is_kept_with_its_reason(record: Any, reason: str) -> None:
    result = prepared(record, {"id": "good", "conversations": ROUND})
    (reject,) = result.rejects
    assert (reject.source, reject.position, reject.reason) == ("chats.json", 0, reason)
    assert reject.id == ("a" if record else "")
    assert dict(result.counts["dropped"]) == {reason: 1}
    assert result.counts["steps"]["records"] == 2
    assert kept(result) == ["good"]


rounds = st.lists(st.integers(0, 60), min_size=1, max_size=8)


@given(st.lists(rounds, max_size=8), st.booleans(), st.sampled_from(["drop", "truncate_answer"]))
def test_every_trained_token_is_in_one_row_or_a_counted_drop(
    chats: list[list[int]], pack: bool, oversize_round: str
) -> None:
    def records(words: list[list[int]]) -> list[dict[str, Any]]:
        answers = [[{"from": "gpt", "value": f"long{' long' * count}"} for count in chat] for chat in words]
        return [
            {"id": f"{number}", "conversations": [turn for answer in chat for turn in (ROUND[0], answer)]}
            for number, chat in enumerate(answers)
        ]

    fields = {"pack": pack, "oversize_round": oversize_round, "eval_fraction": 0.3}
    result = prepared(*records(chats), **fields)
    packed = pack_chats(result.chats, config(**fields))
    rows = [row for split_rows in packed.rows.values() for row in split_rows]
    names = [name for row in rows for name in row.document_ids]
    assert len(set(names)) == len(names)
    steps = result.counts["steps"]
    assert len(names) + len(result.rejects) == steps["records"] + steps["split_parts"]
    assert all(len(row.input_ids) <= 128 for row in rows)

    alone = [prepared(*records([[count]]), context_length=2048).chats[0].document.tokens for count in range(61)]
    size = [int((tokens.weights > 0).sum()) for tokens in alone]
    expected = sum(size[count] for chat in chats for count in chat)
    trained = sum(int((row.weights > 0).sum()) for row in rows)
    dropped = sum(size[chats[int(reject.id)][reject.part // 2]] for reject in result.rejects)
    assert trained + dropped + steps["truncated_tokens"] == expected


def test_a_truncated_answer_ends_where_the_row_ends() -> None:
    record = {"id": "a", "conversations": [ROUND[0], {"from": "gpt", "value": "long " * 500}]}
    result = prepared(record, oversize_round="truncate_answer")
    tokens = result.chats[0].document.tokens
    assert len(tokens.input_ids) == 128
    assert tokens.weights[-1] == 1
    assert tokens.input_ids[-1] != TOKENIZER.eos_token_id
    assert result.counts["steps"]["truncated"] == 1


def test_parts_of_a_split_chat_are_what_they_would_be_alone() -> None:
    """Encoding a chat once gives the tokens that encoding each part by itself gives."""
    turns = [turn for _ in range(9) for turn in (ROUND[0], {"from": "gpt", "value": "some words and more words"})]
    for tokenizer in (TOKENIZER, tiny.sentencepiece_like(legacy=False, merges_across_words=True)):
        for template in ("vicuna_v1.1", "vicuna_v0", "llama-2", "chatml"):
            record = {"id": "a", "conversations": turns}
            parts = prepared(record, tokenizer=tokenizer, template=template, context_length=150).chats
            assert len(parts) > 1
            ends = [*(chat.document.part for chat in parts[1:]), len(turns)]
            for chat, end in zip(parts, ends, strict=True):
                alone = {"id": "a", "conversations": turns[chat.document.part : end]}
                (whole,) = prepared(alone, tokenizer=tokenizer, template=template, context_length=2048).chats
                assert np.array_equal(chat.document.tokens.input_ids, whole.document.tokens.input_ids)
                assert np.array_equal(chat.document.tokens.weights, whole.document.tokens.weights)


def test_page_html_is_converted_in_sharegpt_records_alone() -> None:
    markup = '<div class="markdown prose"><p>one <strong>two</strong></p></div>'
    sharegpt = prepared({"id": "a", "conversations": [ROUND[0], {"from": "gpt", "value": markup}]})
    assert "one **two**" in text(sharegpt)
    assert sharegpt.counts["steps"]["html_messages"] == 1
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": markup}]
    openai = prepared({"id": "a", "messages": messages})
    assert markup in text(openai)
    assert openai.counts["steps"]["html_messages"] == 0


def test_roles_are_repaired_and_counted() -> None:
    result = prepared({"id": "a", "conversations": [ROUND[1], *ROUND, ROUND[0]]})
    assert text(result).count("Because.") == text(result).count("Why?") == 1
    assert result.counts["steps"]["repaired"] == 1


def test_a_bad_answer_is_context_and_not_trained() -> None:
    result = prepared({"id": "a", "conversations": [ROUND[0], {"from": "gpt", "value": "network error"}, *ROUND]})
    tokens = result.chats[0].document.tokens
    assert "network error" in text(result)
    assert "network" not in str(TOKENIZER.decode(tokens.input_ids[tokens.weights > 0]))
    assert dict(result.counts["masked"]) == {"error_message": 1}


def test_alpaca_records_and_records_without_an_id_are_read() -> None:
    result = prepared({"instruction": "Add.", "input": "1 1", "output": "2"}, {"conversations": ROUND})
    elsewhere = prepared({"conversations": ROUND}, {"conversations": [ROUND[0], {"from": "gpt", "value": "Other."}]})
    assert len({*kept(result), *kept(elsewhere)}) == 3  # named by content: no chat takes the name of another
    assert kept(result)[1] == kept(elsewhere)[0]
    assert "Add.\n\n1 1" in text(result)


def test_the_parts_of_a_chat_stay_on_one_side() -> None:
    long = {"from": "gpt", "value": "long " * 12}
    records = [{"id": f"{number}", "conversations": [ROUND[0], long] * 6} for number in range(12)]
    result = prepared(*records, eval_fraction=0.5)
    held_out, trained = (
        {chat.document.id.split("_")[0] for chat in result.chats if chat.held_out == side} for side in (True, False)
    )
    assert result.counts["steps"]["split_parts"] > 0
    assert held_out
    assert trained
    assert not held_out & trained


def test_a_weight_takes_chats_rarely_or_often_by_their_id() -> None:
    records = [{"id": f"{number}", "conversations": ROUND} for number in range(400)]
    some = prepared(*records, weight=0.25)
    assert 60 < len(some.chats) < 140
    assert set(kept(some)) <= set(kept(prepared(*records, weight=0.5)))
    assert some.counts["dropped"]["not_sampled"] == 400 - len(some.chats)
    often = pack_chats(prepared(*records[:10], weight=3).chats, config())
    names = [name for row in often.rows["train"] for name in row.document_ids]
    assert {names.count(f"{number}") for number in range(10)} == {3}
    assert often.repeated == 20


def test_excluded_chats_and_evaluation_questions_are_left_out_and_listed() -> None:
    asked = "Please explain in detail how the moon causes the tides of the sea."
    records = [
        {"id": "gone", "conversations": ROUND},
        {"id": "asked", "conversations": [{"from": "human", "value": asked}, ROUND[1]]},
    ]
    items = [Item(position, value) for position, value in enumerate(records)]
    questions = EvaluationQuestions([asked], 8)
    result = Preparation(config(exclude_ids=["gone"]), encoders_of(TOKENIZER), NoModerator(), questions).prepare(
        Chunk(1, "x", items)
    )
    assert [(reject.id, reject.reason, reject.detail) for reject in result.rejects] == [
        ("gone", "excluded", ""),
        ("asked", "evaluation_question", asked),
    ]


def test_flagged_chats_are_left_out() -> None:
    items = [
        Item(position, {"id": name, "conversations": [{"from": "human", "value": f"question {name}"}, ROUND[1]]})
        for position, name in enumerate("abc")
    ]
    moderator = PatternModerator({"hate": ["question b"]})
    result = Preparation(config(), encoders_of(TOKENIZER), moderator).prepare(Chunk(1, "x", items))
    assert kept(result) == ["a", "c"]
    assert [(reject.id, reject.reason, reject.detail) for reject in result.rejects] == [("b", "moderation", "hate")]


def test_duplicates_are_left_out_of_the_rows_with_all_their_parts() -> None:
    long = {"from": "gpt", "value": "long " * 12}
    result = prepared({"id": "a", "conversations": [ROUND[0], long] * 6}, {"id": "b", "conversations": ROUND})
    kept, rejects = leave_out(result.chats, {0: ("duplicate_id", "record 9 of x")})
    packed = pack_chats(kept, config())
    assert [name for row in packed.rows["train"] for name in row.document_ids] == ["b"]
    assert {(reject.reason, reject.detail) for reject in rejects} == {("duplicate_id", "record 9 of x")}
    assert len(rejects) == len(result.chats) - 1


def test_characters_without_tokens_are_counted() -> None:
    lacking = tiny.byte_level(lacks=b"\xf3")
    flag = {"from": "gpt", "value": "England: 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"}
    records = [{"id": "a", "conversations": [ROUND[0], flag]}, {"id": "b", "conversations": ROUND}]
    assert prepared(*records, tokenizer=lacking).counts["steps"]["with_lost_bytes"] == 1
    assert prepared(*records).counts["steps"]["with_lost_bytes"] == 0


@pytest.mark.parametrize(
    "bad",
    [
        "<div>" * 10_000 + "x",
        "<b><i>" * 200_000,
        "\x00" * 5000,
        "<p>" + "&amp;" * 100_000 + "</p>",
        "1. a\n1. b\n" * 5000,
    ],
    ids=["nested", "megabytes", "nulls", "entities", "list"],
)
def test_a_pathological_message_costs_at_most_itself(bad: str) -> None:
    records = [
        {"id": "bad", "conversations": [ROUND[0], {"from": "gpt", "value": bad}]},
        {"id": "good", "conversations": ROUND},
    ]
    result = prepared(*records)
    assert kept(result)[-1] == "good"
    assert len(result.rejects) + len({chat.position for chat in result.chats}) == 2
