"""The estimate of a plan: what trains of each module, memory of a GPU, hours, disk. Counted, not measured.

An estimate isn't part of the plan: run folders are compared only by their plans.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from llava_recipes.estimate.activations import ActivationModel
from llava_recipes.estimate.assignment import Assignment, assign
from llava_recipes.estimate.cost import (
    GPUS,
    Compute,
    Disk,
    Gpu,
    Tokens,
    TrainedWeights,
    count_tokens,
    estimate_compute,
    estimate_disk,
)
from llava_recipes.estimate.memory import Memory, MemoryModel, count_parameters, state_bytes
from llava_recipes.plan.compile import Compiled
from llava_recipes.plan.outline import read_dimensions
from llava_recipes.plan.types import Plan, StagePlan

NOT_MEASURED = "not yet measured on a GPU: counted from the configs; see docs/cost.md for the formulas"

Verdict = Literal["fits", "fits at the usual length", "does not fit"]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether a stage fits on one kind of GPU."""

    gpu: str
    capacity_bytes: int
    verdict: Verdict
    usual_margin_bytes: Annotated[
        int, Field(description="Bytes left at the usual length; negative for bytes missing.")
    ]
    longest_margin_bytes: Annotated[int, Field(description="The same where every sample fills `max_length`.")]
    caution: Annotated[str | None, Field(description="Why it may not run although it fits.")]


@dataclass(frozen=True, kw_only=True)
class Otherwise:
    """Memory of a GPU with gradient checkpointing switched."""

    checkpointing: bool
    usual_bytes: int
    longest_bytes: int
    usual_activations_bytes: int
    longest_activations_bytes: int


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    name: str
    modules: tuple[Assignment, ...]
    tokens: Tokens
    usual: Annotated[Memory, Field(description="Memory of a GPU for batches of the usual length.")]
    longest: Annotated[Memory, Field(description="Memory of a GPU where every sample fills `max_length`.")]
    otherwise: Otherwise
    fits: Annotated[tuple[Fit, ...], Field(description="On the requested GPU, or on every known one.")]
    compute: Compute
    disk: Disk


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimate of each stage of a plan."""

    basis: Annotated[str, Field(description="Where the figures come from.")]
    gpu: Annotated[str | None, Field(description="The requested GPU.")]
    world_size: int
    stages: tuple[StageEstimate, ...]


@dataclass(frozen=True)
class Assumptions:
    """What the user may know better than the plan."""

    gpu: Gpu | None = None
    text_tokens: int | None = None
    label_tokens: int | None = None


class Estimator:
    """Estimates the stages of one model with known sizes, as planned or changed."""

    def __init__(self, compiled: Compiled, assumptions: Assumptions) -> None:
        assert compiled.model.outline is not None, "nothing can be counted without sizes"
        self._plan, self._assumptions = compiled.plan, assumptions
        self._sizes = read_dimensions(compiled.model.outline, compiled.plan.model)
        names = (stage.name for stage in compiled.plan.stages)
        self._trains = dict(zip(names, compiled.trains, strict=True))
        self._quantization = compiled.plan.model.language_model.quantization

    @property
    def splits_weights(self) -> bool:
        """Whether ZeRO-3 may split the weights."""
        return self._quantization is None

    def estimate(self) -> Estimate:
        gpu = self._assumptions.gpu
        return Estimate(
            basis=NOT_MEASURED,
            gpu=None if gpu is None else gpu.name,
            world_size=self._plan.world_size,
            stages=tuple(map(self.stage, self._plan.stages)),
        )

    def stage(self, stage: StagePlan) -> StageEstimate:
        tokens, trains = self.tokens(stage), self._trains[stage.name]
        usual, longest = self.memory(stage)
        gpu = self._assumptions.gpu
        trainable = trains.decision.trainable
        return StageEstimate(
            name=stage.name,
            modules=assign(stage, trains, self._quantization),
            tokens=tokens,
            usual=usual,
            longest=longest,
            otherwise=self._otherwise(stage),
            fits=tuple(judge(each, stage, usual, longest) for each in ([gpu] if gpu else GPUS.values())),
            compute=self.compute(stage),
            disk=estimate_disk(
                stage,
                num_trainable=trains.count_trainable(),
                num_projector=trains.count([name for name in trainable if name.startswith("projector.")]),
                state_bytes=state_bytes(stage),
            ),
        )

    def tokens(self, stage: StagePlan) -> Tokens:
        given = self._assumptions
        return count_tokens(
            stage, self._sizes, text_tokens=given.text_tokens, label_tokens=given.label_tokens
        )

    def memory(self, stage: StagePlan) -> tuple[Memory, Memory]:
        """Memory at the usual length and where every sample fills `max_length`."""
        tokens, trains = self.tokens(stage), self._trains[stage.name]
        model = MemoryModel(
            stage,
            count_parameters(stage, trains, self._quantization),
            ActivationModel(self._sizes, stage, trains),
            hidden=self._sizes.hidden,
            world_size=self._plan.world_size,
        )
        num_samples = stage.train.per_device_train_batch_size
        counts, longest = stage.data.image_counts, stage.data.max_length
        most_crops = counts.most_crops if counts and tokens.crops else tokens.crops
        return (
            model.count(
                length=tokens.usual_length,
                num_labels=num_samples * tokens.labels,
                num_images=num_samples * tokens.crops,
            ),
            model.count(
                length=longest,
                num_labels=num_samples * (longest - tokens.image),
                num_images=num_samples * most_crops,
            ),
        )

    def _otherwise(self, stage: StagePlan) -> Otherwise:
        arguments = stage.train.training_arguments
        checkpointing = not stage.train.gradient_checkpointing
        update = {"training_arguments": {**arguments, "activation_checkpointing": checkpointing}}
        train = stage.train.model_copy(update=update)
        usual, longest = self.memory(stage.model_copy(update={"train": train}))
        return Otherwise(
            checkpointing=checkpointing,
            usual_bytes=usual.total_bytes,
            longest_bytes=longest.total_bytes,
            usual_activations_bytes=usual.activations_bytes,
            longest_activations_bytes=longest.activations_bytes,
        )

    def compute(self, stage: StagePlan) -> Compute:
        return estimate_compute(
            stage,
            self._sizes,
            self.tokens(stage),
            self._trained(stage),
            gpu=self._assumptions.gpu,
            world_size=self._plan.world_size,
        )

    def _trained(self, stage: StagePlan) -> TrainedWeights:
        trains = self._trains[stage.name]
        shapes, trainable = trains.shapes, trains.decision.trainable
        tower, decoder = ActivationModel(self._sizes, stage, trains).graph_starts()

        def matrices(prefix: str, names: Iterable[str]) -> int:
            return sum(math.prod(shapes[n]) for n in names if n.startswith(prefix) and len(shapes[n]) == 2)

        return TrainedWeights(
            language=matrices("language_model.layers.", trainable),
            tower=matrices("vision_tower.encoder.layers.", trainable),
            projector=matrices("projector.", shapes),
            head=matrices("lm_head.", trainable),
            first_layer=decoder,
            first_tower_layer=tower,
        )


def judge(gpu: Gpu, stage: StagePlan, usual: Memory, longest: Memory) -> Fit:
    """Whether a stage fits on a GPU, at the usual and at the longest length."""
    capacity = gpu.memory_bytes
    margins = capacity - usual.total_bytes, capacity - longest.total_bytes
    verdict: Verdict = (
        "fits" if margins[1] >= 0 else "fits at the usual length" if margins[0] >= 0 else "does not fit"
    )
    return Fit(
        gpu=gpu.name,
        capacity_bytes=capacity,
        verdict=verdict,
        usual_margin_bytes=margins[0],
        longest_margin_bytes=margins[1],
        caution=_caution(gpu, stage),
    )


def _caution(gpu: Gpu, stage: StagePlan) -> str | None:
    if stage.train.precision == "bf16" and not gpu.has_bf16:
        return f"{gpu.title} has no bf16 units: write `fp16: true` in place of `bf16: true`"
    if stage.train.training_arguments.get("tf32") is True and not gpu.tf32_tflops:
        return f"{gpu.title} has no TF32 units: remove `tf32`"
    return None


class PlanReport(Plan):
    """A plan with its estimate: what `llava-recipe plan --json` prints."""

    estimate: Estimate | None = Field(
        None, description="None where a config is missing, and in the plan of a run folder."
    )
