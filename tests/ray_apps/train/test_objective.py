from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from data_prep.encode import IGNORE_INDEX
from ray_apps.models import load_causal_lm
from ray_apps.train import objective
from ray_apps.train.attention import choose_attention
from ray_apps.train.data import Batch, RowStore, collate
from ray_apps.train.objective import WeightedLoss


def load(directory: Path, attention: str) -> torch.nn.Module:
    return load_causal_lm(directory, dtype="float32", device="cpu", attn_implementation=attention).train()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.fixture
def rows(tiny_dataset: Path) -> RowStore:
    return RowStore(tiny_dataset / "train")


@pytest.mark.parametrize("chunk_tokens", [7, 512])
def test_packed_equals_unpacked(
    tiny_model_dir: Path, rows: RowStore, chunk_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradients of a packed row are those of its chats, each alone through plain transformers."""
    monkeypatch.setattr(objective, "CHUNK_TOKENS", chunk_tokens)
    batch = collate([rows[0], rows[1]])
    ours = load(tiny_model_dir, choose_attention("sdpa", torch.device("cpu")))
    loss = WeightedLoss(ours)(batch)
    loss.backward()

    plain = load(tiny_model_dir, "eager")
    total = torch.zeros(())
    bounds = batch.cu_seq_lens.tolist()
    assert len(bounds) > 4
    for start, end in pairwise(bounds):
        logits = plain(input_ids=batch.input_ids[:, start:end]).logits[0]
        total = total + cross_entropy(logits, batch.targets[0, start:end], ignore_index=IGNORE_INDEX, reduction="sum")
    total.backward()
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(ours)[name], gradient, rtol=1e-4, atol=1e-5)


def test_weights_scale_the_loss(tiny_model_dir: Path, rows: RowStore) -> None:
    from dataclasses import replace

    batch = collate([rows[0]])
    loss = WeightedLoss(load(tiny_model_dir, choose_attention("sdpa", torch.device("cpu"))))
    half = replace(batch, weights=batch.weights * 0.5)
    torch.testing.assert_close(loss(half), loss(batch) * 0.5)


def test_a_row_without_a_trained_token_adds_nothing(tiny_model_dir: Path, rows: RowStore) -> None:
    from dataclasses import replace

    batch = collate([rows[0]])
    nothing = replace(
        batch, targets=torch.full_like(batch.targets, IGNORE_INDEX), weights=torch.zeros_like(batch.weights)
    )
    model = load(tiny_model_dir, choose_attention("sdpa", torch.device("cpu")))
    loss: torch.Tensor = WeightedLoss(model)(nothing)
    loss.backward()
    assert loss.item() == 0.0
    assert all(gradient.abs().max() == 0 for gradient in gradients(model).values())


def test_a_chat_does_not_see_its_neighbours(tiny_model_dir: Path, rows: RowStore) -> None:
    def loss_of_last_chat(first_token: int) -> float:
        batch: Batch = collate([rows[0]])
        start = int(batch.cu_seq_lens[-2])
        batch.input_ids[0, :start] = first_token
        batch.targets[0, :start] = IGNORE_INDEX
        model = load(tiny_model_dir, choose_attention("sdpa", torch.device("cpu")))
        return WeightedLoss(model)(batch).item()

    assert loss_of_last_chat(5) == loss_of_last_chat(9)
