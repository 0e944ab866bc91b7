"""The dataset job on Ray Data: groups of records in, part-files and counts out. The only file here that imports ray."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import ray.data
from ray.exceptions import RayTaskError
from transformers import PreTrainedTokenizerBase

from data_prep.chat_template import get_template
from data_prep.config import DEMO, DataConfig, IdentityConfig
from data_prep.conversation import Conversation
from data_prep.errors import DataError, VicunaError
from data_prep.identity import identity_conversations
from data_prep.manifest import MANIFEST_NAME, Counts, Manifest, SourceFile, SplitCounts, read_manifest, split_counts
from data_prep.pack import ROW_SCHEMA_VERSION
from data_prep.prepare import SPLITS, write_group
from data_prep.sources import expand_sources, read_records
from data_prep.storage import check_replaceable, written_aside
from data_prep.tokenizer import check_template, fingerprint, load_tokenizer

DEMO_CHATS = Path(__file__).parent / "data" / "demo_chats.json"


def prepare_dataset(
    config: DataConfig, *, fresh: bool = False, on_progress: Callable[[int], None] = lambda records: None
) -> Manifest:
    """Write the dataset that `config` describes, or give the manifest of the one that is there already.

    The directory appears whole or not at all. `on_progress` is told the number of records done so far.

    Raises:
        DataError: a source is missing, nothing is left to train on, or another dataset is in the way.
        ConfigError, ModelError: the template or the tokenizer cannot be used.
    """
    output = Path(config.output)
    if not fresh and (found := find_dataset(config)):
        return found
    files, tokenizer = check_inputs(config)
    with written_aside(output) as directory:
        for split in SPLITS:
            (directory / split).mkdir()
        totals = _run(files, config, directory, on_progress)
        splits = {split: split_counts(totals[split], config.context_length) for split in SPLITS}
        _check_filled(splits, totals["dropped"])
        manifest = Manifest(
            row_schema_version=ROW_SCHEMA_VERSION,
            tokenizer_fingerprint=fingerprint(tokenizer),
            template=config.template,
            context_length=config.context_length,
            counts=_counts(totals),
            **splits,
            sources=[_describe(path) for path in files],
            config=config.model_dump(),
            versions={package: version(package) for package in ("tokenizers", "transformers", "vicuna-ray")},
        )
        manifest.write(directory)
    return manifest


def check_inputs(config: DataConfig) -> tuple[list[Path], PreTrainedTokenizerBase]:
    """The files of the sources and the tokenizer; refuses, before anything starts, what could only fail later.

    Raises:
        DataError: a source is missing or cannot be read.
        ConfigError, ModelError: the template, the tokenizer or the identity cannot be used.
    """
    check_replaceable(Path(config.output), MANIFEST_NAME, "data.output")
    files = _source_paths(config.sources)
    if config.identity is not None:
        _identity_chats(config.identity)
    tokenizer = load_tokenizer(config.tokenizer)
    check_template(get_template(config.template), tokenizer)
    return files, tokenizer


def _source_paths(sources: Sequence[str]) -> list[Path]:
    named = [str(DEMO_CHATS) if source == DEMO else source for source in sources]
    return expand_sources(named)


def _describe(path: Path) -> SourceFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    name = DEMO if path == DEMO_CHATS else str(path)
    return SourceFile(path=name, num_bytes=path.stat().st_size, sha256=digest)


def find_dataset(config: DataConfig) -> Manifest | None:
    """The manifest of the dataset at `config.output`, if it was made of the same chats by the same recipe.

    Raises:
        DataError: a source is missing, or something else is in the way.
    """
    output = Path(config.output)
    sources = [_describe(path) for path in _source_paths(config.sources)]
    if not output.exists():
        return None
    if not (output / MANIFEST_NAME).exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"data.output: {str(output)!r} exists and is not a dataset; choose another directory")
    if not (output / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(output)
    made_alike = manifest.config == config.model_dump() and manifest.sources == sources
    if made_alike and manifest.tokenizer_fingerprint == fingerprint(load_tokenizer(config.tokenizer)):
        return manifest
    raise DataError(
        f"data.output: {str(output)!r} holds a dataset made from other chats, settings or tokenizer files; "
        "choose another directory, or replace it with --fresh"
    )


def _run(
    files: Sequence[Path], config: DataConfig, directory: Path, on_progress: Callable[[int], None]
) -> dict[str, Counter[str]]:
    """Run every group; sums of their counts by section."""
    inputs: list[dict[str, Any]] = [{"path": str(path), "number": number} for number, path in enumerate(files, start=1)]
    if config.identity is not None:
        inputs.append({"path": "", "number": 0})
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # or only "UDF failed" arrives here
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # on_progress tells how far the job is
    groups = ray.data.from_items(inputs, override_num_blocks=len(inputs)).flat_map(partial(_groups, config=config))
    written = groups.map(partial(_write, config=config, directory=directory.absolute()))
    totals: dict[str, Counter[str]] = {name: Counter() for name in ("input", "dropped", *SPLITS)}
    try:
        for row in written.iter_rows():
            for section, counts in json.loads(row["counts"]).items():
                totals[section].update(counts)
            on_progress(sum(totals["input"][kind] for kind in ("records", "identity")))
    except RayTaskError as error:
        raise _cause(error) from None
    return totals


def _cause(error: RayTaskError) -> VicunaError:
    """What a task raised, as one line; Ray adds lines of advice to it, and its own text holds every traceback."""
    cause = error.cause
    if isinstance(cause, RayTaskError):
        return _cause(cause)
    reason = next(iter(str(cause).splitlines()), "")
    if isinstance(cause, VicunaError):
        return type(cause)(reason)
    return DataError(f"preparing the chats failed: {type(cause).__name__}: {reason}")


def _groups(item: dict[str, Any], *, config: DataConfig) -> Iterator[dict[str, Any]]:
    """The records of one input, `group_size` at a time. An unreadable record is kept as null, to be counted."""
    values: Iterable[Any]
    if item["path"]:
        values = (record.value if record.error is None else None for record in read_records(Path(item["path"])))
    else:
        values = (chat.to_record() for chat in _identity_chats(config.identity or IdentityConfig()))
    remaining = iter(values)
    number = 0
    while group := list(islice(remaining, config.group_size)):
        yield {"name": f"{item['number']:04d}-{number:05d}", "from": item["path"], "records": json.dumps(group)}
        number += 1


def _identity_chats(identity: IdentityConfig) -> list[Conversation]:
    return identity_conversations(identity.name, identity.maker, count=identity.count)


def _write(item: dict[str, Any], *, config: DataConfig, directory: Path) -> dict[str, Any]:
    counts = write_group(item["name"], json.loads(item["records"]), config, directory)
    kind = "records" if item["from"] else "identity"
    sections = {
        "input": {kind: counts["records"], **{name: counts[name] for name in ("split_parts", "with_lost_bytes")}},
        "dropped": counts["dropped"],
        **{split: counts[split] for split in SPLITS},
    }
    return {"counts": json.dumps(sections)}


def _counts(totals: dict[str, Counter[str]]) -> Counts:
    read = totals["input"]
    return Counts(
        records=read["records"],
        identity=read["identity"],
        split_parts=read["split_parts"],
        with_lost_bytes=read["with_lost_bytes"],
        dropped=dict(sorted(totals["dropped"].items())),
    )


def _check_filled(splits: dict[str, SplitCounts], dropped: Counter[str]) -> None:
    if splits["train"].trained_tokens == 0:
        left_out = {**dropped, "held_out": splits["eval"].conversations}
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()) if count) or "no records"
        raise DataError(f"data.sources: nothing is left to train on ({reasons})")
