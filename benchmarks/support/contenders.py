"""Ours and the servers it is compared with: how each is started, on the same model and with the same limits."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.support.servers import ROOT, Server, free_port
from ray_apps.demo import BASE_FILE, BASE_PACKAGE, unpack_base

BASE = ROOT / "artifacts" / "demo" / "base"
PEERS = ROOT / ".peers"
FASTCHAT = PEERS / "fastchat" / "bin" / "python"
VLLM = ROOT / ".vllm" / "bin" / "python"
LLAMA_CPP = PEERS / "llamacpp" / "bin" / "python"
MAX_MODEL_LEN, MAX_NUM_SEQS, MAX_QUEUED = 1024, 32, 64
END_TOKEN = "<empty_output>"


def endless_model(folder: Path) -> Path:
    """The demo's base with an end token that it never writes, so that every answer has as many tokens as are asked for.

    The same directory is for all, also for FastChat's older transformers, which needs three fields more.
    """
    if not BASE.exists():
        unpack_base(BASE)
    model = folder / "endless"
    shutil.copytree(BASE, model)
    added = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    end = {"eos_token_id": next(token["id"] for token in added if token["content"] == END_TOKEN)}
    older = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "rope_theta": 100000.0}
    for name, fields in {
        "tokenizer_config.json": {"eos_token": END_TOKEN, "tokenizer_class": "PreTrainedTokenizerFast"},
        "config.json": {**end, **older},
        "generation_config.json": end,
    }.items():
        path = model / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return model


def ours(model: Path) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "ray_apps.cli", "serve", "serve_config.yaml", f"args.model={model}"]
    command += ["args.model_name=model", f"args.max_model_len={MAX_MODEL_LEN}"]
    command += [f"args.max_ongoing_requests={MAX_NUM_SEQS}", f"args.max_queued_requests={MAX_QUEUED}"]
    command += [f"http_options.port={port}"]
    return Server("ours", [(port, command)], {"model": "model", "temperature": 0})


def fastchat(model: Path) -> Server:
    """Its controller, worker and API server. The time in which a worker must answer is raised, or it gives up at 16."""
    controller, worker, port = free_port(), free_port(), free_port()
    address = f"http://127.0.0.1:{controller}"
    module = [f"{FASTCHAT}", "-m"]
    worker_command = [*module, "fastchat.serve.model_worker", "--host", "127.0.0.1", "--port", f"{worker}"]
    worker_command += ["--worker-address", f"http://127.0.0.1:{worker}", "--controller-address", address]
    worker_command += ["--model-path", f"{model}", "--model-names", "model", "--conv-template", "raw"]
    worker_command += ["--device", "cpu", "--dtype", "bfloat16"]
    listen = ["--host", "127.0.0.1", "--port"]
    programs = [
        (controller, [*module, "fastchat.serve.controller", *listen, f"{controller}"]),
        (worker, worker_command),
        (port, [*module, "fastchat.serve.openai_api_server", *listen, f"{port}", "--controller-address", address]),
    ]
    fields = {"model": "model", "temperature": 0}
    return Server("FastChat", programs, fields, {"FASTCHAT_WORKER_API_TIMEOUT": "600"}, takes_text=True)


def transformers_serve(model: Path, *options: str) -> Server:
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", f"{model}", *options]
    command += ["--host", "127.0.0.1", "--port", f"{port}"]
    name = "transformers, continuous" if options else "transformers"
    return Server(name, [(port, command)], {"model": f"{model}", "temperature": 0})


def vllm(model: Path, *options: str) -> Server:
    port = free_port()
    command = [f"{VLLM}", "-m", "vllm.entrypoints.openai.api_server", "--model", f"{model}"]
    command += ["--served-model-name", "model", "--max-model-len", f"{MAX_MODEL_LEN}"]
    command += ["--max-num-seqs", f"{MAX_NUM_SEQS}", *options, "--host", "127.0.0.1", "--port", f"{port}"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "2"}
    name = "vLLM, eager" if options else "vLLM, compiled"
    return Server(name, [(port, command)], {"model": "model", "temperature": 0}, environment)


def llama_cpp(model: Path) -> Server:
    """On the Q4_1 weights that the model was made from. Its end token is switched off by the request."""
    package = importlib.util.find_spec(BASE_PACKAGE)
    assert package is not None
    assert package.origin is not None
    port = free_port()
    script = ROOT / "benchmarks" / "peers" / "llamacpp" / "serve.py"
    weights = Path(package.origin).parent / BASE_FILE
    command = [f"{LLAMA_CPP}", f"{script}", f"{weights}", f"{port}", f"{MAX_NUM_SEQS}", f"{MAX_MODEL_LEN}"]
    return Server("llama.cpp, Q4_1", [(port, command)], {"model": "model", "temperature": 0, "ignore_eos": True})


CONTENDERS: Mapping[str, Callable[[Path], Server]] = {
    "ours": ours,
    "vllm-compiled": vllm,
    "vllm-eager": lambda model: vllm(model, "--enforce-eager"),
    "llamacpp": llama_cpp,
    "transformers-cb": lambda model: transformers_serve(model, "--continuous-batching"),
    "transformers": transformers_serve,
    "fastchat": fastchat,
}

NEEDS = {"fastchat": FASTCHAT, "vllm-compiled": VLLM, "vllm-eager": VLLM, "llamacpp": LLAMA_CPP}
"""What must be installed for a contender; `make peers` does it."""
