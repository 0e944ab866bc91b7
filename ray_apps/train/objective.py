"""The loss: cross-entropy on the assistant's tokens, normalised by their weight in the whole global batch.

The logits of `[tokens, vocabulary]` are made for trained tokens only, a chunk at a time, and again in the backward
pass, so that memory does not grow with the vocabulary. On a GPU the chunks are Liger's, if it is installed (Hsu et al.
2024).
"""

from functools import cache
from importlib import metadata
from typing import Any

import torch
from packaging.version import Version
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from data_prep.encode import IGNORE_INDEX
from ray_apps.train.data import Batch

CHUNK_TOKENS = 512
LEAST_LIGER = Version("0.8.5")


class WeightedLoss(nn.Module):
    """A causal language model that answers with its loss.

    The loss is computed inside `forward`, where a sharded output layer is gathered; outside it would still be sharded.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> torch.Tensor:
        """Sum over targets of weight × cross-entropy. float32 scalar; divide by the global weight to get the mean."""
        causal_lm: Any = self.model
        if hasattr(causal_lm, "peft_config"):
            causal_lm = causal_lm.get_base_model()
        hidden = causal_lm.base_model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            cu_seq_lens_q=batch.cu_seq_lens,
            cu_seq_lens_k=batch.cu_seq_lens,
            max_length_q=batch.max_length,
            max_length_k=batch.max_length,
        ).last_hidden_state
        trained = (batch.targets[0] != IGNORE_INDEX).nonzero()[:, 0]
        compute = fused_loss if _is_for_liger(hidden, causal_lm.lm_head) else chunked_loss
        return compute(hidden[0], causal_lm.lm_head, batch.targets[0], batch.weights[0], trained)


def _is_for_liger(hidden: torch.Tensor, lm_head: Any) -> bool:
    """Liger takes the weights of a plain output layer on a GPU; what ZeRO-3 spreads is gathered by a call only."""
    weight: torch.Tensor = lm_head.weight
    plain = type(lm_head) is nn.Linear and getattr(lm_head, "bias", None) is None
    whole = weight.ndim == 2 and weight.dtype == hidden.dtype
    return hidden.is_cuda and plain and whole and _has_liger()


@cache
def _has_liger() -> bool:
    """Earlier versions give every token the gradient of the first."""
    try:
        return Version(metadata.version("liger-kernel")) >= LEAST_LIGER
    except metadata.PackageNotFoundError:
        return False


def fused_loss(
    hidden: torch.Tensor, lm_head: nn.Linear, targets: torch.Tensor, weights: torch.Tensor, trained: torch.Tensor
) -> torch.Tensor:
    """`chunked_loss` by Liger's kernel: a softmax reads each logit once, and its gradient takes the logits' place."""
    if len(trained) == 0:
        return chunked_loss(hidden, lm_head, targets, weights, trained)
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    losses: torch.Tensor = liger_fused_linear_cross_entropy(
        hidden[trained], lm_head.weight, targets[trained], reduction="none", accum_dtype=torch.float32
    )
    return (losses * weights[trained]).sum()


def chunked_loss(
    hidden: torch.Tensor, lm_head: nn.Module, targets: torch.Tensor, weights: torch.Tensor, trained: torch.Tensor
) -> torch.Tensor:
    """Sum over `trained` positions of weight × cross-entropy.

    `hidden`: `[tokens, hidden]`; `targets`, `weights`: `[tokens]`; `trained`: positions, `[n]`. A batch without a
    trained token gives 0 with gradients of 0, so that every worker still takes part in each collective.
    """
    if len(trained) == 0:
        nothing: torch.Tensor = hidden.sum(dtype=torch.float32) + lm_head(hidden[:1]).sum(dtype=torch.float32)
        return nothing * 0.0
    chunks = [
        checkpoint(_chunk_loss, hidden[chunk], lm_head, targets[chunk], weights[chunk], use_reentrant=False)
        for chunk in torch.split(trained, CHUNK_TOKENS)
    ]
    return torch.stack(chunks).sum()


def _chunk_loss(hidden: torch.Tensor, lm_head: nn.Module, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    logits = lm_head(hidden).float()
    losses: torch.Tensor = cross_entropy(logits, targets, reduction="none")
    return (losses * weights).sum()
