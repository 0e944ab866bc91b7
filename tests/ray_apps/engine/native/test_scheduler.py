from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from ray_apps.engine.native.scheduler import Scheduler


@dataclass(eq=False)
class Asked:
    ids: list[int]
    left: int = 1
    reuses: bool = True
    kind: object = None
    group: object = None

    def __post_init__(self) -> None:
        self.group = self.group or self


def scheduler(num_slots: int, *owners: Asked, prefill_tokens: int = 10) -> Scheduler[Asked]:
    made: Scheduler[Asked] = Scheduler(num_slots, prefill_tokens)
    for owner in owners:
        made.waiting.append(owner)
    return made


def step(scheduler: Scheduler[Asked]) -> list[tuple[Asked, int]]:
    """A pass, after which everyone who chooses gets a token or ends; who took part, with how many tokens."""
    list(scheduler.place_waiting())
    turns = scheduler.next_turns()
    for turn in turns:
        chooses, owner = turn.chooses, turn.running.owner
        scheduler.advance(turn)
        if chooses:
            owner.ids.append(-len(owner.ids))
            owner.left -= 1
            if not owner.left:
                scheduler.end(owner)
    return [(turn.running.owner, turn.count) for turn in turns]


def test_prompts_are_read_in_chunks_beside_the_tokens_of_answers() -> None:
    first, second = Asked([1, 2, 3], left=9), Asked(list(range(50, 75)), left=9)
    work = scheduler(2, first, second)
    assert step(work) == [(first, 3), (second, 7)]
    assert step(work) == [(first, 1), (second, 10)]
    assert step(work) == [(first, 1), (second, 8)]
    assert step(work) == [(first, 1), (second, 1)]


def test_a_long_prompt_keeps_no_other_from_its_first_token() -> None:
    long, short = Asked(list(range(100)), left=2), Asked([1, 2, 3, 4, 5], left=2)
    work = scheduler(2, long)
    assert step(work) == [(long, 10)]
    work.waiting.append(short)
    assert step(work) == [(long, 5), (short, 5)]
    assert step(work) == [(long, 10), (short, 1)]


def test_short_prompts_do_not_put_a_long_one_off_for_ever() -> None:
    long = Asked(list(range(100)), left=2)
    work = scheduler(2, long)
    num_passes = 0
    while long.left == 2:
        work.waiting.append(Asked([num_passes] * 30))
        step(work)
        num_passes += 1
    assert num_passes <= 50


def test_those_who_wait_get_slots_in_the_order_they_came() -> None:
    asked = [Asked([number, number], left=2) for number in range(4)]
    work = scheduler(2, *asked)
    order = [owner for _ in range(9) for owner, _ in step(work)]
    assert [owner.ids[0] for owner in order] == [0, 1, 0, 1, 2, 3, 2, 3]
    assert not work.has_work


def test_a_request_with_many_answers_takes_turns_with_others() -> None:
    many = [Asked([number, number], group="many") for number in range(5)]
    few = [Asked([number, number], group="few") for number in range(10, 12)]
    work = scheduler(1, *many)
    assert step(work) == [(many[0], 2)]
    for owner in (*few, alone := Asked([20, 20])):
        work.waiting.append(owner)
    work.end(many[2])
    order = [owner for _ in range(6) for owner, _ in step(work)]
    assert order == [many[1], few[0], alone, many[3], few[1], many[4]]
    assert not work.has_work


def test_one_that_is_given_up_leaves_its_slot_or_its_place_in_the_queue() -> None:
    running, waiting, last = (Asked([number, number], left=9) for number in range(3))
    work = scheduler(1, running, waiting, last)
    step(work)
    work.end(waiting)
    work.end(running)
    work.end(running)
    assert step(work) == [(last, 2)]


@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5)), max_size=12),
    num_slots=st.integers(1, 4),
    prefill_tokens=st.integers(2, 20),
)
def test_everyone_ends_with_each_token_read_once(
    lengths: list[tuple[int, int]], num_slots: int, prefill_tokens: int
) -> None:
    asked = [Asked([number] * length, left) for number, (length, left) in enumerate(lengths)]
    work = scheduler(num_slots, *asked, prefill_tokens=prefill_tokens)
    read = dict.fromkeys(range(len(asked)), 0)
    for _ in range(2000):
        if not work.has_work:
            break
        took_part = step(work)
        assert len(took_part) <= num_slots
        assert sum(count for _, count in took_part if count > 1) <= prefill_tokens
        for owner, count in took_part:
            read[asked.index(owner)] += count
    assert not work.has_work
    assert work.slots.num_free == num_slots
    # The last token that is answered is never read. Slots are reused only by prompts that begin alike: none here.
    assert [read[number] for number in read] == [length + left - 1 for length, left in lengths]
