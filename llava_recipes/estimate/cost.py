"""GPUs, and what a stage costs on them: tokens, operations, hours, and bytes on disk.

The memory of a GPU is what `torch.cuda.get_device_properties` reports, less than its name says. Rates are the
vendors' for dense matrix products with accumulation in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

from pydantic import Field

from llava_recipes.deepspeed_presets import OFFLOADS
from llava_recipes.plan.deepspeed import offload_device, zero_stage
from llava_recipes.plan.outline import Dimensions
from llava_recipes.plan.types import Precision, StagePlan
from llava_recipes.recipe.renames import nearest

GIB = 2**30

TEXT_TOKENS: Mapping[str, tuple[int, int]] = {"plain": (29, 28), "v1": (350, 200)}
"""Text tokens of a usual sample by template, and how many of them are labels. An assumption; `v1` stands for
all templates except `plain`."""

EFFICIENCY: Mapping[str, float] = {
    "the language model is frozen": 0.45,
    "the language model is frozen, and gathered for each pass by ZeRO stage 3": 0.35,
    "the language model trains": 0.40,
    "the language model trains under ZeRO stage 3": 0.35,
    "optimizer or weights are offloaded": 0.20,
}
"""Share of an A100's rate that a kind of stage reaches. An assumption."""


@dataclass(frozen=True)
class Gpu:
    """One GPU. Rates are in TFLOP/s; 0 where the chip has no such unit."""

    name: str
    title: str
    memory_gib: float
    half_tflops: float
    """bf16 and fp16."""
    tf32_tflops: float
    fp32_tflops: float
    has_bf16: bool = True
    efficiency: float = 1.0
    """The share of its rate that a program reaches, relative to an A100. An assumption."""

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * GIB)

    def tflops(self, precision: Precision, *, tf32: bool) -> float:
        """The highest rate in this precision, in TFLOP/s."""
        if precision != "fp32":
            return self.half_tflops
        return max(self.tf32_tflops, self.fp32_tflops) if tf32 else self.fp32_tflops


_ALL = (
    Gpu("a100-40g", "A100 40 GB", 39.39, 312, 156, 19.5),
    Gpu("a100-80g", "A100 80 GB", 79.14, 312, 156, 19.5),
    # Faster chips wait longer for memory and network, and reach less of their rate.
    Gpu("h100", "H100 80 GB", 79.11, 989, 494, 67, efficiency=0.8),
    Gpu("h200", "H200 141 GB", 139.72, 989, 494, 67, efficiency=0.85),
    Gpu("b200", "B200 180 GB", 178.35, 2250, 1125, 75, efficiency=0.7),
    Gpu("a6000", "RTX A6000 48 GB", 47.53, 155, 77, 38.7, efficiency=0.95),
    Gpu("a40", "A40 48 GB", 44.42, 150, 75, 37.4, efficiency=0.95),
    Gpu("l40s", "L40S 48 GB", 44.39, 362, 183, 91.6, efficiency=0.65),
    Gpu("a10", "A10 24 GB", 21.99, 125, 62.5, 31.2, efficiency=0.7),
    Gpu("l4", "L4 24 GB", 22.03, 121, 60, 30.3, efficiency=0.55),
    Gpu("rtx3090", "RTX 3090 24 GB", 23.69, 71, 35.6, 35.6),
    Gpu("rtx4090", "RTX 4090 24 GB", 23.63, 165, 82.6, 82.6, efficiency=0.9),
    Gpu("rtx5090", "RTX 5090 32 GB", 31.36, 209, 105, 105, efficiency=0.9),
    Gpu("v100-16g", "V100 16 GB", 15.77, 125, 0, 15.7, has_bf16=False, efficiency=0.7),
    Gpu("v100-32g", "V100 32 GB", 31.73, 125, 0, 15.7, has_bf16=False, efficiency=0.7),
    Gpu("t4", "T4 16 GB", 14.57, 65, 0, 8.1, has_bf16=False, efficiency=0.6),
)
GPUS: Mapping[str, Gpu] = MappingProxyType({gpu.name: gpu for gpu in _ALL})

_ALSO_CALLED: Mapping[str, str] = MappingProxyType(
    {
        "a100": "a100-80g",
        "a100-80gb": "a100-80g",
        "a100-40gb": "a100-40g",
        "h100-80g": "h100",
        "h100-80gb": "h100",
        "h200-141g": "h200",
        "rtxa6000": "a6000",
        "rtx-a6000": "a6000",
        "a6000-48g": "a6000",
        "3090": "rtx3090",
        "rtx-3090": "rtx3090",
        "4090": "rtx4090",
        "rtx-4090": "rtx4090",
        "5090": "rtx5090",
        "rtx-5090": "rtx5090",
        "v100": "v100-32g",
    }
)


class UnknownGpuError(ValueError):
    """The table has no GPU of this name; the message names a similar one."""


def find_gpu(name: str) -> Gpu:
    """The GPU of a name in any spelling: `A100-80GB`, `rtx_4090`, `h100`.

    Raises UnknownGpuError.
    """
    word = name.strip().lower().replace("_", "-").replace(" ", "-").removeprefix("nvidia-")
    word = _ALSO_CALLED.get(word, word)
    if word in GPUS:
        return GPUS[word]
    near = nearest(word, (*GPUS, *_ALSO_CALLED))
    advice = f"did you mean {near}?" if near else f"known: {', '.join(GPUS)}"
    raise UnknownGpuError(f"unknown GPU {name!r}; {advice}")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Tokens of one sample and of the whole stage."""

    image: Annotated[
        int,
        Field(
            description="Image tokens of one sample; one image each is assumed, with `anyres` a photo "
            "of 640 × 480 pixels."
        ),
    ]
    crops: Annotated[int, Field(description="Images of one sample that the tower sees.")]
    text: Annotated[
        int, Field(description="Text tokens of a usual sample; assumed by template, or as given.")
    ]
    labels: Annotated[
        int, Field(description="Label tokens of a usual sample; assumed by template, or as given.")
    ]
    usual_length: Annotated[int, Field(description="Tokens of a usual sample.")]
    samples: Annotated[
        int | None, Field(description="Samples drawn in all; None while they are not counted.")
    ]
    usual: Annotated[int | None, Field(description="Tokens of all samples at the usual length.")]
    from_images: Annotated[int | None, Field(description="Image tokens of all samples.")]
    at_most: Annotated[int | None, Field(description="Tokens of all samples if each filled `max_length`.")]


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Floating-point operations, and hours on a GPU."""

    flops: Annotated[float | None, Field(description="Operations of all GPUs, recomputation included.")]
    kind: Annotated[str, Field(description="What the assumed efficiency depends on.")]
    efficiency: Annotated[
        float | None, Field(description="Assumed share of the GPU's rate; None without a GPU.")
    ]
    hours: float | None


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes that a stage writes."""

    checkpoint_bytes: Annotated[int, Field(description="One checkpoint: trained weights, optimizer.")]
    num_checkpoints: Annotated[int | None, Field(description="Written over the whole stage.")]
    num_kept: Annotated[int | None, Field(description="On disk at the end.")]
    peak_bytes: Annotated[
        int | None, Field(description="Checkpoints on disk at once, and the final weights.")
    ]
    final_bytes: Annotated[int, Field(description="The trained weights at the end of the stage.")]


@dataclass(frozen=True)
class TrainedWeights:
    """How many matrix weights of each part train, and the first layers with a backward pass."""

    language: int
    tower: int
    projector: int
    head: int
    first_layer: int
    first_tower_layer: int


def count_tokens(
    stage: StagePlan, sizes: Dimensions, *, text_tokens: int | None, label_tokens: int | None
) -> Tokens:
    """Tokens of a stage; assumed where `text_tokens` or `label_tokens` are None."""
    counts = stage.data.image_counts
    image, crops = (counts.usual_tokens, counts.usual_crops) if counts else (sizes.image_tokens, 1)
    # The tower sees a whole image even where `max_length` cuts its tokens.
    image, crops = (min(image, stage.data.max_length), crops) if stage.data.may_have_images else (0, 0)
    text, labels = TEXT_TOKENS["plain" if stage.data.template == "plain" else "v1"]
    text = text if text_tokens is None else text_tokens
    labels = min(labels, text) if label_tokens is None else min(label_tokens, text)
    length = min(image + text, stage.data.max_length)
    text = length - image
    samples = count_samples(stage)
    return Tokens(
        image=image,
        crops=crops,
        text=text,
        labels=min(labels, text),
        usual_length=length,
        samples=samples,
        usual=None if samples is None else samples * length,
        from_images=None if samples is None else samples * image,
        at_most=None if samples is None else samples * stage.data.max_length,
    )


def count_samples(stage: StagePlan) -> int | None:
    """Samples drawn over the whole stage."""
    train, num_samples = stage.train, stage.data.num_samples
    if train.num_train_epochs is None:
        return None if train.max_steps is None else train.max_steps * train.global_batch_size
    return None if num_samples is None else round(num_samples * train.num_train_epochs)


def sample_flops(stage: StagePlan, sizes: Dimensions, tokens: Tokens, trained: TrainedWeights) -> float:
    """Operations of one sample of the usual length, forward and backward."""
    checkpoints = stage.train.gradient_checkpointing
    length = tokens.usual_length
    weights = 2 * sizes.hidden * (sizes.attention + sizes.keys) + 3 * sizes.hidden * sizes.inner
    layer = 2 * length * weights + 2 * sizes.attention * length**2
    in_graph = sizes.num_layers - trained.first_layer
    total = layer * (sizes.num_layers + in_graph * (1 + checkpoints)) + 2.0 * length * trained.language
    head = 2 * sizes.hidden * sizes.vocab * tokens.labels
    total += 2 * head + 2 * tokens.labels * trained.head
    if not tokens.crops:
        return total
    patches, width, inner = sizes.tower_tokens, sizes.tower_hidden, sizes.tower_inner
    layer = 2 * patches * (4 * width**2 + 2 * width * inner) + 4 * width * patches**2
    in_graph = sizes.num_tower_layers - trained.first_tower_layer
    crop = layer * (sizes.num_tower_layers + in_graph * (1 + checkpoints)) + 2 * patches * trained.tower
    return total + tokens.crops * (crop + 2 * sizes.image_tokens * trained.projector * 3)


def estimate_compute(
    stage: StagePlan,
    sizes: Dimensions,
    tokens: Tokens,
    trained: TrainedWeights,
    *,
    gpu: Gpu | None,
    world_size: int,
) -> Compute:
    """Operations of a stage, and its hours where the GPU is known."""
    per_sample = sample_flops(stage, sizes, tokens, trained)
    flops = None if tokens.samples is None else per_sample * tokens.samples
    kind = _kind(stage, trained)
    if gpu is None:
        return Compute(flops=flops, kind=kind, efficiency=None, hours=None)
    tf32 = stage.train.training_arguments.get("tf32") is True
    efficiency = EFFICIENCY[kind] * gpu.efficiency
    rate = gpu.tflops(stage.train.precision, tf32=tf32) * 1e12 * efficiency * world_size
    hours = None if flops is None else flops / rate / 3600
    return Compute(flops=flops, kind=kind, efficiency=efficiency, hours=hours)


def estimate_disk(stage: StagePlan, *, num_trainable: int, num_projector: int, state_bytes: float) -> Disk:
    """Bytes that a stage writes.

    `num_projector` are the trainable parameters of the projector, `state_bytes` the optimizer's for each one.
    """
    # Whatever it trains in, a checkpoint has the weights in float32.
    checkpoint = num_trainable * 4 + int(num_trainable * state_bytes)
    width = 2 if stage.deepspeed is not None and stage.train.precision != "fp32" else 4
    written, kept = _count_checkpoints(stage)
    rest = num_trainable if num_trainable > num_projector else 0
    # With LoRA the original's files are written too.
    rest *= 2 if stage.lora is not None else 1
    final = (2 * num_projector + rest) * width
    at_once = None if written is None or kept is None else min(written, kept + 1) * checkpoint + final
    return Disk(
        checkpoint_bytes=checkpoint,
        num_checkpoints=written,
        num_kept=kept,
        peak_bytes=at_once,
        final_bytes=final,
    )


def _count_checkpoints(stage: StagePlan) -> tuple[int | None, int | None]:
    """Checkpoints written over the stage, including the one at the end, and those kept."""
    train, arguments = stage.train, stage.train.training_arguments
    strategy, every = arguments["save_strategy"], arguments["save_steps"]
    written: int | None = 0
    if strategy == "steps" and isinstance(every, int):
        written = None if train.max_steps is None else math.ceil(train.max_steps / every)
    elif strategy == "epoch":
        per_epoch = train.steps_per_epoch
        written = None if train.max_steps is None or not per_epoch else math.ceil(train.max_steps / per_epoch)
    limit = arguments.get("save_total_limit")
    kept = written if not isinstance(limit, int) or written is None else min(written, limit)
    return written, kept


def _kind(stage: StagePlan, trained: TrainedWeights) -> str:
    frozen, frozen_zero3, trains, trains_zero3, offloads = EFFICIENCY
    if any(offload_device(stage.deepspeed, block) != "none" for block in OFFLOADS):
        return offloads
    if zero_stage(stage.deepspeed) == 3:
        return trains_zero3 if trained.language else frozen_zero3
    return trains if trained.language else frozen
