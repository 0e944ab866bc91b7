from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ray_apps.serve.affinity import SLACK, Affinity, chat_beginning, session_key, session_of
from ray_apps.serve.jobs import ChatPrompt, Job, TextPrompt

REPLICAS = st.lists(st.text(min_size=1), min_size=1, max_size=6, unique=True)


def test_turns_of_one_chat_have_one_key_and_other_chats_others() -> None:
    key = session_key("m", None, ["be brief", "hello"])
    assert key == session_key("m", None, ["be brief", "hello"])
    others = [
        session_key("n", None, ["be brief", "hello"]),
        session_key("m", None, ["be brief", "hullo"]),
        session_key("m", None, ["be brie", "fhello"]),
        session_key("m", "be brief", ["hello"]),
        session_key("m", "hello", []),
    ]
    assert len({key, *others}) == 6


def test_a_chat_begins_with_its_first_question() -> None:
    system, user, answer = ({"role": role, "content": role} for role in ("system", "user", "assistant"))
    assert (
        chat_beginning([system, user])
        == chat_beginning([system, user, answer, user])
        == ["system: system", "user: user"]
    )
    assert chat_beginning([user]) != chat_beginning([system, user])
    assert chat_beginning([answer]) == ["assistant: assistant"]


def test_a_session_with_a_name_is_known_by_it_alone() -> None:
    assert session_key("m", "chat 7", ["one"]) == session_key("m", "chat 7", ["another"])


@given(replicas=REPLICAS, data=st.data())
def test_every_replica_is_ranked_and_a_chat_returns_unless_its_replica_is_much_busier(
    replicas: list[str], data: st.DataObject
) -> None:
    loads = {replica: data.draw(st.integers(0, 12)) for replica in replicas}
    home = data.draw(st.sampled_from(replicas))
    affinity: Affinity[str] = Affinity()
    affinity.remember("chat", home)
    ranked = affinity.rank("chat", loads)
    assert sorted(ranked) == sorted(replicas)
    least = min(loads.values())
    assert (ranked[0] == home) == (loads[home] <= least + SLACK)
    others = [loads[replica] for replica in ranked if replica != home]
    assert others == sorted(others)


def test_what_needs_more_than_all_have_goes_to_those_who_hold_it_unless_they_are_much_busier() -> None:
    affinity: Affinity[str] = Affinity()
    assert affinity.rank("chat", {"idle": 0, "holder": SLACK}, ["holder"]) == ["holder", "idle"]
    assert affinity.rank("chat", {"idle": 0, "holder": SLACK + 1}, ["holder"]) == ["idle", "holder"]
    affinity.remember("chat", "idle")
    assert affinity.rank("chat", {"idle": 0, "holder": 0}, ["holder"]) == ["idle", "holder"]


def test_a_chat_whose_replica_is_gone_goes_elsewhere() -> None:
    affinity: Affinity[str] = Affinity()
    affinity.remember("chat", "gone")
    assert affinity.rank("chat", {"a": 0}) == ["a"]


def test_new_chats_spread_over_idle_replicas_alike_for_every_router() -> None:
    loads = dict.fromkeys("abcd", 0)
    homes = {f"chat {number}": Affinity[str]().rank(f"chat {number}", loads)[0] for number in range(400)}
    assert all(Affinity[str]().rank(chat, loads)[0] == home for chat, home in homes.items())
    assert set(Counter(homes.values())) == set(loads)
    assert min(Counter(homes.values()).values()) > 60


def test_many_requests_that_begin_alike_fill_all_replicas() -> None:
    affinity: Affinity[str] = Affinity()
    loads = dict.fromkeys("abc", 0)
    for _ in range(90):
        chosen = affinity.rank("the same beginning", loads)[0]
        affinity.remember("the same beginning", chosen)
        loads[chosen] += 1
    assert max(loads.values()) - min(loads.values()) <= SLACK + 1


def test_what_is_quiet_for_longest_is_forgotten() -> None:
    affinity: Affinity[str] = Affinity(max_sessions=2)
    loads = {"busier": 1, "idle": 0}
    for session in ("one", "two", "one", "three"):
        affinity.remember(session, "busier")
    assert [affinity.rank(session, loads)[0] for session in ("one", "two", "three")] == ["busier", "idle", "busier"]


def test_a_chat_is_a_session_by_itself_and_a_text_only_with_a_name() -> None:
    chat = Job("id", (ChatPrompt(({"role": "user", "content": "hello"},)),))
    text = Job("id", (TextPrompt("hello"),))
    assert session_of(chat, "m", None) == session_key("m", None, ["user: hello"])
    assert session_of(chat, "m", "name") == session_of(text, "m", "name") == session_key("m", "name", [])
    assert session_of(text, "m", None) == ""
