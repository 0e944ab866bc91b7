"""Applying a delta to a Llama of 2 GB, against FastChat's apply_delta with and without its low-memory mode.

    python -m benchmarks.weights [ROUNDS]

The contenders take turns, each a process of its own, on the same `.bin` shards; FastChat's need `make peers`. Beside
them `cp` of the bytes that come out, with and without a flush to the disk, which ours does and FastChat does not. All
have to give the same tensors. Then, if `make demo` has been run, the sizes of a plain and an exact delta of its
fine-tuned model. Ends with one JSON line per goal.
"""

import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.prep import BASE, PEER, ROOT
from benchmarks.support.goals import goal_line
from benchmarks.support.measure import Measured, measure
from ray_apps.weights.convert import make_delta
from ray_apps.weights.tensor_files import TensorFiles

CONFIG = LlamaConfig(
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=17,
    num_attention_heads=32,
    num_key_value_heads=32,
    vocab_size=32000,
    torch_dtype="float16",
)
NUM_SHARDS = 3
TUNED = ROOT / "artifacts" / "demo" / "model"
VICUNA = [sys.executable, "-m", "ray_apps.cli", "weights"]
OURS, DEFAULT, LOW, COPY, FLUSHED = "ours", "FastChat", "FastChat, --low-cpu-mem", "cp", "cp, then sync"


def write_llama(directory: Path, scale: float, seed: int, tokenizer: Path) -> None:
    """Random weights in shards of `.bin`, as the published deltas are."""
    directory.mkdir()
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AutoModelForCausalLM.from_config(CONFIG).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    names = list(shapes)
    weight_map = {}
    for number in range(NUM_SHARDS):
        part = names[number * len(names) // NUM_SHARDS : (number + 1) * len(names) // NUM_SHARDS]
        file = f"pytorch_model-{number + 1:05d}-of-{NUM_SHARDS:05d}.bin"
        weights = {name: (torch.randn(shapes[name], generator=generator) * scale).half() for name in part}
        torch.save(weights, directory / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    config = {**CONFIG.to_dict(), "architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}
    (directory / "config.json").write_text(json.dumps(config, default=str))
    shutil.copy(tokenizer, directory / "tokenizer.model")
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))


def sentencepiece_model(folder: Path) -> Path:
    """A tokenizer such as FastChat's mode needs."""
    import sentencepiece

    text = folder / "text"
    text.write_text("".join(f"chat number {i} of {i * 7} asks and answers\n" for i in range(500)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def contenders(folder: Path) -> dict[str, list[str]]:
    """Their commands; all but cp write `folder`/NAME."""
    base, delta = str(folder / "base"), str(folder / "delta")
    fastchat = [str(PEER), "-m", "fastchat.model.apply_delta", "--base-model-path", base, "--delta-path", delta]
    made = {OURS: [*VICUNA, "apply-delta", base, delta, str(folder / OURS)]}
    if PEER.exists():
        made[DEFAULT] = [*fastchat, "--target-model-path", str(folder / DEFAULT)]
        made[LOW] = [*fastchat, "--low-cpu-mem", "--target-model-path", str(folder / LOW)]
    made[COPY] = ["cp", "-r", str(folder / OURS), str(folder / COPY)]
    made[FLUSHED] = ["sh", "-c", 'cp -r "$0" "$1" && sync "$1"/*', str(folder / OURS), str(folder / FLUSHED)]
    return made


def same(one: Path, other: Path) -> bool:
    ours, theirs = TensorFiles(str(one)), TensorFiles(str(other))
    return ours.specs == {name: theirs.specs[name] for name in ours.specs} and all(
        torch.equal(tensor, theirs.read(name)) for name, tensor in ours.stream()
    )


def run_all(folder: Path, rounds: int) -> Iterator[tuple[str, Measured]]:
    for number in range(rounds):
        for name, command in contenders(folder).items():
            shutil.rmtree(folder / name, ignore_errors=True)
            measured = measure(command, cwd=ROOT, interval_s=0.02)
            print(f"round {number + 1}: {name} {measured.seconds:.1f} s, {measured.peak_bytes / 1e9:.2f} GB")
            yield name, measured
    for name in (DEFAULT, LOW):
        if (folder / name).exists() and not same(folder / OURS, folder / name):
            raise RuntimeError(f"{name} gives other tensors")


def delta_sizes(folder: Path) -> tuple[int, int]:
    """Bytes of the weights of an exact and of a plain delta of the demo's model."""
    sizes = []
    for exact in (True, False):
        output = folder / f"delta-{exact}"
        make_delta(str(BASE), str(TUNED), str(output), exact=exact)
        sizes.append(
            sum(path.stat().st_size for pattern in ("*.safetensors", "exact*") for path in output.glob(pattern))
        )
    return sizes[0], sizes[1]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    results: dict[str, list[Measured]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = sentencepiece_model(folder)
        write_llama(folder / "base", 0.02, 1, tokenizer)
        write_llama(folder / "delta", 0.001, 2, tokenizer)
        print(f"{TensorFiles(str(folder / 'base')).num_bytes / 1e9:.2f} GB of weights")
        for contender, measured in run_all(folder, rounds):
            results.setdefault(contender, []).append(measured)
        sizes = delta_sizes(folder) if TUNED.exists() else None
    report(results, sizes)


def report(results: dict[str, list[Measured]], sizes: tuple[int, int] | None) -> None:
    """One JSON line per goal; against FastChat only where it is installed."""
    seconds = {name: statistics.median(one.seconds for one in measured) for name, measured in results.items()}
    peaks = {name: max(one.peak_bytes for one in measured) / 1e9 for name, measured in results.items()}
    lines = []
    for name in [name for name in results if name != OURS]:
        pairs = zip(results[OURS], results[name], strict=True)
        spread = [ours.seconds / other.seconds for ours, other in pairs]
        print(f"seconds, ours / {name}: {min(spread):.2f} to {max(spread):.2f}")
    for name, most in {DEFAULT: 0.25, LOW: 1.0}.items():
        if name in results:
            lines.append(goal_line(f"peak memory against {name}, GB", peaks[OURS], peaks[name], at_most=most))
            lines.append(goal_line(f"seconds against {name}", seconds[OURS], seconds[name], at_most=1.0))
    for name in (COPY, FLUSHED):
        lines.append(goal_line(f"seconds against {name} of the bytes that come out", seconds[OURS], seconds[name]))
    if sizes:
        exact, plain = (size / 1e6 for size in sizes)
        lines.append(goal_line("exact delta of the demo's fine-tuned model against the plain one, MB", exact, plain))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
