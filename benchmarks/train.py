"""Training SmolLM2-135M on real ShareGPT at context 2,048, against FastChat's trainer and a plain transformers step.

    python -m benchmarks.train [ROUNDS]

The contenders take turns, each in a process of its own with all cores; FastChat's needs `make peers`. Counted are real
tokens: padding is none. FastChat pads each chat to a row, so its rate is rows per second × the mean real tokens of its
rows. Steps are two rows each, the first is not counted. Then, ours alone: checkpoints after every step, asynchronous
and not, and a whole `vicuna train`. Ends with one JSON line per goal.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.prep import BASE, PEER, ROOT, fastchat, ours, peer_base, sharegpt
from benchmarks.support.goals import goal_line
from data_prep.sources import read_records
from ray_apps.demo import unpack_base
from ray_apps.machine import matmul_gflops
from ray_apps.run_dir import RunDir
from ray_apps.train.utilisation import model_flops_per_token

CHATS, ROWS, STEPS, SAVES = 500, 2, 5, 5


@dataclass(frozen=True)
class Rate:
    """What a contender did in one round."""

    tokens_per_s: float
    peak_bytes: int


def contender(command: list[str], folder: Path) -> Rate:
    """Run a script that prints what it measured as the last line."""
    done = subprocess.run([*command, f"{ROWS}", f"{STEPS}"], text=True, capture_output=True, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    measured = json.loads(done.stdout.splitlines()[-1])
    seconds = statistics.mean(measured["seconds"][1:])
    return Rate(ROWS * measured["tokens_per_row"] / seconds, measured["peak_bytes"])


def train(folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """A whole `vicuna train` on one worker with all cores; its metrics."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "ray_apps.cli", "train", "smollm2_cpu", f"train.model={BASE}"]
    command += [f"train.dataset={folder / 'ours'}", f"train.run_dir={run}", f"train.output={folder / 'model'}"]
    command += ["train.num_workers=1", "train.cpus_per_worker=2", *overrides, "--fresh"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return RunDir(run).read_metrics()


def blocked(folder: Path, *, asynchronous: bool) -> list[float]:
    """Seconds that training stands still for each save; the first, which also allocates, and the last are left out."""
    settings = [f"train.max_steps={SAVES}", "train.global_batch_size=1", "train.checkpoint.every_steps=1"]
    records = train(folder, *settings, f"train.checkpoint.asynchronous={str(asynchronous).lower()}")
    return [record["blocked_s"] for record in records if record.get("event") == "checkpoint"][1:-1]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    if not BASE.exists():
        unpack_base(BASE)
    whole = (record.value for record in read_records(str(sharegpt())) if record.error is None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chats = folder / "chats.json"
        chats.write_text(json.dumps(list(islice(whole, CHATS))))
        print(ours(chats, folder).output.strip().splitlines()[-1])
        steps = [sys.executable, "-m", "benchmarks.support.train_steps"]
        contenders = {
            name: [*steps, name, f"{BASE}", f"{folder / 'ours'}"] for name in ("ours", "full", "autocast", "bf16")
        }
        if PEER.exists():
            base = peer_base(folder)
            fastchat(chats, folder, base)
            script = ROOT / "benchmarks" / "peers" / "fastchat" / "train.py"
            contenders["FastChat"] = [f"{PEER}", f"{script}", f"{base}", f"{folder / 'format.json'}"]
        rates: dict[str, list[Rate]] = {name: [] for name in contenders}
        products = []
        for number in range(rounds):
            products.append(matmul_gflops(torch.device("cpu"), "bf16", 3.0))
            for name, command in contenders.items():
                rates[name].append(contender(command, ROOT if name != "FastChat" else folder))
                rate = rates[name][-1]
                print(f"round {number + 1}: {name} {rate.tokens_per_s:.1f} tokens/s, {rate.peak_bytes / 1e9:.2f} GB")
        tell_shares(rates, statistics.median(products), folder / "ours")
        copied, written = blocked(folder, asynchronous=True), blocked(folder, asynchronous=False)
        run = train(folder, "train.max_steps=8", "train.checkpoint.every_steps=4")
    report(rates, copied, written, run)


def tell_shares(rates: dict[str, list[Rate]], product_gflops: float, dataset: Path) -> None:
    """Print each contender's operations per second, recomputation not counted, as a share of a matrix product's."""
    import pyarrow.parquet as pq

    lengths = pq.read_table(dataset / "train", columns=["document_lengths"])["document_lengths"].combine_chunks()
    context = statistics.mean(lengths.flatten().to_pylist())
    operations = model_flops_per_token(BASE, context)
    print(f"a bf16 matrix product: {product_gflops:.0f} GFLOP/s")
    for name, measured in rates.items():
        share = median(measured) * operations / (product_gflops * 1e9)
        print(f"{name}: {share:.1%} of it")


def median(measured: list[Rate]) -> float:
    return statistics.median(rate.tokens_per_s for rate in measured)


def report(rates: dict[str, list[Rate]], copied: list[float], written: list[float], run: list[dict[str, Any]]) -> None:
    """One JSON line per goal; against FastChat only where it is installed."""
    mine, lines = median(rates["ours"]), []
    targets = {"FastChat": 2.5, "autocast": 1.1, "bf16": 1.1, "full": None}
    peers = [name for name in targets if name in rates]
    for name in peers:
        pairs = zip(rates["ours"], rates[name], strict=True)
        spread = [one.tokens_per_s / other.tokens_per_s for one, other in pairs]
        print(f"ours / {name}: {min(spread):.2f} to {max(spread):.2f}")
        lines.append(goal_line(f"real tokens/s against {name}", mine, median(rates[name]), at_least=targets[name]))
    peaks = {name: max(rate.peak_bytes for rate in measured) / 1e9 for name, measured in rates.items()}
    for name in peers:
        most = 1.0 if name in ("autocast", "bf16") else None
        lines.append(goal_line(f"peak memory of a step against {name}, GB", peaks["ours"], peaks[name], at_most=most))
    for kind, seconds in {"asynchronous": copied, "synchronous": written}.items():
        print(f"blocked {kind}: {min(seconds):.2f} to {max(seconds):.2f} s a save")
    blocked_s = (statistics.median(copied), statistics.median(written))
    lines.append(goal_line("seconds blocked per asynchronous save, against synchronous", *blocked_s, at_most=0.3))
    end = next(record for record in run if record.get("event") == "finish")
    outside = (end["outside_s"], end["elapsed_s"])
    lines.append(goal_line("seconds in calls of ray.train, of the run's", *outside, at_most=0.02))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
