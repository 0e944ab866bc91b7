"""Choosing the next token from logits."""

import torch
from torch import Tensor

from ray_apps.engine.protocol import SamplingParams

MIN_TEMPERATURE = 1e-5
"""Below it the likeliest token is certain to more than float32 can tell, and the division would overflow."""


def make_generator(sampling: SamplingParams, device: torch.device) -> torch.Generator:
    """A request's own random numbers: the same for the same seed, fresh without one."""
    generator = torch.Generator(device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator


def sample_token(logits: Tensor, sampling: SamplingParams, generator: torch.Generator) -> int:
    """Draw one token from `logits` `[vocabulary]`; the likeliest one at temperature 0."""
    if sampling.temperature < MIN_TEMPERATURE:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        probabilities = keep_nucleus(probabilities, sampling.top_p)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def keep_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero all but the likeliest tokens that together reach `top_p`; at least one stays. `[vocabulary]`, unnormalised.

    Nucleus sampling (Holtzman et al. 2020).
    """
    ordered, order = probabilities.sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    ordered[(before >= top_p) & (before > 0)] = 0
    return torch.zeros_like(probabilities).scatter(-1, order, ordered)
