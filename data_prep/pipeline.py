"""The dataset job on Ray Data: groups of records to chats in tokens, then, without duplicates, to rows.

The only file here that imports ray. Records flow through one streaming job into the work directory; then the duplicates
are found among the keys of all chats, and a second job packs each group. Nothing depends on how the work is shared out.
"""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.data import TaskPoolStrategy
from ray.exceptions import RayError, RayTaskError
from transformers import PreTrainedTokenizerBase

from data_prep.config import DataConfig, DedupSettings
from data_prep.conversation import DropReason
from data_prep.dedup import (
    Duplicate,
    duplicates_of_kind,
    entries,
    find_duplicates,
    only_first,
    remaining,
    split_order,
)
from data_prep.errors import DataError, VicunaError
from data_prep.groups import chunk_name, pack_group, prepare_chunk, read_chunks
from data_prep.inputs import InputFile, check_inputs, describe, find_dataset
from data_prep.manifest import Counts, Manifest, split_counts
from data_prep.pack import ROW_SCHEMA_VERSION
from data_prep.prepare import COUNTERS, NUM_SAMPLES, SPLITS
from data_prep.report import write_report
from data_prep.storage import written_aside
from data_prep.tokenizer import describe as describe_tokenizer
from data_prep.tokenizer import fingerprint
from data_prep.work import REJECT_SCHEMA, WorkDir

HISTOGRAMS = ("languages", "turns", "tokens", "fill")
REJECTS_NAME = "rejects.parquet"

Progress = Callable[[int, float], None]

# What is under way between reading and preparing, so that memory does not grow with the input.
_BLOCK_BYTES = 1 << 20
_CPUS_PER_READER = 16  # records are read that much faster than they are prepared
_STORE_BYTES = 256 << 20
# Entries that are looked through in one process; above, they are shared out by their keys.
_ENTRIES_AT_ONCE = 4_000_000
_SIGNED_ENTRIES_AT_ONCE = 400_000


def prepare_dataset(
    config: DataConfig,
    *,
    fresh: bool = False,
    on_progress: Progress = lambda records, share: None,
    cluster: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Manifest:
    """Write the dataset that `config` describes, or give the manifest of the one that is there already.

    The directory appears whole or not at all. A job that was killed goes on from the chunks it had finished.
    `on_progress` is told the number of records done so far, and the share of the input's bytes. `cluster` starts what
    the job runs on; it is entered when all that can be checked without it is checked.

    Raises:
        DataError: a source is missing, nothing is left to train on, or another dataset is in the way.
        ConfigError, ModelError: a setting or the tokenizer cannot be used.
    """
    if not fresh and (found := find_dataset(config)):
        return found
    files, tokenizer = check_inputs(config)
    job = _Job(config, files, tokenizer)
    if fresh:
        job.work.remove()
    with cluster():
        try:
            return job.run(on_progress)
        except RayTaskError as error:
            raise _cause(error) from None
        except RayError as error:
            raise DataError(f"preparing the chats failed: {str(error).splitlines()[0]}") from None


class _Job:
    """One dataset in the making."""

    def __init__(self, config: DataConfig, files: Sequence[InputFile], tokenizer: PreTrainedTokenizerBase) -> None:
        self.config = config
        self.files = files
        self.sources = describe(config, files)
        self.tokenizer_fingerprint = fingerprint(tokenizer)
        self.tokenizer_description = describe_tokenizer(tokenizer)
        self.versions = {name: version(name) for name in ("tokenizers", "transformers", "vicuna-ray")}
        self.work = WorkDir.of(Path(config.output).absolute())

    def run(self, on_progress: Progress) -> Manifest:
        self.work.open(
            {
                "config": self.config.model_dump(),
                "sources": [source.model_dump() for source in self.sources],
                "tokenizer": self.tokenizer_fingerprint,
                "versions": self.versions,
            },
            self.tokenizer_description,
        )
        try:
            self._prepare(on_progress)
        except BaseException:
            if not self.work.names():  # there is nothing to go on from
                self.work.remove()
            raise
        duplicates = self._duplicates()
        try:
            manifest = self._assemble(duplicates)
        except DataError:
            self.work.remove()
            raise
        self.work.remove()
        return manifest

    def _prepare(self, on_progress: Progress) -> None:
        """Read all chunks and keep their chats in the work directory."""
        inputs: list[dict[str, Any]] = []
        for number, file in enumerate(self.files, start=1):
            item = {"number": number, "path": file.path}
            if file.source.max_records is not None and number > 1 and file.source is self.files[number - 2].source:
                inputs[-1]["files"].append(item)  # one reader counts the records of a source that has a cap
            else:
                inputs.append({"files": [item], "source": file.source.model_dump()})
        if self.config.identity is not None:
            inputs.append({"files": [{"number": 0, "path": ""}], "source": {}})
        _set_up_ray_data()
        readers = TaskPoolStrategy(size=1 + int(ray.cluster_resources().get("CPU", 1)) // _CPUS_PER_READER)
        groups = ray.data.from_items(inputs, override_num_blocks=len(inputs)).flat_map(
            partial(read_chunks, config=self.config, work=self.work), num_cpus=0, compute=readers
        )
        records = num_bytes = 0
        all_bytes = sum(file.described.num_bytes for file in self.files)
        for row in groups.map(partial(prepare_chunk, config=self.config, work=self.work)).iter_rows():
            records += row["records"]
            num_bytes += row["num_bytes"]
            on_progress(records, num_bytes / max(1, all_bytes))

    def _duplicates(self) -> dict[str, dict[int, tuple[str, str]]]:
        """Reason and detail of each duplicate, by its chunk and its position in the file."""
        dedup = self.config.dedup
        if not dedup.exact and dedup.near is None:
            return {}
        names = self.work.names()
        most = _ENTRIES_AT_ONCE if dedup.near is None else _SIGNED_ENTRIES_AT_ONCE
        num_entries = sum(self.work.num_keys(name) for name in names) * (2 if dedup.near is None else 18)
        if num_entries <= most:
            tables = [entries(self.work.read_keys(name)) for name in names]
            found = find_duplicates(pa.concat_tables(tables), dedup.near) if tables else []
        else:
            found = _shuffled_duplicates(self.work, names, dedup, num_partitions=-(-num_entries // most))
        return self._by_chunk(found)

    def _by_chunk(self, found: Sequence[Duplicate]) -> dict[str, dict[int, tuple[str, str]]]:
        place: defaultdict[str, dict[int, tuple[str, str]]] = defaultdict(dict)
        for duplicate in found:
            file, position = split_order(duplicate.order)
            first_file, first_position = split_order(duplicate.first)
            detail = f"record {first_position} of {self.files[first_file - 1].name}"
            place[chunk_name(file, position // self.config.chunk_size)][position] = (duplicate.reason.value, detail)
        return place

    def _assemble(self, duplicates: Mapping[str, Mapping[int, tuple[str, str]]]) -> Manifest:
        """Pack every group and write the dataset."""
        counts, samples, groups = self._gathered(duplicates)
        with written_aside(Path(self.config.output)) as directory:
            for split in SPLITS:
                (directory / split).mkdir()
            rejects: dict[str, pa.Table] = {}
            totals = {split: Counter[str]() for split in SPLITS}
            for row in self._pack(groups, duplicates, directory.absolute()):
                packed = json.loads(row["counts"])
                for split in SPLITS:
                    totals[split].update(packed[split])
                counts["steps"].update(packed["steps"])
                counts["fill"].update(packed["fill"])
                rejects[row["name"]] = pa.ipc.open_stream(row["rejects"]).read_all()
            left_out = pa.concat_tables([REJECT_SCHEMA.empty_table(), *(rejects[name] for name in sorted(rejects))])
            pq.write_table(left_out, directory / REJECTS_NAME, compression="zstd")
            counts["dropped"] = Counter(left_out["reason"].to_pylist())
            manifest = self._manifest(counts, totals)
            _check_filled(manifest)
            manifest.write(directory)
            write_report(directory, manifest, samples)
        return manifest

    def _gathered(
        self, duplicates: Mapping[str, Mapping[int, tuple[str, str]]]
    ) -> tuple[dict[str, Counter[str]], list[dict[str, Any]], list[list[str]]]:
        """Counts of all chunks, a sample of the chats that stay, and the groups of chunks that are packed together.

        A group takes chunks in record order until it has `group_size` records.
        """
        counts = {subject: Counter[str]() for subject in (*COUNTERS, "fill")}
        samples: list[tuple[str, str, int, dict[str, Any]]] = []
        groups: list[list[str]] = []
        room = 0
        for name in self.work.names():
            chunk_counts, chunk_samples = self.work.read_done(name)
            for subject, counted in chunk_counts.items():
                counts[subject].update(counted)
            gone = duplicates.get(name, {})
            stay = [(place, name, position, chat) for place, position, chat in chunk_samples if position not in gone]
            samples = sorted([*samples, *stay], key=lambda sample: sample[:3])[:NUM_SAMPLES]
            if room <= 0:
                groups.append([])
                room = self.config.group_size
            groups[-1].append(name)
            room -= chunk_counts["steps"]["records"]
        return counts, [chat for *_, chat in samples], groups

    def _pack(
        self,
        groups: Sequence[Sequence[str]],
        duplicates: Mapping[str, Mapping[int, tuple[str, str]]],
        directory: Path,
    ) -> Iterable[dict[str, Any]]:
        tasks = [
            {
                "name": chunks[0],
                "chunks": chunks,
                "duplicates": json.dumps({name: duplicates[name] for name in chunks if name in duplicates}),
            }
            for chunks in groups
        ]
        if not tasks:
            return []
        pack = partial(pack_group, config=self.config, work=self.work, directory=directory)
        rows: Iterable[dict[str, Any]] = (
            ray.data.from_items(tasks, override_num_blocks=min(len(tasks), 64)).map(pack).iter_rows()
        )
        return rows

    def _manifest(self, counts: Mapping[str, Counter[str]], totals: Mapping[str, Counter[str]]) -> Manifest:
        steps = counts["steps"]
        return Manifest(
            row_schema_version=ROW_SCHEMA_VERSION,
            tokenizer_fingerprint=self.tokenizer_fingerprint,
            template=self.config.template,
            context_length=self.config.context_length,
            counts=Counts(
                **{name: steps[name] for name in Counts.model_fields if name not in ("dropped", "masked")},
                dropped=dict(sorted(counts["dropped"].items())),
                masked=dict(sorted(counts["masked"].items())),
            ),
            histograms={subject: dict(sorted(counts[subject].items())) for subject in HISTOGRAMS},
            **{split: split_counts(totals[split], self.config.context_length) for split in SPLITS},
            sources=self.sources,
            config=self.config.model_dump(),
            versions=self.versions,
        )


def _set_up_ray_data() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # or only "UDF failed" arrives here
    context.target_max_block_size = _BLOCK_BYTES
    context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=_STORE_BYTES)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # on_progress tells how far it is, `_cause` what fails


def _shuffled_duplicates(
    work: WorkDir, names: Sequence[str], dedup: DedupSettings, num_partitions: int
) -> list[Duplicate]:
    """As `find_duplicates` over all groups, with the entries shared out by their keys: Ray's shuffle, which spills."""

    def read(names: pa.Table, kind: int, gone: Sequence[int]) -> pa.Table:
        table = pa.concat_tables([entries(work.read_keys(name)) for name in names["name"].to_pylist()])
        table = remaining(table, kind, gone)
        partitions = [int.from_bytes(key.as_py()[:4]) % num_partitions for key in table["key"]]
        return table.append_column("partition", pa.array(partitions, pa.int64()))

    def find(table: pa.Table) -> pa.Table:
        found = duplicates_of_kind(table.drop_columns(["partition"]), dedup.near)
        columns = list(zip(*found, strict=True)) or [(), (), ()]
        types = {"order": pa.int64(), "reason": pa.string(), "first": pa.int64()}
        return pa.table(
            {name: pa.array(values, type_) for (name, type_), values in zip(types.items(), columns, strict=True)}
        )

    found: list[Duplicate] = []
    for kind in [*([0, 1] if dedup.exact else []), *([] if dedup.near is None else [2])]:
        gone = [one.order for one in found]
        chunks = ray.data.from_items([{"name": name} for name in names], override_num_blocks=len(names))
        dataset = chunks.map_batches(partial(read, kind=kind, gone=gone), batch_size=None, batch_format="pyarrow")
        grouped = dataset.groupby("partition", num_partitions=num_partitions)
        rows = grouped.map_groups(find, batch_format="pyarrow").take_all()
        found += only_first(Duplicate(row["order"], DropReason(row["reason"]), row["first"]) for row in rows)
    return sorted(found)


def _cause(error: RayTaskError) -> VicunaError:
    """What a task raised, as one line; Ray adds lines of advice to it, and its own text holds every traceback."""
    cause = error.cause
    if isinstance(cause, RayTaskError):
        return _cause(cause)
    reason = next(iter(str(cause).splitlines()), "")
    if isinstance(cause, VicunaError):
        return type(cause)(reason)
    return DataError(f"preparing the chats failed: {type(cause).__name__}: {reason}")


def _check_filled(manifest: Manifest) -> None:
    if manifest.train.trained_tokens == 0:
        left_out = {**manifest.counts.dropped, "held_out": manifest.eval.conversations}
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()) if count) or "no records"
        raise DataError(f"data.sources: nothing is left to train on ({reasons})")
