"""A language model held in few bits: which weights, how many bytes, and what cannot be done with it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

from llava_recipes.freeze import decide, match_glob
from llava_recipes.plan.activations import zero_stage
from llava_recipes.plan.lora import Shapes, linear_weights
from llava_recipes.plan.types import StagePlan
from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.schema import Quantization, Stage

BLOCK = 64
"""Weights of 4 bits that share one scale."""
SCALES_BLOCK = 256
"""Scales that share one scale, with `double_quant`."""

StoredType = Literal["nf4", "fp4", "int8"]


def quantized_weights(shapes: Shapes) -> tuple[str, ...]:
    """The weights that few bits hold: those of linear layers inside the language model."""
    return tuple(name for name in linear_weights(shapes) if name.startswith("language_model."))


def stored_type(quantization: Quantization) -> StoredType:
    return quantization.type if quantization.bits == 4 else "int8"


def quantized_bytes(quantization: Quantization, shapes: Shapes, names: Collection[str]) -> int:
    """Bytes of these weights with their scales: one for each block in 4 bits, for each row in 8."""
    num_weights = sum(math.prod(shapes[name]) for name in names)
    if quantization.bits == 8:
        return num_weights + 4 * sum(shapes[name][0] for name in names)
    num_scales = num_weights / BLOCK
    scales = num_scales * (1 + 4 / SCALES_BLOCK) if quantization.double_quant else num_scales * 4
    return int(num_weights / 2 + scales)


def describe(quantization: Quantization) -> str:
    """In words: `4 bits, nf4, scales quantized too`."""
    if quantization.bits == 8:
        return "8 bits"
    return f"4 bits, {quantization.type}" + (", scales quantized too" if quantization.double_quant else "")


def quantization_problems(
    shapes: Shapes, stage: Stage | StagePlan, *, stage_path: KeyPath
) -> Iterator[Problem]:
    """A quantized weight that trains in full: it has no gradient."""
    decision = decide(shapes, freeze=stage.freeze, trainable=stage.trainable)
    trains = frozenset(decision.trainable)
    in_full = [name for name in quantized_weights(shapes) if name in trains]
    if not in_full:
        return
    globs = [index for index, glob in enumerate(stage.trainable) if match_glob(glob, in_full[0])]
    freezing = "remove it here, and write" if globs else "write `freeze: all`, with"
    yield Problem(
        "a quantized language model cannot train in full",
        code="quantized-model-trains-in-full",
        path=(*stage_path, "trainable", globs[0]) if globs else (*stage_path, "freeze"),
        found=f"{len(in_full)} weight(s) in few bits, the first {in_full[0]}",
        hint=f"{freezing} `lora: {{modules: [language_model]}}` in the stage for adapters; or remove "
        "`quantization`",
    )


def quantized_stage_problems(
    quantization: Quantization,
    stage: StagePlan,
    earlier: Sequence[StagePlan | None],
    *,
    stage_path: KeyPath,
) -> Iterator[Problem]:
    """An engine, a kind of adapters or a beginning that a quantized language model does not go with."""
    if quantization.bits == 8 and stage.lora is not None and stage.lora.use_dora:
        yield Problem(
            "DoRA goes with 4 bits, and not with 8",
            code="dora-with-8-bits",
            path=(*stage_path, "lora", "use_dora"),
            hint="remove `use_dora`, or write `bits: 4` in `model.language_model.quantization`",
            on_key=True,
        )
    if zero_stage(stage) == 3:
        yield Problem(
            "ZeRO-3 cannot split a quantized language model",
            code="zero3-with-quantization",
            path=(*stage_path, "deepspeed"),
            found=stage.deepspeed_source,
            hint="write `deepspeed: zero2`, or `deepspeed: none`",
        )
    adapted = {other.output_dir for other in earlier if other is not None and other.lora is not None}
    for folder in stage.starts_from:
        if folder in adapted:
            yield Problem(
                "adapters of an earlier stage cannot be merged into a quantized language model",
                code="merge-into-quantized-model",
                path=(*stage_path, "init_from"),
                found=f"it starts from {folder}, which LoRA trains",
                hint="write `init_from:` with a stage that trains the projector, or train this stage with a "
                "recipe without `quantization`",
            )
