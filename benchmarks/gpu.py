"""Training and the native engine on one CUDA device, without Ray, on a random Llama of 1.1 billion weights.

    python -m benchmarks.gpu [GPU]    # one that `vicuna train plan --gpu` knows, to hold its peak against

The shape is TinyLlama's (22 layers of 2,048). Training: whole rows of 2,048 tokens in bf16, the first two steps not
counted; its peak memory beside what `vicuna train plan` says. Answering: 128 tokens after prompts of 128, in turns with
`generate` of transformers on the same batch. Ends with one JSON line per goal.
"""

import asyncio
import gc
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.support.goals import goal_line
from data_prep.pack import Row, rows_to_table
from ray_apps.engine.native.engine import NativeEngine
from ray_apps.engine.native.loading import load_model
from ray_apps.engine.protocol import GenerationRequest, SamplingParams
from ray_apps.models import load_causal_lm
from ray_apps.run_dir import RunDir
from ray_apps.train.config import TrainConfig
from ray_apps.train.loop import run_training
from ray_apps.train.plan.plan import Rows, make_plan
from ray_apps.train.utilisation import model_flops_per_token, peak_flops

VOCABULARY, CONTEXT, NUM_STEPS, NUM_ROWS = 32_000, 2048, 12, 64
PROMPT, ANSWER, BATCHES = 128, 128, (1, 16, 64)


def write_model(directory: Path) -> Path:
    """Random weights in bf16, and a tokenizer of single bytes."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.device("cuda"):
        LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(directory)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(directory)
    return directory


def write_rows(dataset: Path) -> Path:
    """Full rows of four chats each, of which half is trained on."""
    random = np.random.default_rng(0)
    lengths = (CONTEXT // 4,) * 4
    rows = [
        Row(
            input_ids=random.integers(2, VOCABULARY, CONTEXT, dtype=np.int32),
            weights=np.tile(np.repeat(np.float32([0, 1]), CONTEXT // 8), 4),
            document_lengths=lengths,
            document_ids=("",) * 4,
            document_sources=("",) * 4,
            document_parts=(0,) * 4,
        )
        for _ in range(NUM_ROWS)
    ]
    for part, held in (("train", rows), ("eval", rows[:1])):
        (dataset / part).mkdir(parents=True)
        pq.write_table(rows_to_table(held), dataset / part / "rows.parquet")
    return dataset


def train(folder: Path, gpu: str | None, **fields: Any) -> None:
    """Some steps; prints rate, share of the datasheet's peak and memory."""
    places = {"model": str(folder / "model"), "dataset": str(folder / "rows"), "output": str(folder / "tuned")}
    label = " ".join(f"{name}={value}" for name, value in fields.items())
    settings = {"max_steps": NUM_STEPS, "precision": "bf16", "run_dir": str(folder / label.replace(" ", "-"))}
    saves = {"every_steps": 10_000, "asynchronous": False}
    config = TrainConfig.parse({**places, **settings, "learning_rate": 1e-5, "checkpoint": saves, **fields})
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run_training(config, torch.device("cuda"), after_save=lambda measures: None)
    held = torch.cuda.max_memory_allocated() - before
    records = [*RunDir(config.run_dir).read_metrics()]
    (ended,) = [record for record in records if "peak_bytes" in record]
    seconds = statistics.median([record["seconds"] for record in records if "loss" in record][2:])
    rate = config.global_batch_size * CONTEXT / seconds
    peak, source = peak_flops(ended["device"], ended["matmul_flops"])
    mfu = rate * model_flops_per_token(folder / "model", CONTEXT / 4) / peak
    print(f"train {label}: {rate:,.0f} tokens/s, {mfu:.3f} of {peak / 1e12:.0f} TFLOP/s ({source}), ", end="")
    print(f"a matrix product {ended['matmul_flops'] / 1e12:.0f}, peak {held / 1e9:.2f} GB, ", end="")
    print(f"reserved {ended['peak_bytes'] / 1e9:.2f} GB", flush=True)
    if gpu:
        plan = make_plan(config, gpu, Rows(CONTEXT, NUM_ROWS, CONTEXT, "this benchmark"), mfu=0.4)
        print(goal_line(f"train plan's peak, {label}", plan.memory.peak.total_bytes / 1e9, held / 1e9, at_least=0.95))


async def answer(engine: NativeEngine, prompts: list[list[int]]) -> float:
    """Output tokens per second of so many requests that come at once."""

    async def one(prompt: list[int]) -> int:
        asked = GenerationRequest("", tuple(prompt), SamplingParams(ANSWER, temperature=0, ignore_eos=True))
        return sum([len(delta.token_ids) async for delta in engine.generate(asked)])

    started = time.perf_counter()
    tokens = sum(await asyncio.gather(*map(one, prompts)))
    return tokens / (time.perf_counter() - started)


@torch.inference_mode()
def generate(model: Any, prompts: list[list[int]]) -> float:
    """The same by transformers, prompts of one length in one batch."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    given = torch.tensor(prompts, device="cuda")
    model.generate(given, max_new_tokens=ANSWER, min_new_tokens=ANSWER, do_sample=False, pad_token_id=1)
    torch.cuda.synchronize()
    return len(prompts) * ANSWER / (time.perf_counter() - started)


def serve(model: Path) -> None:
    """Both contenders in turns, two rounds each after one that is not counted."""
    random = np.random.default_rng(1)

    def prompts(count: int) -> list[list[int]]:
        return random.integers(2, 258, (count, PROMPT)).tolist()

    engine = NativeEngine(
        load_model(str(model), device="cuda", dtype="bfloat16", max_model_len=CONTEXT), max_num_seqs=64
    )
    peer = load_causal_lm(model, dtype="bfloat16", device="cuda").eval()
    for size in BATCHES:
        ours, theirs = [], []
        for _ in range(3):
            ours.append(asyncio.run(answer(engine, prompts(size))))
            theirs.append(generate(peer, prompts(size)))
        print(f"{size} at a time: ours {ours[1:]}, transformers {theirs[1:]}")
        goal = f"output tokens per second at {size} against generate of transformers"
        print(goal_line(goal, statistics.mean(ours[1:]), statistics.mean(theirs[1:]), at_least=1.0), flush=True)
    engine.shutdown()


def main() -> None:
    gpu = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_model(folder / "model")
        write_rows(folder / "rows")
        dist.init_process_group("nccl", init_method=f"file://{place}/rendezvous", rank=0, world_size=1)
        for fields in (
            {"micro_batch_size": 4, "global_batch_size": 4},
            {"micro_batch_size": 1, "global_batch_size": 4},
            {"micro_batch_size": 4, "global_batch_size": 4, "activation_checkpointing": False},
        ):
            train(folder, gpu, **fields)
        dist.destroy_process_group()
        serve(folder / "model")


if __name__ == "__main__":
    main()
