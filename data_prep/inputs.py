"""What a dataset is made of, looked at before anything starts: files, tokenizer, settings; and whether it is there."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from data_prep.chat_template import get_template
from data_prep.config import DEMO, DataConfig, SourceConfig
from data_prep.contamination import load_questions
from data_prep.errors import DataError
from data_prep.identity import identity_chats
from data_prep.manifest import MANIFEST_NAME, Manifest, SourceFile, read_manifest
from data_prep.moderation import build_moderator
from data_prep.sources import DEMO_CHATS, expand_source, source_name
from data_prep.storage import check_replaceable, file_state, is_remote
from data_prep.tokenizer import check_template, fingerprint, load_tokenizer


class InputFile:
    """One file of a source."""

    def __init__(self, path: str, source: SourceConfig) -> None:
        self.path = path
        self.source = source

    @property
    def name(self) -> str:
        """What the file is called in the dataset."""
        return source_name(self.path)

    @cached_property
    def described(self) -> SourceFile:
        """Name, size and what tells the content from another."""
        num_bytes, sha256 = file_state(self.path)
        return SourceFile(path=self.name, num_bytes=num_bytes, sha256=sha256)


def input_files(config: DataConfig) -> list[InputFile]:
    """The files of all sources in the order of the recipe, each once, with the settings of the first that names it.

    Raises:
        DataError: a source is missing, or holds what the job itself writes.
    """
    files: dict[str, InputFile] = {}
    output = Path(config.output).resolve()
    for source in config.source_list:
        for path in expand_source(str(DEMO_CHATS) if source.path == DEMO else source.path):
            if not is_remote(path) and Path(path).resolve().is_relative_to(output):
                raise DataError(f"data.sources: {path!r} lies in data.output, {config.output!r}; choose another")
            files.setdefault(path if is_remote(path) else str(Path(path).resolve()), InputFile(path, source))
    return list(files.values())


def describe(config: DataConfig, files: Sequence[InputFile]) -> list[SourceFile]:
    """All files that decide what the dataset is: the chats, evaluation questions, patterns."""
    others = [*(config.decontamination.questions if config.decontamination else ())]
    others += [config.moderation.patterns] if config.moderation.patterns else []
    return [
        *(file.described for file in files),
        *(InputFile(path, SourceConfig(path=path)).described for path in others),
    ]


def check_inputs(config: DataConfig) -> tuple[list[InputFile], PreTrainedTokenizerBase]:
    """The files of the sources and the tokenizer; refuses, before anything starts, what could only fail later.

    Raises:
        DataError: a source is missing or cannot be read.
        ConfigError, ModelError: a setting or the tokenizer cannot be used.
    """
    check_replaceable(Path(config.output), MANIFEST_NAME, "data.output")
    files = input_files(config)
    if config.identity is not None:
        identity_chats(config.identity)
    if config.decontamination is not None:
        load_questions(config.decontamination.questions)
    build_moderator(config.moderation)
    tokenizer = load_tokenizer(config.tokenizer)
    check_template(get_template(config.template), tokenizer)
    return files, tokenizer


def find_dataset(config: DataConfig) -> Manifest | None:
    """The manifest of the dataset at `config.output`, if it was made of the same chats by the same recipe.

    Raises:
        DataError: a source is missing, or something else is in the way.
    """
    output = Path(config.output)
    files = input_files(config)
    if not output.exists():
        return None
    if not (output / MANIFEST_NAME).exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"data.output: {str(output)!r} exists and is not a dataset; choose another directory")
    if not (output / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(output)
    made_alike = manifest.config == config.model_dump() and manifest.sources == describe(config, files)
    if made_alike and manifest.tokenizer_fingerprint == fingerprint(load_tokenizer(config.tokenizer)):
        return manifest
    raise DataError(
        f"data.output: {str(output)!r} holds a dataset made from other chats, settings or tokenizer files; "
        "choose another directory, or replace it with --fresh"
    )
