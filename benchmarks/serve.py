"""Output tokens per second and latency of the endpoint, beside other servers on the same model and machine.

    make bench-serve                                    # all contenders that are installed
    make bench-serve ARGS="--contenders ours,fastchat --clients 8,16 --rounds 1"

Chats of 50 and of 430 tokens, 64 new tokens each: the model's end token is one that it never writes.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.support.bare_engine import read_rates
from benchmarks.support.contenders import CONTENDERS, MAX_MODEL_LEN, MAX_NUM_SEQS, MAX_QUEUED, NEEDS, endless_model
from benchmarks.support.goals import goal_line
from benchmarks.support.load import NUM_TOKENS, Load, ask, drive, percentile, refusals, requests_per_client
from benchmarks.support.prompts import Chat, Prompts
from benchmarks.support.servers import ROOT, Running, Server, running

Point = tuple[int, int]
"""Tokens of a prompt, and clients at a time."""

SLOW: Mapping[str, Sequence[Point]] = {
    "fastchat": [(50, 8), (50, 16)],
    "transformers": [(50, 16)],
}
"""Contenders that would take most of an hour over every point: those at which a goal looks at them."""

GOALS: Sequence[tuple[str, str, Point, float]] = [
    ("FastChat at 8 short", "fastchat", (50, 8), 5.0),
    ("FastChat at 16 short", "fastchat", (50, 16), 8.0),
    ("transformers serve, continuous batching, at 16 short", "transformers-cb", (50, 16), 1.3),
    ("transformers serve, continuous batching, at 16 long", "transformers-cb", (430, 16), 1.5),
    ("transformers serve, continuous batching, at 32 long", "transformers-cb", (430, 32), 2.0),
    *[
        (f"vLLM ({kind}) at {clients} {'short' if prompt == 50 else 'long'}", f"vllm-{kind}", (prompt, clients), 1.0)
        for kind in ("eager", "compiled")
        for prompt in (50, 430)
        for clients in (8, 16, 32)
    ],
]
CPU_POINT: Point = (50, 16)


@dataclass
class Measured:
    """What was seen of one contender: loads by point, seconds from the start of its processes to a first token."""

    loads: dict[Point, list[Load]] = field(default_factory=dict)
    start_s: list[float] = field(default_factory=list)
    cpu_s: Counter[str] = field(default_factory=Counter)
    second_turn: list[float] = field(default_factory=list)
    refusal_s: list[float] = field(default_factory=list)
    scale_up_s: dict[str, list[float]] = field(default_factory=dict)

    def rate(self, point: Point) -> float:
        """Output tokens per second, the median of all rounds."""
        return statistics.median(load.tokens_per_s for load in self.loads[point])


def main() -> None:
    options = read_options()
    with tempfile.TemporaryDirectory() as name:
        model = endless_model(Path(name))
        measured: dict[str, Measured] = {one: Measured() for one in options.contenders}
        bare: dict[Point, list[float]] = {}
        for number in range(options.rounds):
            for one in options.contenders:
                print(f"round {number + 1}: {one}", flush=True)
                points = [point for point in options.points if point in SLOW.get(one, options.points)]
                visit(CONTENDERS[one](model), Prompts(model, seed=number), points, measured[one])
            if "ours" in options.contenders:
                for point, rate in bare_rates(model, number, options.points).items():
                    bare.setdefault(point, []).append(rate)
                for name, seconds in scale_up(model, number).items():
                    measured["ours"].scale_up_s.setdefault(name, []).append(seconds)
    tell(measured, bare)
    print("\n".join(goals(measured, bare)))


def read_options() -> Any:
    """Contenders that are installed, points and rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--clients", default="1,4,8,16,32")
    parser.add_argument("--prompts", default="50,430")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    wanted = options.contenders.split(",")
    if unknown := sorted(set(wanted) - CONTENDERS.keys()):
        parser.error(f"--contenders: {unknown[0]} is none; valid: {', '.join(CONTENDERS)}")
    missing = [one for one in wanted if one in NEEDS and not NEEDS[one].exists()]
    for one in missing:
        print(f"{one} is not installed ({NEEDS[one].relative_to(ROOT)}): make peers, make test-vllm")
    options.contenders = [one for one in wanted if one not in missing]
    clients, prompts = (list(map(int, text.split(","))) for text in (options.clients, options.prompts))
    options.points = [(prompt, count) for prompt in prompts for count in clients]
    return options


def visit(server: Server, prompts: Prompts, points: Sequence[Point], seen: Measured) -> None:
    """Start a server, load it at every point, and end it."""
    first = body(server, prompts, next(prompts.chats(50)))
    with running(server, first) as up:
        seen.start_s.append(up.start_s)
        asyncio.run(drive(server.url, bodies(server, prompts, (50, 2))))
        for point in points:
            before = up.cpu_s()
            try:
                load = asyncio.run(drive(server.url, bodies(server, prompts, point)))
            except (OSError, EOFError, RuntimeError) as error:
                print(f"  {describe(point)}: broke off, so there is no figure: {error!r}"[:300], flush=True)
                continue
            seen.loads.setdefault(point, []).append(load)
            if point == CPU_POINT:
                seen.cpu_s += up.cpu_s() - before
            print(f"  {describe(point)}: {load.tokens_per_s:.0f} tokens/s", flush=True)
        if server.name == "ours":
            seen.second_turn += second_turns(up, prompts)
            seen.refusal_s += refusals_of(server, prompts)


def body(server: Server, prompts: Prompts, chat: Chat) -> dict[str, Any]:
    """The request for an answer to `chat`."""
    messages = [{"role": "user", "content": prompts.render(chat)}] if server.takes_text else chat
    return {**server.fields, "messages": messages, "max_tokens": NUM_TOKENS}


def bodies(server: Server, prompts: Prompts, point: Point) -> list[list[dict[str, Any]]]:
    """What each of the clients asks."""
    prompt_tokens, num_clients = point
    chats: Iterator[Chat] = prompts.chats(prompt_tokens)
    each = requests_per_client(num_clients)
    return [[body(server, prompts, chat) for chat in islice(chats, each)] for _ in range(num_clients)]


def second_turns(up: Running, prompts: Prompts, count: int = 5) -> list[float]:
    """Time to the first token of a chat's second turn, as a share of that of its first."""
    shares = []
    for chat in islice(prompts.chats(430), count):
        first = asyncio.run(ask(up.server.url, body(up.server, prompts, chat)))
        again = [*chat, {"role": "assistant", "content": first.text}, {"role": "user", "content": "Go on."}]
        shares.append(asyncio.run(ask(up.server.url, body(up.server, prompts, again))).ttft / first.ttft)
    return shares


def refusals_of(server: Server, prompts: Prompts) -> list[float]:
    """Seconds to a 429, four clients at a time, while long answers take every place there is, and the processor."""
    chats = prompts.chats(50)
    held = [{**body(server, prompts, next(chats)), "max_tokens": 900} for _ in range(MAX_NUM_SEQS + MAX_QUEUED + 1)]
    return asyncio.run(refusals(server.url, held, body(server, prompts, next(chats)), num_clients=4, each=10))


def bare_rates(model: Path, seed: int, points: Sequence[Point]) -> dict[Point, float]:
    """Output tokens per second of the engine without a server, in a process of its own."""
    loads = [f"{prompt}:{clients}" for prompt, clients in points]
    return read_rates(printed_by("bare_engine", f"{model}", f"{MAX_MODEL_LEN}", f"{seed}", *loads))


def scale_up(model: Path, seed: int) -> dict[str, float]:
    """Seconds until a replica that the load asks for is there, by which one it is."""
    seconds: dict[str, float] = json.loads(printed_by("scale_up", f"{model}", f"{MAX_MODEL_LEN}", f"{seed}"))
    return seconds


def printed_by(program: str, *arguments: str) -> str:
    """The last line of a program of `benchmarks.support`, in a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.support.{program}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    if done.returncode:
        print(f"  {program}: broke off with {done.returncode}, so that figures are missing", flush=True)
    return (done.stdout.splitlines() or ["{}"])[-1]


def describe(point: Point) -> str:
    return f"{point[1]} clients, {point[0]} tokens"


def tell(measured: Mapping[str, Measured], bare: Mapping[Point, Sequence[float]]) -> None:
    """Everything that was seen, as tables of Markdown."""
    for one, seen in measured.items():
        print(f"\n{one}: first token {statistics.median(seen.start_s):.1f} s after the start")
        print("| load | tokens/s | TTFT p50, p95, p99 (s) | between tokens p50, p95, p99 (s) |\n|---|---|---|---|")
        for point, loads in seen.loads.items():
            rates = [load.tokens_per_s for load in loads]
            spread = f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"
            print(
                f"| {describe(point)} | {spread} | {percentiles(loads, Load.ttft)} | {percentiles(loads, Load.gap)} |"
            )
        num_tokens = sum(load.num_tokens for load in seen.loads.get(CPU_POINT, ()))
        if num_tokens:
            spent = ", ".join(f"{name} {1000 * cpu / num_tokens:.2f}" for name, cpu in seen.cpu_s.most_common(6))
            print(f"processor time at {describe(CPU_POINT)}, ms a token: {spent}")
    for point, rates in bare.items():
        print(f"bare engine, {describe(point)}: {statistics.median(rates):.0f} tokens/s")


def percentiles(loads: Sequence[Load], of: Callable[[Load, int], float]) -> str:
    return ", ".join(f"{statistics.median(of(load, percent) for load in loads):.2f}" for percent in (50, 95, 99))


def goals(measured: Mapping[str, Measured], bare: Mapping[Point, Sequence[float]]) -> list[str]:
    """One JSON line for each goal that was looked at."""
    lines: list[str] = []
    mine = measured.get("ours")
    if mine is None:
        return lines
    for goal, peer, point, least in GOALS:
        if peer in measured and point in measured[peer].loads and point in mine.loads:
            rates = (mine.rate(point), measured[peer].rate(point))
            lines.append(goal_line(f"output tokens/s against {goal}", *rates, at_least=least))
    for point in [(50, 16), (430, 16)]:
        if point in bare and point in mine.loads:
            rates = (mine.rate(point), statistics.median(bare[point]))
            lines.append(
                goal_line(f"output tokens/s against the bare engine, {describe(point)}", *rates, at_least=0.75)
            )
    share = statistics.median(mine.second_turn)
    lines.append(goal_line("time to first token of a second turn, as a share of the first's", share, at_most=0.4))
    slowest = percentile(mine.refusal_s, 95)
    lines.append(goal_line("seconds to a 429 while all places are taken, p95", slowest, at_most=0.25))
    lines.append(goal_line("seconds from the start of the command to the first token", statistics.median(mine.start_s)))
    for name, what in {
        "from_none_s": "a model that sleeps to its first token",
        "second_s": "a load to a second replica",
    }.items():
        if seconds := mine.scale_up_s.get(name):
            lines.append(goal_line(f"seconds from {what}", statistics.median(seconds)))
    return lines


if __name__ == "__main__":
    main()
