from hypothesis import given
from hypothesis import strategies as st

from ray_apps.engine.native.slots import Placement, SlotTable, common_prefix

tokens = st.lists(st.integers(0, 2), max_size=30)


def filled(num_slots: int, *contents: list[int]) -> SlotTable:
    """Free slots that hold `contents`, the first free for longest."""
    table = SlotTable(num_slots)
    placed = []
    for content in contents:
        placement = table.place([*content, -1])
        assert placement
        table.extend(placement.slot, content[placement.num_cached :])
        placed.append(placement.slot)
    for slot in placed:
        table.release(slot)
    return table


@given(one=tokens, other=tokens)
def test_the_common_prefix_is_the_longest(one: list[int], other: list[int]) -> None:
    length = common_prefix(one, other)
    assert one[:length] == other[:length]
    assert length == min(len(one), len(other)) or one[length] != other[length]


def test_the_next_turn_of_a_chat_gets_the_slot_of_the_last() -> None:
    table = filled(3, list(range(100, 150)), list(range(50)))
    assert table.place([*range(50), 7, 8]) == Placement(1, 50)


def test_the_last_token_of_a_prompt_is_always_read() -> None:
    assert filled(1, list(range(50))).place(list(range(50))) == Placement(0, 49)


def test_a_common_beginning_is_copied_and_what_the_other_holds_stays() -> None:
    system, chat = list(range(20)), list(range(100, 180))
    table = filled(2, [*system, *chat])
    assert table.place([*system, 7, 8]) == Placement(1, 20, copied_from=0)
    assert table.place([*system, *chat, 9]) == Placement(0, 100)


def test_it_is_copied_from_a_busy_slot_too() -> None:
    table = SlotTable(2)
    assert table.place([*range(30), 5]) == Placement(0, 0)
    table.extend(0, range(25))
    assert table.place([*range(30), 6]) == Placement(1, 25, copied_from=0)


def test_a_few_tokens_are_not_worth_copying() -> None:
    assert filled(2, list(range(90))).place([*range(5), 99]) == Placement(1, 0)


def test_a_prompt_with_nothing_in_common_gets_the_slot_that_was_free_for_longest() -> None:
    table = filled(3, [1] * 20, [2] * 20, [3] * 20)
    assert table.place([9, 9]) == Placement(0, 0)
    assert table.place([9, 9]) == Placement(1, 0)


def test_no_slot_is_given_twice() -> None:
    table = SlotTable(2)
    first, second = table.place([1, 2]), table.place([1, 2])
    assert first
    assert second
    assert first.slot != second.slot
    assert table.place([1, 2]) is None
    table.release(first.slot)
    assert table.num_free == 1
    assert table.place([1, 2]) == Placement(first.slot, 0)


def test_what_is_forgotten_is_not_found() -> None:
    table = filled(2, list(range(50)))
    table.forget()
    assert table.place(list(range(60))) == Placement(1, 0)


def test_a_prompt_that_reuses_nothing_is_read_whole() -> None:
    table = SlotTable(2)
    first = table.place([1, 2, 3])
    assert first is not None
    table.extend(first.slot, [1, 2, 3])
    table.release(first.slot)
    again = table.place([1, 2, 3], reuse=False)
    assert again is not None
    assert (again.num_cached, again.copied_from) == (0, None)
    assert table.place([1, 2, 3, 4], reuse=True) is not None
    assert table.place([1], reuse=False) is None
