"""Memory of a run with FSDP2, part by part: each phase of a step as a sum of tensors, and the phase with the most.

The phases follow `torch.distributed.fsdp.fully_shard` as `strategies/fsdp.py` calls it. Of W workers each holds 1/W of
fp32 weights, gradients and AdamW's two moments (16 bytes a weight over all). Around a layer come and go:

- its weights whole, in the compute type; with more than one worker the next layer's too, gathered ahead;
- in the backward pass its whole gradients, then an fp32 copy that is reduced and lives until the next layer's;
- what the layers that are still to be gone back through keep, with checkpoints their inputs;
- what the layer at work makes, or the loss.

The root (embedding, last norm, output layer) stays whole from the forward pass until the end of the backward pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ray_apps.train.config import TrainConfig
from ray_apps.train.plan.tally import Anatomy
from ray_apps.train.strategies.prepare import compute_dtype

FP32_BYTES = 4
MOMENTS_BYTES = 8
"""AdamW's mean of gradients and of their squares, fp32."""


@dataclass(frozen=True)
class Phase:
    """One moment of an optimiser step: bytes of a worker by part."""

    name: str
    parts: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """Sum of the parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Memory:
    """What a worker holds on its device, phase by phase, and in host memory."""

    phases: list[Phase]
    host_parts: dict[str, int]

    @property
    def peak(self) -> Phase:
        """The phase with the most."""
        return max(self.phases, key=lambda phase: phase.total_bytes)


def training_memory(anatomy: Anatomy, config: TrainConfig, stored_bytes: int) -> Memory:
    """Memory of one worker; `stored_bytes`: of one weight in the files of the base."""
    phases = list(_FsdpStep(anatomy, config).phases())
    state = {**_weights(anatomy, config), "AdamW moments": MOMENTS_BYTES * anatomy.trainable}
    host = {"while loading: the base, whole": stored_bytes * anatomy.parameters}
    if config.fsdp.cpu_offload:
        state["gradients, fp32"] = FP32_BYTES * anatomy.trainable
        host.update({f"always: {part}": size // config.worker_range[1] for part, size in state.items()})
    if config.checkpoint.asynchronous:
        copied = (FP32_BYTES + MOMENTS_BYTES) * anatomy.trainable
        host["from the first save on: the copy that is written"] = copied // config.worker_range[1]
    return Memory(phases, host)


def _weights(anatomy: Anatomy, config: TrainConfig) -> dict[str, int]:
    """Trained weights are held in fp32, frozen ones in the compute type."""
    trained = {"weights, fp32": FP32_BYTES * anatomy.trainable}
    frozen = compute_dtype(config).itemsize * (anatomy.parameters - anatomy.trainable)
    return {**trained, "frozen weights": frozen} if frozen else trained


class _FsdpStep:
    """The phases of a step once AdamW has its moments."""

    def __init__(self, anatomy: Anatomy, config: TrainConfig) -> None:
        self.anatomy = anatomy
        self.world_size = config.worker_range[1]
        self.weights = _weights(anatomy, config)
        self.compute_bytes = compute_dtype(config).itemsize
        self.reshards = config.fsdp.reshard_after_forward
        self.offloads = config.fsdp.cpu_offload
        self.accumulates = config.global_batch_size > config.micro_batch_size * config.worker_range[1]

    def phases(self) -> Iterator[Phase]:
        """All that can be the peak. Between the layers named here every part grows or shrinks evenly."""
        yield self._loss()
        last = self.anatomy.num_layers - 1
        for done in sorted({0, min(1, last), last}):
            yield self._layer_backward(done)
            yield self._layer_reduce(done)
        yield self._embedding()
        yield self._root_reduce()
        yield Phase("optimiser step", self._state(gradients=self.anatomy.trainable))

    def _state(self, gradients: int) -> dict[str, int]:
        """What is sharded; `gradients`: how many are there, over all workers."""
        if self.offloads:
            return {}
        return {
            **{part: size // self.world_size for part, size in self.weights.items()},
            "AdamW moments": MOMENTS_BYTES * self.anatomy.trainable // self.world_size,
            "gradients, fp32": FP32_BYTES * gradients // self.world_size,
        }

    def _gradients(self, layers_done: int) -> int:
        """Sharded gradients at hand: all from the second micro-batch of a step on, else those of the layers done."""
        return self.anatomy.trainable if self.accumulates else layers_done * self.anatomy.layer_trainable

    def _gathered(self, layers: int) -> int:
        """The root and `layers` layers whole."""
        return self.compute_bytes * (self.anatomy.root_parameters + layers * self.anatomy.layer_parameters)

    @property
    def _ahead(self) -> int:
        """Layers gathered ahead: one worker gathers nothing, and what was never resharded need not be."""
        return int(self.reshards and self.world_size > 1)

    def _kept(self, layers: int) -> int:
        """What `layers` layers keep between forward and backward pass, and what all of them share."""
        return self.anatomy.positions_bytes + layers * self.anatomy.layer.kept_bytes

    def _loss(self) -> Phase:
        """All layers are done; the output layer runs chunk by chunk, forwards and at once backwards."""
        layers = self.anatomy.num_layers
        return Phase(
            "loss",
            {
                **self._state(self._gradients(0)),
                "gathered weights": self._gathered(self._ahead if self.reshards else layers),
                "kept activations": self._kept(layers),
                "working set": self.anatomy.head.peak_bytes,
            },
        )

    def _layer_backward(self, done: int) -> Phase:
        """A layer's backward pass when `done` layers above it are through it."""
        left = self.anatomy.num_layers - done
        return Phase(
            f"backward pass of layer {left}",
            {
                **self._state(self._gradients(done)),
                "gathered weights": self._gathered(1 + (self._ahead if left > 1 else 0) if self.reshards else left),
                "whole gradients": self._output_gradient() + (FP32_BYTES * self.anatomy.layer_trainable if done else 0),
                "kept activations": self._kept(left - 1),
                "working set": self.anatomy.layer.peak_bytes,
            },
        )

    def _layer_reduce(self, done: int) -> Phase:
        """The layer's gradients, whole, are copied to fp32 and reduced; by then its weights are freed."""
        left = self.anatomy.num_layers - done - 1
        return Phase(
            f"reduction of layer {left + 1}",
            {
                **self._state(self._gradients(done)),
                "gathered weights": self._gathered(min(self._ahead, left) if self.reshards else left),
                "whole gradients": self._output_gradient() + self._reduction(self.anatomy.layer_trainable),
                "kept activations": self._kept(left),
                "working set": self.anatomy.input_bytes,  # the gradient of the layer's input
            },
        )

    def _embedding(self) -> Phase:
        """The last layer's gradients are being reduced while the embedding's are made."""
        anatomy = self.anatomy
        return Phase(
            "backward pass of the embedding",
            {
                **self._state(self._gradients(anatomy.num_layers)),
                "gathered weights": self._gathered(0),
                "whole gradients": self.compute_bytes * anatomy.root_trainable + FP32_BYTES * anatomy.layer_trainable,
                "kept activations": self._kept(0),
                "working set": anatomy.input_bytes,
            },
        )

    def _root_reduce(self) -> Phase:
        return Phase(
            "reduction of embedding and output layer",
            {
                **self._state(self._gradients(self.anatomy.num_layers)),
                "whole gradients": self._reduction(self.anatomy.root_trainable),
            },
        )

    def _output_gradient(self) -> int:
        """The output layer's gradient waits, whole, for the end of the backward pass."""
        return self.compute_bytes * self.anatomy.output_trainable

    def _reduction(self, gradients: int) -> int:
        """First the gradients and their fp32 copy, then that copy and this worker's part of the sum."""
        copied = (self.compute_bytes + FP32_BYTES) * gradients
        reduced = FP32_BYTES * gradients + FP32_BYTES * gradients // self.world_size
        return max(copied, reduced)
