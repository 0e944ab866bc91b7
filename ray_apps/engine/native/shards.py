"""One model over several processes: transformers' tensor parallel, and every pass told to all of them.

Rank 0 belongs to the engine. The others are told which tokens go through the model, and do the same with their share of
its weights and its key heads. One that is gone, or does not get on, is the end of the whole model.
"""

import multiprocessing
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from data_prep.errors import ConfigError, ModelError
from ray_apps.engine.native.cache import Segment
from ray_apps.engine.native.forward import LostModelError, MakeModel, SlotModel
from ray_apps.engine.native.loading import LoadedModel, read_config
from ray_apps.model_dir import local_model_dir

LOADING_S = 1800.0
"""How long the processes wait for one another until all have loaded the model."""
COLLECTIVE_S = 60.0
"""How long they wait for one another within a pass."""

Load = Callable[[], LoadedModel]


@dataclass(frozen=True, slots=True)
class Place:
    """Number `rank` of the `size` processes of a model, which meet in `directory` of one machine."""

    rank: int
    size: int
    directory: str


class Shards(Protocol):
    """The processes of the ranks above 0."""

    @property
    def are_alive(self) -> bool:
        """Whether all of them are."""
        ...

    def stop(self) -> None:
        """End them at once."""
        ...


StartShards = Callable[[Sequence[Place], Load], Shards]


def check_divides(config: PreTrainedConfig, size: int) -> None:
    """Refuse a model that cannot be divided among `size` devices.

    Raises:
        ConfigError: naming the field and what would be valid.
    """
    text = config.get_text_config()
    if not getattr(text, "base_model_tp_plan", None):
        raise ConfigError(f"args.tensor_parallel_size: transformers cannot divide a {text.model_type} model; valid: 1")
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    if heads % size:
        valid = ", ".join(str(number) for number in range(1, heads + 1) if heads % number == 0)
        raise ConfigError(
            f"args.tensor_parallel_size: {size} is not valid; the model's {heads} key-value heads are divided "
            f"evenly, so expected one of {valid}"
        )


def join(place: Place, device: str) -> dist.ProcessGroup:
    """Meet the other processes; returns the group in which rank 0 tells them what to do.

    Once in the life of a process: torch keeps the groups of its meshes.
    """
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    # An actor of Ray sees one GPU, a plain process all of them.
    os.environ["LOCAL_RANK"] = str(place.rank % max(1, torch.cuda.device_count()))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        init_method=(Path(place.directory) / "meeting").as_uri(),
        rank=place.rank,
        world_size=place.size,
        timeout=timedelta(seconds=LOADING_S),
    )
    # Nothing may be told for days; who tells waits until the others listen, the first time until they are loaded.
    group = dist.new_group(backend="gloo", timeout=timedelta(days=365) if place.rank else timedelta(seconds=LOADING_S))
    assert isinstance(group, dist.ProcessGroup)
    return group


def run_shard(place: Place, load: Load, device: str, num_threads: int) -> None:
    """Be one of the ranks above 0, until rank 0 is gone."""
    torch.set_num_threads(num_threads)
    told = join(place, device)
    loaded = load()
    model = SlotModel(loaded.model, _hear(told), loaded.max_model_len)
    _expect_answers()
    while True:
        name, *args = _hear(told)
        getattr(model, name)(*args)


def _hear(group: dist.ProcessGroup) -> Any:
    told: list[Any] = [None]
    dist.broadcast_object_list(told, src=0, group=group)
    return told[0]


def _expect_answers(*groups: dist.ProcessGroup) -> None:
    """All have the model; from now on nobody is waited for that long, in `groups` neither.

    Groups of transformers' have their own clocks.
    """
    for group in dist.distributed_c10d._world.pg_map:
        if group in groups or group.group_desc == "default_pg" or group.group_desc.startswith("mesh_"):
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=COLLECTIVE_S), group)


class ShardedModel(SlotModel):
    """Rank 0's share of a model, which tells the others of each pass.

    Raises LostModelError from the first pass on that did not succeed everywhere.
    """

    def __init__(
        self, model: PreTrainedModel, num_slots: int, max_len: int, *, told: dist.ProcessGroup, shards: Shards
    ) -> None:
        self._told, self._shards = told, shards
        super().__init__(model, num_slots, max_len)
        with self._all_or_nothing():
            self._tell(num_slots)
            _expect_answers(told)

    def _tell(self, what: Any) -> None:
        dist.broadcast_object_list([what], src=0, group=self._told)

    def try_out(self) -> None:
        """As that of one process."""
        with self._all_or_nothing():
            self._tell(("try_out",))
            super().try_out()

    def forward(self, segments: Sequence[Segment], token_ids: Sequence[int], chosen: Sequence[int]) -> Tensor:
        """As that of one process."""
        with self._all_or_nothing():
            self._tell(("forward", segments, token_ids, chosen))
            return super().forward(segments, token_ids, chosen)

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """As that of one process."""
        with self._all_or_nothing():
            self._tell(("copy", source, target, num_tokens))
            super().copy(source, target, num_tokens)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        try:
            yield
        except ModelError:
            raise
        except Exception as error:
            raise LostModelError(f"a pass over all shards failed: {type(error).__name__}: {error}") from error

    def check(self) -> None:
        """Return if every shard lives."""
        if not self._shards.are_alive:
            raise LostModelError("a shard of the model is gone")

    def close(self) -> None:
        """End the other processes."""
        _end(self._shards)


class ProcessShards:
    """Processes of this machine, without Ray."""

    def __init__(self, places: Sequence[Place], load: Load, *, device: str, num_threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes = [
            context.Process(target=run_shard, args=(place, load, device, num_threads), daemon=True) for place in places
        ]
        for process in self._processes:
            process.start()

    @property
    def are_alive(self) -> bool:
        """Whether all of them are."""
        return all(process.is_alive() for process in self._processes)

    @property
    def pids(self) -> list[int | None]:
        """Of the processes."""
        return [process.pid for process in self._processes]

    def stop(self) -> None:
        """End them at once."""
        for process in self._processes:
            process.kill()
            process.join()


@contextmanager
def load_sharded(
    load: Load, model: str, size: int, start: StartShards, device: str
) -> Iterator[tuple[LoadedModel, MakeModel]]:
    """Start the other processes and load `model` in all; also gives what makes the `ShardedModel` of rank 0.

    They outlive the block, unless that fails.

    Raises:
        ConfigError: as `check_divides`.
        ModelError: the model cannot be used.
    """
    check_divides(read_config(local_model_dir(model)), size)
    directory = tempfile.mkdtemp(prefix="shards-")
    places = [Place(rank, size, directory) for rank in range(size)]
    shards = start(places[1:], load)
    try:
        told = join(places[0], device)
        yield load(), partial(ShardedModel, told=told, shards=shards)
    except BaseException:
        _end(shards)
        raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _end(shards: Shards) -> None:
    shards.stop()
    if dist.is_initialized():
        dist.destroy_process_group()
