"""What has been said, taken back, saved and loaded."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import ChatError
from ray_apps.transcript import Transcript

TEXT = st.text(min_size=1)


def talked() -> Transcript:
    transcript = Transcript("be brief")
    for number in range(3):
        transcript.ask(f"q{number}")
        transcript.answer(f"a{number}")
    return transcript


STEPS = st.lists(st.sampled_from(["ask", "answer", "remove", "remove_answer", "forget_oldest", "reset"]), max_size=30)


@given(steps=STEPS)
def test_whatever_is_done_the_model_is_told_questions_and_answers_in_turn(steps: list[str]) -> None:
    transcript = Transcript("system")
    for number, step in enumerate(steps):
        if step == "ask":
            transcript.ask(str(number))
            assert transcript.last_question == str(number)
        elif step != "answer":
            getattr(transcript, step)()
        elif transcript.messages and transcript.messages[-1]["role"] == "user":
            transcript.answer(str(number))
        roles = [message["role"] for message in transcript.sent]
        assert roles == ["system", *(("user", "assistant")[place % 2] for place in range(len(roles) - 1))]
        assert len(roles) > 1 or not transcript.messages


def test_the_oldest_are_no_longer_told_but_still_saved(tmp_path: Path) -> None:
    transcript = talked()
    transcript.ask("q3")
    assert [transcript.forget_oldest() for _ in range(4)] == [True, True, True, False]
    assert [message["content"] for message in transcript.sent] == ["be brief", "q3"]
    transcript.save(tmp_path / "chat.json", "vicuna")
    assert len(json.loads((tmp_path / "chat.json").read_text())["messages"]) == 8


@given(system=st.none() | TEXT, texts=st.lists(TEXT, max_size=5))
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, system: str | None, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("saved") / "chat.json"
    one, other = Transcript(system), talked()
    for number, text in enumerate(texts):
        (one.ask, one.answer)[number % 2](text)
    one.save(path, "vicuna")
    other.load(path)
    assert (other.sent, other.system) == (one.sent, one.system)


def test_a_chat_that_fastchat_saved(tmp_path: Path) -> None:
    content = {
        "template_name": "vicuna_v1.1",
        "system_message": "A chat.",
        "roles": ["USER", "ASSISTANT"],
        "messages": [["USER", "an example"], ["ASSISTANT", "of the template"], ["USER", "你好"], ["ASSISTANT", None]],
        "offset": 2,
    }
    (tmp_path / "chat.json").write_text(json.dumps(content))
    transcript = Transcript()
    transcript.load(tmp_path / "chat.json")
    assert transcript.sent == [{"role": "system", "content": "A chat."}, {"role": "user", "content": "你好"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a saved chat"),
        ("[]", "not a saved chat"),
        ("{}", "it has no 'messages'"),
        ('{"messages": [{"role": "user", "content": 1}]}', r"messages\[0\]: role and content should be text"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', r"messages\[0\]: 'assistant' is out of turn"),
    ],
)
def test_what_is_no_chat_changes_nothing(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "chat.json").write_text(content)
    transcript = talked()
    before = transcript.sent
    with pytest.raises(ChatError, match=message):
        transcript.load(tmp_path / "chat.json")
    assert transcript.sent == before
