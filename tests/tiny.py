"""Tiny tokenizers and models of every kind that is supported, made in a moment."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from data_prep.byte_level import BYTE_LEVEL
from data_prep.chat_template import TEMPLATES
from data_prep.tokenizer import encoders_of

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: Who are you? ASSISTANT: I am Vicuna, a language model trained by LMSYS.",
    "def hello(name):\n    return f'hello {name}'\n\n\n# 你是谁? 我是一个助手。",
    "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nwhat is 2 + 2? [/INST] It is 4.",
    "### Human: tell me more\n### Assistant: more and more and more",
] * 4
CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]


def byte_level(*, as_gpt2: bool = False, lacks: bytes = b"") -> PreTrainedTokenizerFast:
    """Byte-level BPE without automatic BOS, as SmolLM2.

    `as_gpt2` leaves white space out of offsets; there are no tokens for the bytes in `lacks`.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if as_gpt2:
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = [char for char, byte in BYTE_LEVEL.items() if byte not in lacks]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=CHATML_TOKENS, initial_alphabet=alphabet)
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )


def sentencepiece_like(*, legacy: bool, merges_across_words: bool = False) -> PreTrainedTokenizerFast:
    """BPE over word marks with byte fallback and automatic BOS, as LLaMA; `legacy` puts the mark by a normalizer."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    if not merges_across_words:
        learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    else:
        learner.normalizer = normalizers.Replace(" ", "▁")
    specials = ["<unk>", "<s>", "</s>", *CHATML_TOKENS]
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, special_tokens=[*specials, *byte_tokens]))
    vocab, merges = learner.get_vocab(), _merges(learner)
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    import json

    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in merges]


TOKENIZERS = {
    "byte-level": byte_level,
    "byte-level-gpt2": lambda: byte_level(as_gpt2=True),
    "sentencepiece-legacy": lambda: sentencepiece_like(legacy=True),
    "sentencepiece-first": lambda: sentencepiece_like(legacy=False),
    "sentencepiece-straddling": lambda: sentencepiece_like(legacy=False, merges_across_words=True),
}


def set_template(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Give the tokenizer the named template as its own."""
    tokenizer.chat_template = TEMPLATES[name].jinja(opens_with_bos=bool(encoders_of(tokenizer).for_templates.bos))


def write_model(directory: Path, *, template: str = "chatml", **config: object) -> Path:
    """A random two-layer Llama of 64 dimensions with a byte-level tokenizer, as a model directory.

    `config`: fields of its configuration that are to be other ones.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_level()
    set_template(tokenizer, template)
    torch.manual_seed(0)
    fields: dict[str, object] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    LlamaForCausalLM(LlamaConfig(**{**fields, **config})).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def chats(count: int) -> list[dict[str, object]]:
    """ShareGPT records of one or two rounds, of varied length."""
    records: list[dict[str, object]] = []
    for index in range(count):
        turns = [
            {"from": "human", "value": f"What is {index} plus {index}?"},
            {"from": "gpt", "value": f"It is {2 * index}." + " Really." * (index % 5)},
        ]
        if index % 3 == 0:
            turns += [{"from": "human", "value": "Are you sure?"}, {"from": "gpt", "value": "Yes, I am sure."}]
        records.append({"id": f"chat-{index}", "conversations": turns})
    return records


def write_dataset(
    directory: Path, model: Path, *, count: int = 64, context_length: int = 256, **fields: object
) -> Path:
    """A dataset of `count` chats for `model`, made without Ray."""
    import pyarrow.parquet as pq

    from data_prep.config import DataConfig
    from data_prep.manifest import Counts, Manifest, split_counts
    from data_prep.moderation import NoModerator
    from data_prep.pack import ROW_SCHEMA_VERSION, count_rows, rows_to_table
    from data_prep.prepare import Chunk, Item, Preparation, pack_chats
    from data_prep.tokenizer import encoders_of, fingerprint, load_tokenizer

    values = {"output": str(directory), "tokenizer": str(model), "sources": ["unused"]}
    config = DataConfig.parse({**values, "context_length": context_length, **fields})
    tokenizer = load_tokenizer(str(model))
    chunk = Chunk(1, "unused", [Item(position, record) for position, record in enumerate(chats(count))])
    packed = pack_chats(Preparation(config, encoders_of(tokenizer), NoModerator()).prepare(chunk).chats, config)
    for split, rows in packed.rows.items():
        (directory / split).mkdir(parents=True)
        if rows:
            pq.write_table(rows_to_table(rows), directory / split / "part-0.parquet")
    Manifest(
        row_schema_version=ROW_SCHEMA_VERSION,
        tokenizer_fingerprint=fingerprint(tokenizer),
        template=config.template,
        context_length=context_length,
        counts=Counts(records=count, read=count),
        histograms={},
        train=split_counts(count_rows(packed.rows["train"]), context_length),
        eval=split_counts(count_rows(packed.rows["eval"]), context_length),
        sources=[],
        config=config.model_dump(),
        versions={},
    ).write(directory)
    return directory


def train_settings(model: Path, dataset: Path, **fields: Any) -> dict[str, Any]:
    """The section `train` of a run on a CPU that learns something within a few steps; `fields` are added to it."""
    return {
        "model": str(model),
        "dataset": str(dataset),
        "epochs": 999,
        "learning_rate": 1e-3,
        "precision": "fp32",
        **fields,
    }
