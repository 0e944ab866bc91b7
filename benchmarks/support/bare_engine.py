"""The native engine alone, without Serve, HTTP or events: what a replica could do at best. Prints JSON.

python -m benchmarks.support.bare_engine MODEL MAX_MODEL_LEN SEED PROMPT_TOKENS:CLIENTS...
"""

import asyncio
import json
import sys
import time
from itertools import islice
from pathlib import Path

import psutil

from benchmarks.support.load import NUM_TOKENS, requests_per_client
from benchmarks.support.prompts import Chat, Prompts
from ray_apps.engine.build import build_engine
from ray_apps.engine.options import EngineOptions
from ray_apps.engine.protocol import Engine, GenerationRequest, SamplingParams


async def answer(engine: Engine, chats: list[Chat]) -> None:
    sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0)
    for number, chat in enumerate(chats):
        request = GenerationRequest(f"{number}", tuple(engine.encode_chat(chat)), sampling)
        num_tokens = 0
        async for delta in engine.generate(request):
            num_tokens += len(delta.token_ids)
        assert num_tokens == NUM_TOKENS


async def rate(engine: Engine, prompts: Prompts, prompt_tokens: int, num_clients: int) -> float:
    """Output tokens per second of so many clients that ask one thing after another."""
    chats, each = prompts.chats(prompt_tokens), requests_per_client(num_clients)
    clients = [list(islice(chats, each)) for _ in range(num_clients)]
    started = time.perf_counter()
    await asyncio.gather(*(answer(engine, chats) for chats in clients))
    return num_clients * each * NUM_TOKENS / (time.perf_counter() - started)


def read_rates(printed: str) -> dict[tuple[int, int], float]:
    """The rates by prompt tokens and clients, from what this program printed."""
    return {(prompt, clients): rate for prompt, clients, rate in json.loads(printed).get("rates", ())}


async def main() -> None:
    model, max_model_len, seed, *loads = sys.argv[1:]
    imported = time.time()
    engine = build_engine("native", model, EngineOptions(max_model_len=int(max_model_len), max_num_seqs=32))
    loaded = time.time()
    prompts = Prompts(Path(model), int(seed))
    wanted = [tuple(map(int, load.split(":"))) for load in loads]
    await answer(engine, [next(prompts.chats(50))])
    started = psutil.Process().create_time()
    measured = [[*load, await rate(engine, prompts, *load)] for load in wanted]
    engine.shutdown()
    print(json.dumps({"import_s": imported - started, "load_s": loaded - imported, "rates": measured}))


if __name__ == "__main__":
    asyncio.run(main())
