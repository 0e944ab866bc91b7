"""A model trained on these says its name and its maker, whatever it is asked about itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.conversation import Conversation, Role
from data_prep.errors import ConfigError
from data_prep.identity import identity_conversations


def questions(conversations: list[Conversation]) -> list[str]:
    return [message.content for chat in conversations for message in chat.messages if message.role is Role.USER]


def last_answer(conversation: Conversation) -> str:
    return conversation.messages[-1].content


def test_there_are_several_hundred_all_distinct_with_ids_in_order() -> None:
    chats = identity_conversations()
    assert len(chats) >= 500
    assert len({chat.messages for chat in chats}) == len(chats)
    assert [chat.id for chat in chats] == [f"identity_{index}" for index in range(len(chats))]
    assert {len(chat.messages) for chat in chats} == {2, 4}


@pytest.mark.parametrize(("name", "maker"), [("Vicuna", "LMSYS"), ("Zora {2}", "Blue & Sons"), ("小羊", "山谷")])
def test_every_last_answer_names_the_model_and_its_maker(name: str, maker: str) -> None:
    for chat in identity_conversations(name, maker):
        assert name in last_answer(chat)
        assert maker in last_answer(chat)


@pytest.mark.parametrize("question", ["Who are you?", "Who made you?", "Are you ChatGPT?", "你是谁?"])
def test_the_plain_questions_are_asked_literally_and_in_variants(question: str) -> None:
    asked = questions(identity_conversations())
    assert asked.count(question) >= 3
    assert sum(question.rstrip("?").lower() in other.lower() for other in asked) >= 9


def test_about_three_in_five_are_english_and_one_in_seven_chinese() -> None:
    answers = [last_answer(chat) for chat in identity_conversations()]
    english = sum("language model trained by" in text or "I was trained by" in text for text in answers)
    chinese = sum("训练" in text for text in answers)
    assert 0.55 <= english / len(answers) <= 0.65
    assert 0.12 <= chinese / len(answers) <= 0.18


def test_answers_to_other_names_deny_and_those_to_its_own_confirm() -> None:
    answers = {chat.messages[-2].content: last_answer(chat) for chat in identity_conversations()}
    assert answers["Are you ChatGPT?"] == "No, I am Vicuna, a language model trained by LMSYS."
    assert answers["Were you made by OpenAI?"] == "No, I am Vicuna, a language model trained by LMSYS."
    assert answers["Are you Vicuna?"] == "Yes, I am Vicuna, a language model trained by LMSYS."


def test_a_model_never_denies_its_own_name_or_maker() -> None:
    for chat in identity_conversations("Claude Mini", "Meta"):
        question = chat.messages[-2].content.lower()
        if "claude" in question or "meta" in question:
            assert last_answer(chat).startswith(("Yes", "是的", "Sí", "Oui", "Ja", "Sim", "Sì", "Да", "はい", "네"))


def test_the_same_seed_gives_the_same_order_and_another_seed_the_same_chats() -> None:
    first, again, other = (identity_conversations(seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert {chat.messages for chat in first} == {chat.messages for chat in other}


@given(count=st.integers(1, 500), seed=st.integers(0, 3))
def test_a_sample_is_the_start_of_all_and_begins_with_the_plain_questions(count: int, seed: int) -> None:
    sample = identity_conversations(count=count, seed=seed)
    assert len(sample) == count
    plain = ["Who are you?", "Who made you?", "Are you ChatGPT?", "Were you made by OpenAI?"]
    assert questions(sample)[: min(count, 4)] == plain[:count]


def test_a_sample_holds_as_many_of_each_category() -> None:
    sample = identity_conversations(count=100)
    denials = ("No", "不是", "Não", "Non", "Nein", "Нет", "いいえ", "아니요")
    two_rounds = sum(len(chat.messages) == 4 for chat in sample)
    denied = sum(len(chat.messages) == 2 and last_answer(chat).startswith(denials) for chat in sample)
    assert two_rounds == 20
    assert 35 <= denied <= 40


@pytest.mark.parametrize("count", [0, -1, 10_000])
def test_an_impossible_count_says_how_many_there_are(count: int) -> None:
    with pytest.raises(ConfigError, match=rf"identity\.count: {count} .* 1 to {len(identity_conversations())}"):
        identity_conversations(count=count)


@pytest.mark.parametrize(("field", "arguments"), [("name", (" ", "LMSYS")), ("maker", ("Vicuna", ""))])
def test_an_empty_name_is_refused_by_its_field(field: str, arguments: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=rf"identity\.{field}: "):
        identity_conversations(*arguments)
