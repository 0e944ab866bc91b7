"""What moderation adds to an answer: seconds until its first text, and until its end.

    python -m benchmarks.moderation [ROUNDS]

An engine that says what it is told, 400 characters a second, answers 1,200 of them; the contenders take turns, one chat
at a time. `window`: the first sentences of 200 characters or more, which the first text waits for where answers are
judged. Ends with one JSON line per goal.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import aclosing

from benchmarks.support.goals import goal_line
from data_prep.moderation import Moderator, PatternModerator, ToxicityModerator
from ray_apps.engine.fake import FakeEngine
from ray_apps.serve import chat
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.jobs import Backend
from ray_apps.serve.moderation import Moderating, ThreadedJudge, moderated
from ray_apps.serve.policy import Moderation
from ray_apps.serve.protocol.chat_request import ChatCompletionRequest

PAUSE_S = 0.0025
"""Before each character, which is a token of the engine's."""
ANSWER = ("The quick brown fox jumps over the lazy dog, and nobody minds. " * 20)[:1200]
WINDOW = 200


async def timed(backend: Backend) -> tuple[float, float]:
    """Seconds until the first text and until the end of one answer."""
    fields = {"model": "m", "messages": [{"role": "user", "content": ANSWER}], "stream": True, "max_tokens": 2000}
    job = chat.make_job(ChatCompletionRequest.model_validate(fields), "id", None)
    started, first, told = time.perf_counter(), 0.0, ""
    async with aclosing(backend.generate(job)) as deltas:
        async for delta in deltas:
            first = first or (time.perf_counter() - started if delta.text else 0.0)
            told += delta.text
    assert told == ANSWER, (len(told), told[:80], told[-80:])
    return first, time.perf_counter() - started


def contenders() -> Mapping[str, Backend]:
    """The same engine behind nothing, and behind each moderator on its input, and on its output too."""
    plain = EngineBackend(FakeEngine(pause_s=PAUSE_S), stream_interval_s=0)
    patterns = PatternModerator({f"list-{number}": [rf"\bword{number}\w*"] for number in range(100)})
    made: dict[str, Backend] = {"off": plain}
    judges: dict[str, Moderator] = {"local": ToxicityModerator(), "100 patterns": patterns}
    for name, judge in judges.items():
        for places in (["input"], ["input", "output"]):
            settings = Moderation.model_validate(
                {"kind": "local", "applies_to": places, "window_characters": WINDOW, "timeout_s": 60}
            )
            made[f"{name}, {' and '.join(places)}"] = moderated(plain, Moderating(ThreadedJudge(judge), settings))
    return made


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    backends = contenders()
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in backends}
    for number in range(rounds + 1):
        for name, backend in backends.items():
            took = asyncio.run(timed(backend))
            if number:
                seen[name].append(took)
    middle = {
        name: tuple(statistics.median(column) for column in zip(*rows, strict=True)) for name, rows in seen.items()
    }
    for name, rows in seen.items():
        spread = [f"{min(column):.3f} to {max(column):.3f}" for column in zip(*rows, strict=True)]
        print(f"{name}: first text {middle[name][0]:.3f} s ({spread[0]}), end {middle[name][1]:.3f} s ({spread[1]})")
    window = middle["off"][1] * (ANSWER.index(".", WINDOW - 1) + 1) / len(ANSWER)
    print(f"window: {window:.3f} s of writing")
    for name in middle:
        if name.endswith("input"):
            goal = f"{name}: seconds added to the first text"
            print(goal_line(goal, middle[name][0] - middle["off"][0], at_most=0.05))
        elif name != "off":
            goal = f"{name}: seconds added to the first text beyond a window's"
            print(goal_line(goal, middle[name][0] - middle["off"][0] - window, at_most=0.05))
            print(goal_line(f"{name}: seconds of a whole answer", middle[name][1], middle["off"][1], at_most=1.05))


if __name__ == "__main__":
    main()
