import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from ray_apps.engine.native.attention import slot_attention
from ray_apps.engine.native.cache import Pass, Segment, group_segments

CPU = torch.device("cpu")
NUM_SLOTS, LENGTH, HEADS, KEY_HEADS, SIZE = 6, 40, 6, 2, 8


@st.composite
def segment_lists(draw: st.DrawFn) -> list[Segment]:
    """Single tokens of some slots in order, then segments of others."""
    counts = {slot: draw(st.sampled_from([0, 1, 1, 1, 7])) for slot in range(NUM_SLOTS)}
    made = [Segment(slot, draw(st.integers(0, LENGTH - count)), count) for slot, count in counts.items() if count]
    return sorted(made, key=lambda segment: (segment.count > 1, segment.slot))


@given(segments=segment_lists().filter(bool), window=st.none() | st.integers(1, 9))
def test_each_token_attends_to_its_own_past_alone(segments: list[Segment], window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(NUM_SLOTS, KEY_HEADS, LENGTH, SIZE, generator=generator) for _ in range(2))
    query = torch.randn(1, HEADS, sum(segment.count for segment in segments), SIZE, generator=generator)
    current = Pass(segments, CPU, torch.float32)
    found, _ = slot_attention(
        torch.nn.Module(), query, keys, values, None, current=current, scaling=0.3, sliding_window=window
    )
    at = 0
    for segment in segments:
        for position in range(segment.start, segment.end):
            first = 0 if window is None else max(0, position + 1 - window)
            past = [
                states[segment.slot, :, first : position + 1].repeat_interleave(HEADS // KEY_HEADS, dim=0)
                for states in (keys, values)
            ]
            expected = scaled_dot_product_attention(query[0, :, at : at + 1], *past, scale=0.3)
            torch.testing.assert_close(found[0, at], expected[:, 0])
            at += 1


def test_tokens_of_slots_side_by_side_are_attended_to_together() -> None:
    alike = [Segment(slot, 400 + slot, 1) for slot in range(4)]
    assert group_segments(alike) == [alike]
    apart = [Segment(0, 400, 1), Segment(2, 400, 1)]
    assert group_segments(apart) == [[apart[0]], [apart[1]]]
    prompt = Segment(1, 0, 5)
    assert group_segments([*alike[:2], prompt]) == [alike[:2], [prompt]]


@pytest.mark.parametrize(("short", "num_groups"), [(10, 2), (800, 2), (900, 1)])
def test_tokens_of_very_different_lengths_are_not(short: int, num_groups: int) -> None:
    assert len(group_segments([Segment(0, 1000, 1), Segment(1, short, 1)])) == num_groups
