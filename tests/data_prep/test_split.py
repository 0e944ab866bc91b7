from hypothesis import given
from hypothesis import strategies as st

from data_prep.conversation import Conversation
from data_prep.split import is_held_out, split_conversation
from tests.data_prep.test_chat_template import chat


def count_characters(conversation: Conversation) -> int:
    return sum(len(message.content) for message in conversation.messages)


@given(st.lists(st.text("x", max_size=9), min_size=1, max_size=12), st.none() | st.just("sys"), st.integers(1, 40))
def test_every_turn_is_in_exactly_one_part(contents: list[str], system: str | None, limit: int) -> None:
    conversation = chat(*contents, system=system)
    parts = list(split_conversation(conversation, count_characters, limit))
    assert tuple(turn for part in parts for turn in part.turns) == conversation.turns
    assert all(part.system == system for part in parts)
    assert all(count_characters(part) <= limit or len(part.turns) <= 2 for part in parts)
    assert len({part.id for part in parts}) == len(parts)


def test_a_short_chat_keeps_its_id() -> None:
    assert [part.id for part in split_conversation(chat("a", "b"), count_characters, 2)] == ["c"]


def test_held_out_chats_stay_held_out_when_the_share_grows() -> None:
    names = [f"c{index}" for index in range(1000)]
    small = {name for name in names if is_held_out(name, 0.1)}
    assert 50 < len(small) < 150
    assert small <= {name for name in names if is_held_out(name, 0.2)}
    assert not any(is_held_out(name, 0.0) for name in names)
