"""What writes a model directory: weights a tensor at a time, the other files from the side they belong to."""

import json
from pathlib import Path

from data_prep.chat_template import ChatTemplate, get_template
from data_prep.errors import ModelError
from data_prep.storage import is_hub_id, is_remote, local_model
from ray_apps.engine.options import Quantization
from ray_apps.model_dir import write_tensors
from ray_apps.weights import delta as deltas
from ray_apps.weights.exact import apply_exact, is_exact, make_exact, num_bytes
from ray_apps.weights.llama_tokenizer import MODEL, complete_tokenizer, convert_tokenizer
from ray_apps.weights.output import copy_files, local_path, take_language, written_model
from ray_apps.weights.tensor_files import TensorFiles, fetch
from ray_apps.weights.tensor_writer import write_model

META_FILES = ("params.json", "*.pth", MODEL)


def make_delta(base: str, target: str, output: str, *, exact: bool = False) -> None:
    """Write target − base to `output`, a directory or an `s3://` path.

    `exact`: in the form that gives the target bit for bit, and refuses another base.

    Raises:
        ModelError: one of them cannot be read, or they do not belong together.
        ConfigError: `output` holds something that was not written here.
    """
    ours, theirs = TensorFiles(base), TensorFiles(target)
    make = make_exact if exact else deltas.make_delta
    if exact:  # the other one looks by itself, at types too
        deltas.check_shapes(ours, theirs, ("base", "target"))
    with written_model("make-delta", output, theirs.directory, theirs.num_bytes, base=base, target=target) as written:
        make(ours, theirs, *written)


def apply_delta(base: str, delta: str, output: str, template: str | None = None) -> None:
    """Write base + delta to `output`, with a chat template of ours if `template` names one.

    Raises:
        ModelError: as `make_delta`; or an exact delta is damaged, or was made from another base.
        ConfigError: as `make_delta`; or `template` is not known, or not for this tokenizer.
    """
    chosen = _template(template)
    ours, where = TensorFiles(base), fetch(delta)
    theirs = None if is_exact(where) else TensorFiles(delta)
    total = num_bytes(where) if theirs is None else theirs.num_bytes
    with written_model("apply-delta", output, where, total, base=base, delta=delta) as (directory, on_bytes):
        if theirs is None:
            apply_exact(ours, where, directory, on_bytes)
        else:
            deltas.apply_delta(ours, theirs, directory, on_bytes)
        _complete(directory, chosen)


def to_safetensors(model: str, output: str, template: str | None = None) -> None:
    """Write the same weights as safetensors to `output`. Raises as `apply_delta`."""
    chosen = _template(template)
    files = TensorFiles(model)
    written = written_model("to-safetensors", output, files.directory, files.num_bytes, model=model)
    with written as (directory, on_bytes):
        write_model(directory, files.specs, files.stream(), on_bytes=on_bytes)
        _complete(directory, chosen)


def merge_lora(base: str, adapter: str, output: str, template: str | None = None) -> None:
    """Write `base` with the adapter's products added to `output`. Raises as `apply_delta`.

    Tokenizer, chat template and generation config are the adapter's where it has them.
    """
    from ray_apps.weights.lora import LoraAdapter

    chosen = _template(template)
    files, lora = TensorFiles(base), LoraAdapter(adapter)
    lora.check(files)
    written = written_model("merge-lora", output, files.directory, files.num_bytes, base=base, adapter=adapter)
    with written as (directory, on_bytes):
        write_model(directory, files.specs, lora.merge(files), on_bytes=on_bytes)
        take_language(lora.directory, directory)
        copy_files(lora.directory, directory, but_not={"config.json", "adapter_config.json"})
        _complete(directory, chosen)


def quantize(model: str, output: str, form: Quantization) -> None:
    """Write `model` with the weights of its linear layers in 8 or 4 bits to `output`.

    Raises:
        ModelError: it is no causal language model, or is quantised already.
        ConfigError: as `make_delta`.
    """
    from ray_apps.weights import quantize as quantizing

    files = TensorFiles(model)
    layers = quantizing.quantized_layers(files)
    written = written_model("quantize", output, files.directory, files.num_bytes, model=model, form=form)
    with written as (directory, on_bytes):
        write_tensors(directory, quantizing.quantize(files, layers, form, on_bytes))
        config = json.loads((files.directory / "config.json").read_text())
        config["quantization_config"] = quantizing.quantization_config(form)
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        complete_tokenizer(directory)


def convert_llama(source: str, output: str, template: str | None = None) -> None:
    """Write Meta's original files of a Llama as a model directory to `output`.

    Raises:
        ModelError: a file is missing or not whole.
        ConfigError: as `apply_delta`.
    """
    from ray_apps.weights.meta import PARAMS, MetaLlama

    chosen = _template(template)
    is_elsewhere = is_remote(source) or (is_hub_id(source) and not Path(source).is_dir())
    place = local_model(source, META_FILES, PARAMS) if is_elsewhere else local_path(source, "source")
    llama = MetaLlama(place)
    tokenizer = place / MODEL
    if not tokenizer.is_file():
        above = source.rstrip("/").rpartition("/")[0]
        tokenizer = (local_model(above, (MODEL,), MODEL) if is_remote(source) else place.parent) / MODEL
    if not tokenizer.is_file():
        raise ModelError(f"{source}: there is no {MODEL}, neither in it nor above it")
    config, total = llama.config(), sum(spec.num_bytes for spec in llama.specs.values())
    with written_model("convert-llama", output, None, total, source=source) as (directory, on_bytes):
        write_model(directory, llama.specs, llama.stream(), on_bytes=on_bytes)
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        convert_tokenizer(tokenizer, directory, config["max_position_embeddings"])
        _complete(directory, chosen)


def _template(name: str | None) -> ChatTemplate | None:
    return None if name is None else get_template(name)


def _complete(directory: Path, template: ChatTemplate | None) -> None:
    """Give the model the tokenizer and the chat template that it lacks."""
    complete_tokenizer(directory)
    if template is not None:
        from data_prep.tokenizer import load_tokenizer
        from ray_apps.language_files import write_language

        write_language(directory, load_tokenizer(str(directory)), template)
