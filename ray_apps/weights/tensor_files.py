"""Weights as they lie in files: safetensors or `.bin`, whole or in shards, read one tensor at a time.

`.bin` files are pickles. They are read by PyTorch's restricted loader, which makes tensors and nothing else.
"""

import hashlib
import json
import pickle
import re
import warnings
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from data_prep.errors import ModelError
from data_prep.storage import MODEL_FILES, local_model
from ray_apps.model_dir import ORIGIN

WHOLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
FILES = (*MODEL_FILES, "*.bin")
REOPENED_AFTER_BYTES = 2**27
"""A pickle that is mapped is opened anew so often."""
NOT_OTHERS = (*INDEXES, ORIGIN, "exact.json", "delta.json")
RECOMPUTED = re.compile(r"\.rotary_emb\.inv_freq$")
"""Buffers that some files hold though a model computes them when it is loaded."""
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Types by the names that safetensors gives them."""


@dataclass(frozen=True)
class Spec:
    """A tensor before it is read. `dtype`: as in torch, without `torch.`."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Of its values."""
        count = 1
        for size in self.shape:
            count *= size
        return count * self.torch_dtype.itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        """As torch has it."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Spec":
        """Of a tensor that is there."""
        return cls(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


class TensorFiles:
    """The weights of a model directory, by name, in the order of their files.

    `model`: a directory, an `s3://` path or a hub id.

    Raises:
        ModelError: there are none, a shard that the index names is not there, or a file is not whole.
    """

    def __init__(self, model: str) -> None:
        self.directory = fetch(model)
        files = _weight_files(self.directory)
        self.files = list(files)
        self.specs: dict[str, Spec] = {}
        self._file_of: dict[str, Path] = {}
        self._held: Pickle | None = None  # the one that was read last
        for file, expected in files.items():
            found = _specs(file)
            _check_names(file, found.keys(), expected)
            for name, spec in found.items():
                if expected is None or name in expected:
                    self.specs[name] = spec
                    self._file_of[name] = file
        if not self.specs:
            raise ModelError(f"model {str(self.directory)!r}: it has no tensors")

    @property
    def num_bytes(self) -> int:
        """Of all values."""
        return sum(spec.num_bytes for spec in self.specs.values())

    def read(self, name: str) -> torch.Tensor:
        """A tensor, in memory of its own or mapped from its file."""
        path = self._file_of[name]
        if path.suffix == ".safetensors":
            with _opened(path) as file:  # anew for each, so that what was mapped before is given back
                tensor: torch.Tensor = file.get_tensor(name)
            return tensor
        if self._held is None or self._held.path != path:
            self._held = Pickle(path)
        return self._held.read(name)

    def stream(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and value of each tensor, one in memory at a time."""
        return ((name, self.read(name)) for name in self.specs)


def fetch(model: str) -> Path:
    """A local directory with the files of `model`, as `TensorFiles` takes it.

    Of one that is elsewhere `.bin` files are fetched only if there are no safetensors.

    Raises:
        ModelError: nothing is there, or it cannot be reached.
    """
    directory = local_model(model)
    return directory if any(directory.glob("*.safetensors")) else local_model(model, FILES)


def read_whole(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a small file, safetensors or `.bin`.

    Raises:
        ModelError: it is cut off, or holds anything but tensors by name.
    """
    if path.suffix != ".safetensors":
        pickled = Pickle(path)
        return {name: pickled.read(name) for name in pickled.specs}
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def other_files(directory: Path) -> list[Path]:
    """The files that belong to a model beside its weights: config, tokenizer, chat template."""
    patterns = [pattern for pattern in MODEL_FILES if pattern != "*.safetensors"]
    found = {path for pattern in patterns for path in directory.glob(pattern) if path.name not in NOT_OTHERS}
    return sorted(path for path in found if path.is_file())


def as_bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Its values as they lie in memory, one after the other; `[num_bytes]`."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def checksum(tensor: torch.Tensor) -> str:
    """SHA-256 of its bytes, 64 hex digits."""
    return hashlib.sha256(as_bytes(tensor).data).hexdigest()


def _weight_files(directory: Path) -> dict[Path, Set[str] | None]:
    """The files that hold the weights, and which tensors an index says are in them."""
    for name in (WHOLE[0], INDEXES[0], WHOLE[1], INDEXES[1]):
        path = directory / name
        if not path.is_file():
            continue
        files: dict[Path, Set[str] | None] = {path: None} if name in WHOLE else {**_indexed(path)}
        if missing := [file.name for file in files if not file.is_file()]:
            raise ModelError(f"model {str(directory)!r}: {missing[0]}, which {name} names, is not there")
        return files
    if (directory / "exact.json").is_file():
        raise ModelError(
            f"model {str(directory)!r}: it is an exact delta; `vicuna weights apply-delta` makes a model of it"
        )
    raise ModelError(f"model {str(directory)!r}: it has none of {', '.join((*WHOLE, *INDEXES))}")


def _indexed(index: Path) -> dict[Path, set[str]]:
    files: dict[Path, set[str]] = {}
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        for name, file in sorted(weight_map.items(), key=lambda item: (item[1], item[0])):
            if Path(file).name != file:
                raise ValueError(f"{file!r} is not a file beside it")
            files.setdefault(index.parent / file, set()).add(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: not an index of weights: {error!r}") from None
    return files


def _check_names(file: Path, found: Set[str], expected: Set[str] | None) -> None:
    """Hold what is in a shard against what the index says of it. Buffers that are computed may be more."""
    if expected is None:
        return
    for name in sorted(expected ^ found):
        if name in expected:
            raise ModelError(f"{file}: there is no {name}, which the index says is in it")
        if not RECOMPUTED.search(name):
            raise ModelError(f"{file}: it holds {name}, of which the index says nothing, or that it is elsewhere")


def _checked(name: object, tensor: torch.Tensor, path: Path) -> str:
    if not isinstance(name, str):
        raise ModelError(f"{path}: it is no mapping of names to tensors: {name!r} is one of the names")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or dtype not in DTYPES.values():
        raise ModelError(f"{path}: {name}: {tensor.layout}, {dtype} is not read; valid: {', '.join(DTYPES.values())}")
    return name


class Pickle:
    """The tensors of a `.bin` file, mapped from it where its form allows that. No code of the file is run.

    Raises:
        ModelError: it is cut off, or holds anything but tensors by name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors, self._is_mapped = _load(path)
        self._bytes_read = 0
        self.specs = {_checked(name, tensor, path): Spec.of(tensor) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        """A tensor. The file is opened anew from time to time, so that what was mapped before is given back."""
        if self._is_mapped and self._bytes_read > REOPENED_AFTER_BYTES:
            self._tensors, self._is_mapped = _load(self.path)
            self._bytes_read = 0
        self._bytes_read += self.specs[name].num_bytes
        return self._tensors[name]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ModelError(f"{path}: it is cut off or no safetensors: {error}") from None


def _specs(path: Path) -> dict[str, Spec]:
    if path.suffix != ".safetensors":
        return Pickle(path).specs
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
        for name, part in slices.items():
            if (dtype := part.get_dtype()) not in DTYPES:
                raise ModelError(f"{path}: {name}: type {dtype} is not read; valid: {', '.join(DTYPES)}")
        return {name: Spec(DTYPES[part.get_dtype()], tuple(part.get_shape())) for name, part in slices.items()}


def _load(path: Path) -> tuple[dict[str, torch.Tensor], bool]:
    """The tensors, and whether they are mapped."""
    try:
        loaded, is_mapped = _restricted(path)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line), "")
        raise ModelError(f"{path}: it holds more than tensors, and is not loaded. {reason.strip()}".rstrip()) from None
    except Exception as error:  # whatever torch meets in a damaged file
        raise ModelError(f"{path}: it is cut off, damaged or no file of weights: {_reason(error)}") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ModelError(f"{path}: it is no mapping of names to tensors")
    return loaded, is_mapped


def _restricted(path: Path) -> tuple[Any, bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickles in a form that nobody writes
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True), True
        except RuntimeError:  # files of before 2020 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True), False


def _reason(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
