"""Whether a model can be reached from every node, and how much its checkpoints weigh."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs
from safetensors import SafetensorError

from data_prep.errors import ModelError
from data_prep.storage import MODEL_FILES, is_hub_id, is_remote, local_model, open_filesystem
from ray_apps.doctor.check import Check, describe_bytes
from ray_apps.doctor.needs import Needs
from ray_apps.doctor.workers import Workers, failures, first_ranks

CHECKPOINT_BYTES = 12
"""Of a trained parameter: the fp32 weight and AdamW's two averages."""
TIMEOUT_S = 60.0
HUB_TIMEOUT_S = 10.0
CONFIG = ("config.json",)

Lora = tuple[int, frozenset[str]] | None


@dataclass(frozen=True)
class Size:
    """Parameters of a model."""

    num_parameters: int
    num_trained: int
    weight_bytes: int
    """Of a parameter in the base's type, which is that of the exported model."""

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of one checkpoint."""
        return CHECKPOINT_BYTES * self.num_trained

    @property
    def export_bytes(self) -> int:
        """Bytes of the weights of the exported model."""
        return self.weight_bytes * self.num_parameters


def reach_model(rank: int, world_size: int, model: str) -> str:
    """Find the config and the weights of a model; gives the directory of the config. Runs on each node.

    Raises:
        ModelError: nothing is there, or it cannot be reached; the message says what to do.
    """
    if is_remote(model):
        directory = local_model(model, CONFIG)
        filesystem, place = open_filesystem(model)
        if not any(info.path.endswith(".safetensors") for info in filesystem.get_file_info(fs.FileSelector(place))):
            raise ModelError(f"model {model!r}: it has no *.safetensors weights")
        return str(directory)
    if is_hub_id(model) and not Path(model).expanduser().is_dir():
        return _reach_hub(model)
    from ray_apps.model_dir import tensor_names  # which imports torch

    directory = local_model(model)
    tensor_names(directory)  # reads the header of every weight file
    return str(directory)


def _reach_hub(model: str) -> str:
    """Ask the hub for the config, as someone who may have the weights; without a hub, a whole copy here will do."""
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    secret = "the token here has no access" if get_token() else "there is no HF_TOKEN here"
    try:
        # Asks once. The download by itself would ask for half a minute.
        get_hf_file_metadata(hf_hub_url(model, CONFIG[0]), timeout=HUB_TIMEOUT_S)
        return str(Path(hf_hub_download(model, CONFIG[0])).parent)
    except GatedRepoError:
        raise ModelError(f"model {model!r}: gated, and {secret}; ask for access on its page") from None
    except RepositoryNotFoundError:
        raise ModelError(f"model {model!r}: not on the hub, or private: {secret}") from None
    except Exception as error:
        if (copy := _cached(model)) is not None:
            return copy
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"model {model!r}: the hub cannot be reached, and there is no copy here: {reason}") from None


def _cached(model: str) -> str | None:
    """The directory of an earlier download with all its weights, if there is one."""
    from huggingface_hub import snapshot_download

    from ray_apps.model_dir import tensor_names

    try:
        directory = snapshot_download(model, local_files_only=True, allow_patterns=list(MODEL_FILES))
        tensor_names(Path(directory))
    except (OSError, ValueError, ModelError, SafetensorError):
        return None
    return directory


def count_parameters(rank: int, world_size: int, directory: str, lora: Lora) -> tuple[int, int, int]:
    """The fields of `Size` for the model that a config describes. Runs in one worker.

    Raises:
        ValueError: transformers knows no causal language model of that kind.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    total, width = sum(parameter.numel() for parameter in model.parameters()), (config.dtype or torch.float32).itemsize
    if lora is None:
        return total, total, width
    r, targets = lora
    linear = (module for name, module in model.named_modules() if name.rpartition(".")[2] in targets)
    return total, sum(r * (layer.in_features + layer.out_features) for layer in linear), width


def check_models(needs: Needs, workers: Workers) -> Iterator[tuple[Check, Size | None]]:
    """Reach each model from each node; the size comes with that of `train.model`."""
    for field, model in needs.models.items():
        answers = workers.run(reach_model, model, timeout_s=TIMEOUT_S, ranks=first_ranks(workers.nodes))
        if told := failures(answers):
            advice = "see docs/recipes.md for what a model can be; gated ones need access and HF_TOKEN on every node"
            yield Check("model", field, "problem", told, advice), None
        elif field != "train.model":
            yield Check("model", field, "ok", f"{model}: reached"), None
        else:
            yield _weigh(field, model, answers[0].value, needs, workers)


def _weigh(field: str, model: str, directory: str, needs: Needs, workers: Workers) -> tuple[Check, Size | None]:
    (counted,) = workers.run(count_parameters, directory, needs.lora, timeout_s=TIMEOUT_S, ranks=[0])
    if counted.failure is not None:
        advice = "only models that transformers knows can be trained"
        return Check("model", field, "problem", f"{model}: {counted.failure}", advice), None
    size = Size(*counted.value)
    found = (
        f"{model}: {size.num_parameters:,} parameters, {size.num_trained:,} trained, "
        f"{describe_bytes(size.checkpoint_bytes)} a checkpoint"
    )
    measures = {"num_parameters": size.num_parameters, "num_trained": size.num_trained}
    return Check("model", field, "ok", found, measures=measures | {"checkpoint_bytes": size.checkpoint_bytes}), size


def needed_bytes(needs: Needs, size: Size | None) -> dict[str, int]:
    """Field → bytes that a run will have written there at most; empty where the model is not known."""
    if size is None:
        return {}
    return {"train.run_dir": size.checkpoint_bytes * needs.num_checkpoints, "train.output": size.export_bytes}


def look_for_dataset(rank: int, world_size: int, path: str) -> bool:
    """Whether a dataset is seen. Runs on each node."""
    filesystem, place = open_filesystem(path)
    return bool(filesystem.get_file_info(f"{place}/manifest.json").type == fs.FileType.File)


def check_datasets(needs: Needs, workers: Workers) -> Iterator[Check]:
    """Whether every node sees the dataset, if it has been made."""
    for field, path in needs.datasets.items():
        place = path if is_remote(path) else os.path.abspath(os.path.expanduser(path))
        answers = workers.run(look_for_dataset, place, timeout_s=TIMEOUT_S, ranks=first_ranks(workers.nodes))
        if told := failures(answers):
            yield Check("storage", field, "problem", told, f"let this user read {path} from every node")
            continue
        blind = [answer.node for answer in answers if not answer.value]
        if len(blind) == len(answers):
            yield Check("storage", field, "warning", f"{path}: no dataset yet", "make it: vicuna prep RECIPE")
        elif blind:
            told = f"{path}: not seen by {', '.join(blind)}"
            yield Check("storage", field, "problem", told, "mount one folder on every node")
        else:
            yield Check("storage", field, "ok", f"{path}: seen by every node")
