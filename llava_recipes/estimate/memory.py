"""Memory of one GPU while a stage trains, part by part, counted from the plan.

The peak is the largest of four moments: the end of the forward pass (all activations and the logits), the
start of the backward pass (all activations, no gradients unless micro batches are accumulated), its end (all
gradients, one layer's activations), and the optimizer step. ZeRO splits over the processes the optimizer
(stage 1), also the gradients (2), and also the weights (3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from llava_recipes.deepspeed_presets import OFFLOADS
from llava_recipes.estimate.activations import ActivationModel, ForwardPass
from llava_recipes.estimate.assignment import stays_float32
from llava_recipes.estimate.cost import GIB
from llava_recipes.plan.deepspeed import offload_device, zero_block, zero_stage
from llava_recipes.plan.trainable import Trains, quantized_bytes, quantized_weights
from llava_recipes.plan.types import StagePlan
from llava_recipes.recipe.schema import Quantization

CONTEXT_BYTES = int(0.6 * GIB)
"""CUDA context, kernels and cuBLAS workspaces of one process. An assumption."""
NETWORK_BYTES = int(0.8 * GIB)
"""NCCL's channels with several processes. An assumption."""
SLACK = 0.05
"""Share of activations that the caching allocator loses to fragmentation. An assumption."""

_STATE_BYTES: Mapping[str, float] = {
    "adafactor": 0.01,
    "adagrad": 4,
    "sgd": 0,
    "lion_32bit": 4,
    "paged_lion_32bit": 4,
    "lion_8bit": 1,
    "paged_lion_8bit": 1,
    "adamw_8bit": 2,
    "adamw_bnb_8bit": 2,
    "paged_adamw_8bit": 2,
    "adamw_torch_8bit": 2,
    "adamw_torch_4bit": 1,
    "ademamix": 12,
    "ademamix_8bit": 3,
    "rmsprop": 4,
    "rmsprop_bnb": 4,
    "rmsprop_bnb_32bit": 4,
}
_ADAM_BYTES = 8.0
_FUSED = ("adamw_torch_fused",)
_LIVE_PARAMETERS = _SUB_GROUP = 1_000_000_000


def state_bytes(stage: StagePlan) -> float:
    """Bytes of an optimizer's states for each parameter that trains."""
    return _STATE_BYTES.get(str(stage.train.training_arguments["optim"]), _ADAM_BYTES)


@dataclass(frozen=True, kw_only=True)
class MemoryPart:
    name: str
    num_bytes: int
    formula: Annotated[str, Field(description="How it was counted, in numbers.")]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The memory in use on a GPU at one moment of a step."""

    name: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The peak of one GPU for batches of one padded length."""

    length: Annotated[int, Field(description="Tokens of every sample of the batch, including padding.")]
    num_labels: Annotated[int, Field(description="Label tokens of the batch.")]
    moment: Annotated[str, Field(description="The moment of the peak.")]
    parts: Annotated[tuple[MemoryPart, ...], Field(description="Memory in use at that moment.")]
    total_bytes: int
    moments: Annotated[tuple[Moment, ...], Field(description="The moments that the peak is chosen from.")]
    activations_bytes: Annotated[
        int, Field(description="Kept by the forward for the backward pass, whatever the moment.")
    ]
    logits_bytes: Annotated[
        int, Field(description="Scores at the label positions, with softmax and gradient.")
    ]
    host_bytes: Annotated[int, Field(description="Main memory for what DeepSpeed offloads, per process.")]


@dataclass(frozen=True)
class Counts:
    """Parameters of a stage by how they are stored."""

    total: int
    trainable: int
    frozen_float32: int
    """Frozen, but float32 in a stage of half precision."""
    quantized: int = 0
    """Frozen and quantized."""
    quantized_bytes: int = 0
    largest_quantized: int = 0
    """Parameters of the largest quantized weight: each is restored while it is used."""


def count_parameters(stage: StagePlan, trains: Trains, quantization: Quantization | None = None) -> Counts:
    frozen = trains.decision.frozen
    float32 = [name for name in frozen if stays_float32(name, trains=False, stage=stage)]
    small = quantized_weights(trains.base_shapes) if quantization is not None else ()
    return Counts(
        total=trains.count(trains.shapes),
        trainable=trains.count_trainable(),
        frozen_float32=trains.count(float32),
        quantized=trains.count(small),
        quantized_bytes=quantized_bytes(quantization, trains.shapes, small) if quantization else 0,
        largest_quantized=max((trains.count([name]) for name in small), default=0),
    )


class MemoryModel:
    """Counts one stage's memory on each of `world_size` GPUs."""

    def __init__(
        self, stage: StagePlan, counts: Counts, activations: ActivationModel, *, hidden: int, world_size: int
    ) -> None:
        self._stage, self._counts, self._activations = stage, counts, activations
        self._hidden, self._world_size = hidden, world_size
        self._zero = zero_stage(stage.deepspeed)
        self._options = zero_block(stage.deepspeed)
        self._width = 4 if stage.train.precision == "fp32" else 2
        self._checkpoints = stage.train.gradient_checkpointing
        self._word = f"{self._width} bytes"
        optimizer, weights = (offload_device(stage.deepspeed, block) for block in OFFLOADS)
        self._offloads = optimizer != "none" and self._zero > 0
        self._offloads_weights = weights != "none" and self._zero == 3

    def count(self, *, length: int, num_labels: int, num_images: int) -> Memory:
        """Memory at the peak. `num_labels` and `num_images` are those of one batch, each crop an image."""
        batch = ForwardPass(self._stage.train.per_device_train_batch_size, length, num_labels, num_images)
        activations = self._activations.count(batch)
        always = [*self._weights(), *self._optimizer(), *self._buffers(), *self._allowances()]
        accumulates = self._stage.train.gradient_accumulation_steps > 1 or self._zero == 3
        gradients, copies = list(self._gradients()), list(self._copies())
        before = gradients if accumulates else []
        # Recomputation also copies again, a layer at a time.
        kept = [] if self._checkpoints else copies
        forward = _part("activations", activations.kept, "kept for the backward pass")
        moments = {
            "end of the forward pass": [
                *(*before, *copies, forward),
                _part("logits", activations.logits, "at the label positions, with softmax and its gradient"),
            ],
            "start of the backward pass": [
                *(*before, *kept, forward),
                _part("one layer again", activations.recomputed, "computed again for its backward pass"),
                _part("working room", activations.working, "gradients in flight inside a layer"),
            ],
            "end of the backward pass": [
                *gradients,
                _part("activations", activations.layer, "of one layer, with its working room"),
            ],
            "optimizer step": [*gradients, *self._step()],
        }
        totals = {name: _total([*always, *_with_slack(parts)]) for name, parts in moments.items()}
        moment = max(totals, key=lambda name: totals[name])
        return Memory(
            length=length,
            num_labels=num_labels,
            moment=moment,
            parts=tuple(part for part in (*always, *_with_slack(moments[moment])) if part.num_bytes),
            total_bytes=totals[moment],
            moments=tuple(Moment(name=name, num_bytes=size) for name, size in totals.items()),
            activations_bytes=activations.kept,
            logits_bytes=activations.logits,
            host_bytes=self._host_bytes(),
        )

    def _weights(self) -> Iterator[MemoryPart]:
        counts, width = self._counts, self._width
        if self._zero == 3:
            share = counts.total * width // self._world_size
            if not self._offloads_weights:
                yield _part("weights", share, f"{counts.total:,} × {self._word} / {self._world_size}")
            live = min(counts.total, self._int_option("stage3_max_live_parameters", _LIVE_PARAMETERS))
            if self._world_size > 1 or self._offloads_weights:
                yield _part("gathered weights", live * width, f"at most {live:,} × {self._word}")
            return
        frozen = counts.total - counts.trainable - counts.frozen_float32 - counts.quantized
        if counts.quantized:
            bits = 8 * counts.quantized_bytes / counts.quantized
            words = f"{counts.quantized:,} × {bits:.2f} bits, with their scales"
            yield _part("quantized weights", counts.quantized_bytes, words)
            largest = counts.largest_quantized
            yield _part("one weight whole", largest * width, f"{largest:,} × {self._word}, while it is used")
        yield _part("frozen weights", frozen * width, f"{frozen:,} × {self._word}")
        yield _part("frozen projector", counts.frozen_float32 * 4, f"{counts.frozen_float32:,} × 4 bytes")
        trained = width if self._stage.deepspeed is not None else 4
        yield _part("trained weights", counts.trainable * trained, f"{counts.trainable:,} × {trained} bytes")

    def _copies(self) -> Iterator[MemoryPart]:
        if self._stage.deepspeed is None and self._width == 2:
            trainable = self._counts.trainable
            yield _part("autocast copies", trainable * 2, f"{trainable:,} × 2 bytes, of trained weights")

    def _optimizer(self) -> Iterator[MemoryPart]:
        if self._offloads:
            return
        per_parameter, words = self._optimizer_bytes()
        split = self._world_size if self._zero else 1
        size = int(self._counts.trainable * per_parameter) // split
        yield _part("optimizer", size, f"{self._counts.trainable:,} × ({words}){_over(split)}")

    def _optimizer_bytes(self) -> tuple[float, str]:
        states = state_bytes(self._stage)
        if self._stage.deepspeed is None:
            return states, f"{states:g} bytes of states"
        return states + 4, f"4 bytes of float32 masters + {states:g} of states"

    def _gradients(self) -> Iterator[MemoryPart]:
        trainable, width = self._counts.trainable, self._width
        if self._stage.deepspeed is None:
            yield _part("gradients", trainable * 4, f"{trainable:,} × 4 bytes")
            if self._world_size > 1:
                yield _part("gradient buckets", trainable * 4, f"{trainable:,} × 4 bytes, of DDP")
        elif not (self._offloads and self._zero >= 2):
            split = self._world_size if self._zero >= 2 else 1
            yield _part(
                "gradients", trainable * width // split, f"{trainable:,} × {self._word}{_over(split)}"
            )

    def _step(self) -> Iterator[MemoryPart]:
        """Additional memory of the optimizer step: gradients in float32, and Adam's intermediate values."""
        if self._offloads:
            return
        split = self._world_size if self._zero else 1
        masters = self._stage.deepspeed is not None and self._width == 2
        fused = self._stage.train.training_arguments["optim"] in _FUSED
        per_parameter = 4 * masters + 4 * (not fused)
        number = self._counts.trainable // split
        if self._zero == 3:
            number = min(number, self._int_option("sub_group_size", _SUB_GROUP))
        words = "float32 gradients and intermediate values" if masters else "intermediate values"
        yield _part("step", number * per_parameter, f"{number:,} × {per_parameter} bytes, {words}")

    def _buffers(self) -> Iterator[MemoryPart]:
        if not self._zero:
            return
        bucket = self._int_option("reduce_bucket_size", self._hidden**2, default=500_000_000)
        copies = 2 if self._options.get("overlap_comm") is not False else 1
        num_numbers, words = copies * bucket, f"{copies} × {bucket:,} to reduce"
        if self._zero == 3:
            prefetch = self._int_option(
                "stage3_prefetch_bucket_size", int(0.9 * self._hidden**2), default=50_000_000
            )
            num_numbers, words = num_numbers + prefetch, f"{words}, {prefetch:,} to prefetch"
        yield _part("DeepSpeed buffers", num_numbers * self._width, f"{words}; {self._word} each")

    def _allowances(self) -> Iterator[MemoryPart]:
        yield _part("CUDA context", CONTEXT_BYTES, "assumed")
        if self._world_size > 1:
            yield _part("NCCL", NETWORK_BYTES, "assumed")

    def _host_bytes(self) -> int:
        size = 0.0
        if self._offloads:
            gradients = 4 if self._zero >= 2 else 0
            size += self._counts.trainable * (self._optimizer_bytes()[0] + gradients) / self._world_size
        if self._offloads_weights:
            size += self._counts.total * self._width / self._world_size
        return int(size)

    def _int_option(self, key: str, auto: int, *, default: int | None = None) -> int:
        """A size from the DeepSpeed config; `auto` is the Trainer's value for "auto"."""
        value = self._options.get(key, auto if default is None else default)
        return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else auto


def _with_slack(parts: list[MemoryPart]) -> list[MemoryPart]:
    """Temporary memory with the allocator's loss."""
    return [*parts, _part("allocator", int(SLACK * _total(parts)), f"{SLACK:.0%} of what comes and goes")]


def _part(name: str, num_bytes: int, formula: str) -> MemoryPart:
    return MemoryPart(name=name, num_bytes=num_bytes, formula=formula)


def _total(parts: list[MemoryPart]) -> int:
    return sum(part.num_bytes for part in parts)


def _over(split: int) -> str:
    return f" / {split}" if split > 1 else ""
