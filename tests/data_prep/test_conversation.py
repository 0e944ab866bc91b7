from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.conversation import (
    ROLE_NAMES,
    Conversation,
    DropReason,
    InvalidConversation,
    Message,
    Role,
    conversation_from_record,
)

SYSTEM, USER, ASSISTANT = Role.SYSTEM, Role.USER, Role.ASSISTANT

texts = st.text(max_size=8)
weights = st.sampled_from([0.0, 0.25, 1.0])
messages = st.lists(st.builds(Message, st.sampled_from(list(Role)), texts, weights), max_size=6)
valid_conversations = st.builds(
    lambda identifier, system, turns: Conversation(
        identifier,
        (
            *([] if system is None else [Message(SYSTEM, system)]),
            *(Message(ASSISTANT if i % 2 else USER, text, weight) for i, (text, weight) in enumerate(turns)),
        ),
    ),
    st.text(min_size=1, max_size=8),
    st.none() | texts,
    st.lists(st.tuples(texts, weights), min_size=1, max_size=5),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
almost_messages = st.fixed_dictionaries(
    {},
    optional={
        "from": st.sampled_from([*ROLE_NAMES, "narrator"]) | json_values,
        "role": st.sampled_from([*ROLE_NAMES, "narrator"]) | json_values,
        "value": json_values,
        "content": json_values,
        "weight": json_values,
    },
)
almost_records = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values,
        "conversations": st.lists(almost_messages | json_values, max_size=4) | json_values,
        "messages": st.lists(almost_messages, max_size=4) | json_values,
    },
)


def expected_reason(roles: list[Role]) -> DropReason | None:
    """The rule, said another way: what follows the system message is a beginning of user, assistant, user, …"""
    rest = roles[1:] if roles[:1] == [SYSTEM] else roles
    if not rest:
        return DropReason.NO_MESSAGES
    wrong = [role for role, due in zip(rest, [USER, ASSISTANT] * len(rest), strict=False) if role is not due]
    if not wrong:
        return None
    return DropReason.SYSTEM_NOT_FIRST if wrong[0] is SYSTEM else DropReason.ROLES_NOT_ALTERNATING


def refusal(record: Any) -> InvalidConversation:
    with pytest.raises(InvalidConversation) as caught:
        conversation_from_record(record)
    return caught.value


def sharegpt(*turns: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": "a", "conversations": list(turns), **fields}


@given(messages=messages)
def test_messages_make_a_conversation_or_are_refused_with_the_reason(messages: list[Message]) -> None:
    reason = expected_reason([message.role for message in messages])
    if reason is not None:
        with pytest.raises(InvalidConversation) as caught:
            Conversation("a", tuple(messages))
        assert caught.value.reason is reason
        return
    conversation = Conversation("a", tuple(messages))
    assert [turn.role for turn in conversation.turns] == ([USER, ASSISTANT] * 3)[: len(conversation.turns)]
    assert conversation.has_answer == any(message.role is ASSISTANT for message in messages)
    assert (conversation.system is None) == (messages[0].role is not SYSTEM)
    assert [message.content for message in messages] == [
        *([] if conversation.system is None else [conversation.system]),
        *(turn.content for turn in conversation.turns),
    ]


@given(conversation=valid_conversations)
def test_a_record_gives_its_conversation_back(conversation: Conversation) -> None:
    assert conversation_from_record(conversation.to_record()) == conversation


@given(conversation=valid_conversations)
def test_both_forms_are_read_alike(conversation: Conversation) -> None:
    record = conversation.to_record()
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [
        {"from": names[m["role"]], "value": m["content"], **({"weight": m["weight"]} if "weight" in m else {})}
        for m in record["messages"]
    ]
    assert conversation_from_record({"id": record["id"], "conversations": turns}) == conversation


@given(record=almost_records | json_values)
def test_no_record_crashes(record: Any) -> None:
    try:
        read: Conversation | InvalidConversation = conversation_from_record(record)
    except InvalidConversation as error:
        read = error
    assert read.reason in DropReason if isinstance(read, InvalidConversation) else read.turns[0].role is USER


@pytest.mark.parametrize(("name", "role"), sorted(ROLE_NAMES.items()))
def test_every_spelling_of_a_role_is_read(name: str, role: Role) -> None:
    before = [] if role is not ASSISTANT else [{"from": "human", "value": "hi"}]
    after = [{"from": "human", "value": "hi"}] if role is SYSTEM else []
    conversation = conversation_from_record(sharegpt(*before, {"from": name, "value": "text"}, *after))
    assert conversation.messages[len(before)] == Message(role, "text")


def test_the_spellings_of_shared_chats_are_known() -> None:
    assert {name for name, role in ROLE_NAMES.items() if role is USER} == {"human", "user"}
    assert {name for name, role in ROLE_NAMES.items() if role is ASSISTANT} >= {"gpt", "chatgpt", "bing", "bard"}


@pytest.mark.parametrize("weight", [0, 0.25, 1, None])
def test_a_message_carries_its_weight(weight: float | None) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello", "weight": weight}]
    conversation = conversation_from_record({"id": "a", "messages": turns})
    assert conversation.turns[1].weight == (1.0 if weight is None else weight)


def test_a_number_may_name_a_chat() -> None:
    assert conversation_from_record(sharegpt({"from": "human", "value": "hi"}, id=0)).id == "0"


ASKED = {"from": "human", "value": "hi"}
ANSWERED = {"from": "gpt", "value": "hello"}
REFUSED = [
    (None, "unreadable", "expected an object, found NoneType"),
    (["chat"], "unreadable", "expected an object, found list"),
    ({"conversations": [ASKED]}, "missing_id", "'id' is missing"),
    (sharegpt(ASKED, id=""), "missing_id", "'id' is missing"),
    ({"id": "a"}, "no_messages", "'conversations' or 'messages'"),
    (sharegpt(), "no_messages", "must be a filled list"),
    ({"id": "a", "conversations": "hi"}, "no_messages", "must be a filled list"),
    ({"id": "a", "messages": {"role": "user"}}, "no_messages", "must be a filled list"),
    (sharegpt({"from": "system", "value": "s"}), "no_messages", "besides the system message"),
    ({"id": "a", "messages": ["hi"]}, "unreadable", "message 0: expected an object"),
    (sharegpt(ASKED, {"from": "narrator", "value": "x"}), "unknown_role", "message 1: unknown role 'narrator'"),
    (sharegpt({"value": "x"}), "unknown_role", "message 0: unknown role None"),
    (sharegpt({"from": ["human"], "value": "x"}), "unknown_role", "unknown role ['human']"),
    (sharegpt({"from": "human"}), "content_not_text", "message 0: the text is NoneType"),
    (sharegpt({"from": "human", "value": [{"type": "text"}]}), "content_not_text", "the text is list"),
    (sharegpt(ASKED, {"from": "system", "value": "s"}), "system_not_first", "message 1: a system message"),
    (sharegpt({"from": "gpt", "value": "x"}), "roles_not_alternating", "message 0: expected role 'user'"),
    (sharegpt(ASKED, ASKED), "roles_not_alternating", "message 1: expected role 'assistant', found 'user'"),
    (sharegpt({**ASKED, "weight": 2}), "unreadable", "message 0: weight 2 is not in [0, 1]"),
    (sharegpt({**ASKED, "weight": -0.5}), "unreadable", "weight -0.5"),
    (sharegpt({**ASKED, "weight": float("nan")}), "unreadable", "weight nan"),
    (sharegpt({**ASKED, "weight": True}), "unreadable", "weight True"),
    (sharegpt({**ASKED, "weight": "1"}), "unreadable", "weight '1'"),
]


@pytest.mark.parametrize(("record", "reason", "message"), REFUSED)
def test_a_bad_record_says_what_is_wrong_and_where(record: Any, reason: str, message: str) -> None:
    error = refusal(record)
    assert error.reason.value == reason
    assert message in str(error)


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": None, "output": None, "conversations": [ASKED, ANSWERED]},
        {"conversations": None, "messages": [ASKED, ANSWERED]},
        {"messages": [ASKED, {"from": None, "value": None, "role": "Assistant", "content": "a"}]},
    ],
)
def test_fields_that_are_null_are_as_if_they_were_not_there(record: dict[str, Any]) -> None:
    assert len(conversation_from_record({"id": "x", **record}).turns) == 2
