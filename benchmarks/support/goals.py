"""What a benchmark ends with: one JSON line per goal."""

import json


def goal_line(
    goal: str,
    ours: float,
    peer: float | None = None,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> str:
    """A goal's result. The bound, if there is one, is for ours / peer, or for ours where there is no peer."""
    ratio = None if peer is None else ours / peer
    value, target = ours if ratio is None else ratio, at_least if at_most is None else at_most
    met = None
    if target is not None:
        met = value <= target if at_most is not None else value >= target
    numbers = {"ours": ours, "peer": peer, "ratio": ratio}
    rounded = {name: None if number is None else round(number, 3) for name, number in numbers.items()}
    return json.dumps({"goal": goal, **rounded, "target": target, "met": met})
