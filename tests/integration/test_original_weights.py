"""From the original files of a Llama and a published delta to an endpoint, as the README has it."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import sentencepiece
import torch

from tests.ray_apps.serve.test_serve_run import is_healthy, serve_run, wait_for
from tests.ray_apps.weights.published import llama, write_hub, write_meta
from tests.ray_apps.weights.test_delta import run

PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: hello world ASSISTANT:"
)


@pytest.mark.ray
@pytest.mark.parametrize("layout", ["meta", "hub"])
def test_llama_and_a_delta_become_vicuna(tmp_path: Path, sentences: Path, layout: str) -> None:
    """Meta's layout or that of the hub, a delta with the buffers and the slow tokenizer of the published ones."""
    base: Any = llama(seed=1)
    target: Any = llama(seed=2)
    if layout == "meta":
        write_meta(tmp_path / "LLaMA" / "7B", base, 2, sentences)
        run("convert-llama", str(tmp_path / "LLaMA" / "7B"), str(tmp_path / "llama-7b"))
    else:
        write_hub(tmp_path / "llama-7b", dict(base.state_dict()), base.config, sentences, "bin-shards")
    theirs, ours = target.state_dict(), base.state_dict()
    delta = {name: theirs[name] - ours[name] for name in theirs}
    delta |= {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(2) for layer in range(2)}
    write_hub(tmp_path / "vicuna-7b-delta-v1.1", delta, target.config, sentences, "bin-shards")
    places = [str(tmp_path / name) for name in ("llama-7b", "vicuna-7b-delta-v1.1", "vicuna-7b")]
    assert "it has no chat template, --template gives it one" in run("apply-delta", *places)
    run("apply-delta", *places, "--template", "vicuna_v1.1")

    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentences))
    ids = [1, *reference.encode(PROMPT)]
    with torch.no_grad():
        whole = target.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0].tolist()
    answer = reference.decode(whole[len(ids) :]).replace("\N{REPLACEMENT CHARACTER}", "")  # no character, not told
    with serve_run(tmp_path, str(tmp_path / "vicuna-7b")) as (url, output):
        wait_for(lambda: is_healthy(url), output)
        request = {
            "model": "vicuna-7b",
            "messages": [{"role": "user", "content": "hello world"}],
            "max_tokens": 8,
            "temperature": 0,
        }
        got = httpx.post(f"{url}/v1/chat/completions", json=request, timeout=60).json()
    assert got["usage"]["prompt_tokens"] == len(ids)
    assert got["choices"][0]["message"]["content"].strip() == answer.strip()
