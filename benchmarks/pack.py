"""How full training rows are: best-fit packing against one padded row per chat, the way FastChat trains.

    python -m benchmarks.pack [DATASET]

With a dataset made with `data.pack=false`, on the lengths of its chats; without one, on ShareGPT-like lengths
(log-normal, median 545 tokens). Real tokens are those that are not padding. Ends with one JSON line per goal.
"""

import random
import statistics
import sys
import time
from pathlib import Path

from benchmarks.support.goals import goal_line
from data_prep.pack import best_fit

CAPACITY, GROUP, SEEDS = 2048, 4096, 5


def sharegpt_like(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [min(CAPACITY, max(20, int(rng.lognormvariate(6.3, 1.1)))) for _ in range(GROUP)]


def dataset_lengths(dataset: Path) -> list[int]:
    import pyarrow.parquet as pq

    tables = [
        pq.read_table(file, columns=["document_lengths"]) for file in sorted((dataset / "train").glob("*.parquet"))
    ]
    return [length for table in tables for row in table["document_lengths"].to_pylist() for length in row]


def main() -> None:
    samples = [dataset_lengths(Path(sys.argv[1]))] if len(sys.argv) > 1 else [sharegpt_like(s) for s in range(SEEDS)]
    ours, peer, rates = [], [], []
    for lengths in samples:
        started = time.perf_counter()
        rows = len(best_fit(lengths, CAPACITY))
        rates.append(len(lengths) / (time.perf_counter() - started))
        ours.append(sum(lengths) / (rows * CAPACITY))
        peer.append(sum(lengths) / (len(lengths) * CAPACITY))
    print(f"fill, packed {min(ours):.4f} to {max(ours):.4f}; padded {min(peer):.4f} to {max(peer):.4f}")
    print(f"chats packed per second: median {statistics.median(rates):.0f}")
    fill, padded = statistics.median(ours), statistics.median(peer)
    print(goal_line("share of real tokens in rows of 2,048", fill, at_least=0.98))
    print(goal_line("share of real tokens in rows of 2,048, against padded rows", fill, padded))


if __name__ == "__main__":
    main()
