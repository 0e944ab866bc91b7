"""The model loop for one prompt: prefill in chunks, then one token per step over a growing cache."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ray_apps.engine.native.sampling import make_generator, sample_token
from ray_apps.engine.protocol import SamplingParams

PREFILL_TOKENS = 512


@torch.inference_mode()
def generate_tokens(
    model: PreTrainedModel, prompt_ids: Sequence[int], sampling: SamplingParams, is_cancelled: Callable[[], bool]
) -> Iterator[int]:
    """Yield the tokens that follow `prompt_ids`, without end: the consumer decides when to stop.

    `is_cancelled` is asked before each forward pass; once it is true, the iterator ends.
    """
    cache = DynamicCache(config=model.config)
    generator = make_generator(sampling, model.device)
    passes = list(torch.split(torch.tensor([prompt_ids], device=model.device), PREFILL_TOKENS, dim=1))
    while True:
        for input_ids in passes:
            if is_cancelled():
                return
            logits = next_logits(model, input_ids, cache)
        token = sample_token(logits, sampling, generator)
        yield token
        passes = [torch.tensor([[token]], device=model.device)]


def next_logits(model: PreTrainedModel, input_ids: Tensor, cache: DynamicCache) -> Tensor:
    """Run `input_ids` `[1, tokens]` after what is in `cache`; return the logits of the next token, `[vocabulary]`."""
    output = model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits: Tensor = output.logits[0, -1]
    return logits
