"""What a stage trains, of a model whose parameter shapes are known: decided once, with its errors.

Globs choose modules, LoRA adds adapters to linear layers, the rows of `<im_start>` and `<im_end>` may train
alone, `param_groups` set their own rates, and quantized weights have no gradient.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import JsonValue

from llava_recipes.errors import KeyPath, Problem
from llava_recipes.plan.arguments import is_of_matrices
from llava_recipes.plan.deepspeed import offload_device, zero_stage
from llava_recipes.plan.types import ParamGroupPlan, StagePlan
from llava_recipes.recipe.globs import (
    Decision,
    Freeze,
    check_ranges,
    decide,
    explain_glob,
    fold_layers,
    match_glob,
    split_glob,
    summarize_modules,
    tree_of,
)
from llava_recipes.recipe.schema import Lora, ParamGroup, Quantization, Stage, Train

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""By canonical name."""
AnyStage: TypeAlias = Stage | StagePlan
Groups: TypeAlias = Sequence[ParamGroup | ParamGroupPlan]

ADAPTER = re.compile(r"\.lora_[A-Za-z_]+\.")

EMBEDDINGS = "language_model.embed_tokens.weight"
IMAGE_TOKENS = "image_tokens"
"""The root of the embeddings of `<im_start>` and `<im_end>` where they train alone."""
IMAGE_TOKENS_WEIGHT = "image_tokens.weight"
NUM_TOKENS = 2
"""`<im_start>` and `<im_end>`."""

BLOCK = 64
"""Weights in 4 bits that share one scale."""
SCALES_BLOCK = 256
"""Scales that share one scale, with `double_quant`."""

StoredType = Literal["nf4", "fp4", "int8"]

_EMBEDDINGS = ("embed_tokens", "position_embedding")
_LAYER = re.compile(r"\.\d+\.")
_NUM_SHOWN = 3


@dataclass(frozen=True)
class Trains:
    """What trains and what does not, including adapters."""

    decision: Decision
    shapes: Shapes
    base_shapes: Shapes
    """Those of the model without adapters."""
    modules: tuple[str, ...]
    """The shortest list of modules that covers exactly what trains; globs for adapters."""

    def count(self, names: Collection[str]) -> int:
        """Parameters under these names."""
        return sum(math.prod(self.shapes[name]) for name in names)

    def count_trainable(self) -> int:
        return self.count(self.decision.trainable)


def what_trains(shapes: Shapes, stage: AnyStage) -> Trains:
    """What a stage trains; `shapes` are those of the model without adapters."""
    if trains_image_tokens(stage) and EMBEDDINGS in shapes:
        shapes = {**shapes, IMAGE_TOKENS_WEIGHT: (NUM_TOKENS, shapes[EMBEDDINGS][1])}
    decision = decide(shapes, freeze=stage.freeze, trainable=stage.trainable)
    if stage.lora is None:
        return Trains(decision, shapes, shapes, summarize_modules(decision.trainable, shapes))
    targets = lora_targets(linear_weights(shapes), stage.lora)
    adapters = adapter_shapes(shapes, targets, stage.lora)
    whole = decide_with_lora(decision, targets=targets, adapters=adapters, lora=stage.lora)
    in_full = [name for name in whole.trainable if name not in adapters]
    modules = (*summarize_modules(in_full, shapes), *summarize_adapters(adapters))
    return Trains(whole, {**shapes, **adapters}, shapes, modules)


def trains_image_tokens(stage: AnyStage) -> bool:
    """Whether a stage trains these rows alone: where a glob of `trainable` starts with their name."""
    return any(split_glob(glob)[0] == IMAGE_TOKENS for glob in stage.trainable)


def linear_weights(shapes: Shapes) -> tuple[str, ...]:
    """The weights of linear layers, without embeddings and a SigLIP tower's head, which never runs."""
    return tuple(
        name
        for name, shape in shapes.items()
        if name.endswith(".weight")
        and len(shape) == 2
        and name.split(".")[-2] not in _EMBEDDINGS
        and not name.startswith("vision_tower.head.")
    )


def lora_targets(linear: Collection[str], lora: Lora) -> tuple[str, ...]:
    """The linear weights that get adapters: outside the language model only those whose root a glob names."""
    linear = tuple(linear)
    targets = {name for glob in dict.fromkeys(lora.modules) for name in _reached(glob, linear)}
    return tuple(name for name in linear if name in targets)


def _reached(glob: str, linear: tuple[str, ...]) -> list[str]:
    """The linear weights that a glob adapts."""
    roots = ("language_model", split_glob(glob)[0])
    return [name for name in tree_of(linear).matched(glob) if name.split(".", 1)[0] in roots]


def adapter_shapes(shapes: Shapes, targets: Collection[str], lora: Lora) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters that adapters add, by canonical name."""
    added: dict[str, tuple[int, ...]] = {}
    for name in targets:
        module, (num_out, num_in) = name.removesuffix(".weight"), shapes[name]
        added[f"{module}.lora_A.weight"] = (lora.r, num_in)
        added[f"{module}.lora_B.weight"] = (num_out, lora.r)
        if lora.use_dora:
            added[f"{module}.lora_magnitude_vector.weight"] = (num_out,)
    return added


def decide_with_lora(
    decision: Decision, *, targets: Collection[str], adapters: Collection[str], lora: Lora
) -> Decision:
    """The decision with adapters, which train, and with the biases that `lora.bias` selects."""
    names = {*decision.trainable, *decision.frozen}
    modules = {name.removesuffix(".weight") for name in targets}
    roots = {name.split(".")[0] for name in targets}
    biases = {
        name
        for name in names
        if name.endswith("bias")
        and (
            (lora.bias == "all" and name.split(".")[0] in roots)
            or (lora.bias == "lora_only" and name.removesuffix(".bias") in modules)
        )
    }
    return Decision(
        (*decision.trainable, *(name for name in decision.frozen if name in biases), *adapters),
        tuple(name for name in decision.frozen if name not in biases),
        decision.unmatched,
    )


def summarize_adapters(adapters: Iterable[str]) -> tuple[str, ...]:
    """Globs that match exactly these parameters, those outside of layers first."""
    modules = dict.fromkeys(name[: name.index(".lora_")] for name in adapters)
    return fold_layers(
        f"{module}.lora_*" for module in sorted(modules, key=lambda module: bool(_LAYER.search(module)))
    )


def groups_of(names: Collection[str], groups: Groups) -> dict[str, int]:
    """The group of each of these parameters: the first with a glob that matches it."""
    tree, found = tree_of(names), dict[str, int]()
    for index, group in enumerate(groups):
        for glob in dict.fromkeys(group.modules):
            for name in tree.matched(glob):
                found.setdefault(name, index)
    return found


def quantized_weights(shapes: Shapes) -> tuple[str, ...]:
    """The weights that `quantization` quantizes: those of linear layers inside the language model."""
    return tuple(name for name in linear_weights(shapes) if name.startswith("language_model."))


def stored_type(quantization: Quantization) -> StoredType:
    return quantization.type if quantization.bits == 4 else "int8"


def quantized_bytes(quantization: Quantization, shapes: Shapes, names: Collection[str]) -> int:
    """Bytes of these weights with their scales: one per block in 4 bits, one per row in 8."""
    num_weights = sum(math.prod(shapes[name]) for name in names)
    if quantization.bits == 8:
        return num_weights + 4 * sum(shapes[name][0] for name in names)
    num_scales = num_weights / BLOCK
    scales = num_scales * (1 + 4 / SCALES_BLOCK) if quantization.double_quant else num_scales * 4
    return int(num_weights / 2 + scales)


def describe_quantization(quantization: Quantization) -> str:
    """In words: `4 bits, nf4, scales quantized too`."""
    if quantization.bits == 8:
        return "8 bits"
    return f"4 bits, {quantization.type}" + (", scales quantized too" if quantization.double_quant else "")


def tuning_problems(
    trains: Trains, stage: AnyStage, *, quantized: bool, stage_path: KeyPath
) -> Iterator[Problem]:
    """Errors in `freeze`, `trainable`, `lora` and `param_groups` of the stage at `stage_path`.

    `quantized` says that the language model is quantized.
    """
    yield from freezing_problems(
        trains.decision,
        trains.base_shapes,
        freeze=stage.freeze,
        trainable=stage.trainable,
        has_lora=stage.lora is not None,
        stage_path=stage_path,
    )
    if stage.lora is not None:
        yield from _lora_problems(trains, stage.lora, freeze=stage.freeze, stage_path=stage_path)
    yield from _image_token_problems(trains, stage, stage_path=stage_path)
    yield from _param_group_problems(trains, stage.param_groups, stage_path=stage_path)
    if quantized:
        yield from _quantization_problems(trains, stage, stage_path=stage_path)


def freezing_problems(
    decision: Decision,
    names: Collection[str],
    *,
    freeze: Freeze,
    trainable: tuple[str, ...],
    has_lora: bool,
    stage_path: KeyPath,
) -> Iterator[Problem]:
    """Globs that match none of these canonical parameter names, and a stage in which nothing trains."""
    for key, globs in (("freeze", freeze if isinstance(freeze, tuple) else ()), ("trainable", trainable)):
        for index, glob in enumerate(globs):
            path: KeyPath = (*stage_path, key, index)
            if glob in decision.unmatched:
                yield explain_glob(glob, names, key=key, path=path)
            else:
                yield from check_ranges(glob, names, key=key, path=path)
    if not decision.unmatched and not decision.trainable and not has_lora:
        yield Problem(
            "nothing trains in this stage",
            code="nothing-trains",
            path=(*stage_path, "trainable" if trainable else "freeze"),
            found="every parameter is frozen",
            hint="name what trains, for example `trainable: [projector]`",
        )


def _lora_problems(trains: Trains, lora: Lora, *, freeze: Freeze, stage_path: KeyPath) -> Iterator[Problem]:
    """Globs of `lora.modules` that match no linear layer, or one that trains in full."""
    shapes, trainable = trains.base_shapes, frozenset(trains.decision.trainable)
    linear, tree = linear_weights(shapes), tree_of(shapes)
    for index, glob in enumerate(lora.modules):
        path: KeyPath = (*stage_path, "lora", "modules", index)
        if not tree.matched(glob):
            yield explain_glob(glob, shapes, key="modules", path=path)
            continue
        reached = _reached(glob, linear)
        in_full = [name for name in reached if name in trainable]
        if not reached:
            yield Problem(
                f'glob "{glob}" in `modules` matches no linear layer',
                code="lora-without-linear-layers",
                path=path,
                hint="LoRA adapts linear layers, for example those of `language_model`; those of "
                "vision_tower, projector and lm_head only where a glob starts with their name",
            )
        elif in_full:
            yield Problem(
                f'glob "{glob}" in `modules` adapts what trains in full',
                code="lora-on-trained-modules",
                path=path,
                found=_first_of(in_full),
                hint=_freezing_hint(lora, freeze),
            )


def _first_of(weights: Sequence[str], noun: str = "weight") -> str:
    """`1 weight, x.weight`, or `3 weights, the first x.weight`."""
    return (
        f"1 {noun}, {weights[0]}" if len(weights) == 1 else f"{len(weights)} {noun}s, the first {weights[0]}"
    )


def _freezing_hint(lora: Lora, freeze: Freeze) -> str:
    if freeze != "all":
        return "write `freeze: all`, and in `trainable` only what trains besides LoRA"
    if "modules" in lora.model_fields_set:
        return "remove it here, or from `trainable`"
    return "remove it from `trainable`: modules that LoRA adapts stay frozen"


def _image_token_problems(trains: Trains, stage: AnyStage, *, stage_path: KeyPath) -> Iterator[Problem]:
    """Rows that would train twice: alone and with all others."""
    if {IMAGE_TOKENS_WEIGHT, EMBEDDINGS} <= set(trains.decision.trainable):
        index = next(
            index for index, glob in enumerate(stage.trainable) if split_glob(glob)[0] == IMAGE_TOKENS
        )
        yield Problem(
            "`image_tokens` are rows of language_model.embed_tokens, which trains in full",
            code="image-tokens-train-already",
            path=(*stage_path, "trainable", index),
            hint="remove it here; the two rows train with the others",
        )


def _param_group_problems(trains: Trains, groups: Groups, *, stage_path: KeyPath) -> Iterator[Problem]:
    """Globs that match nothing or nothing that trains, and parameters that two groups claim."""
    claimed: dict[str, int] = {}
    names, trainable = trains.shapes, frozenset(trains.decision.trainable)
    tree = tree_of(names)
    for index, group in enumerate(groups):
        path: KeyPath = (*stage_path, "param_groups", index, "modules")
        mine: set[str] = set()
        for number, glob in enumerate(group.modules):
            matched = tree.matched(glob)
            if not matched:
                yield explain_glob(glob, names, key="modules", path=(*path, number))
            elif trainable.isdisjoint(matched):
                yield Problem(
                    f'glob "{glob}" in `modules` matches only frozen modules',
                    code="parameter-group-is-frozen",
                    path=(*path, number),
                    hint=f'add "{glob}" to `trainable`, or remove it here',
                )
            else:
                taken = [name for name in matched if name in trainable and name in claimed]
                if taken:
                    yield _explain_claimed(glob, taken, claimed, (*path, number))
                mine.update(matched)
        claimed |= {name: index for name in mine & trainable if name not in claimed}


def _explain_claimed(glob: str, taken: Sequence[str], claimed: Mapping[str, int], path: KeyPath) -> Problem:
    shown = ", ".join(taken[:_NUM_SHOWN]) + (", …" if len(taken) > _NUM_SHOWN else "")
    others = ", ".join(f"param_groups[{index}]" for index in sorted({claimed[name] for name in taken}))
    return Problem(
        f'glob "{glob}" in `modules` claims parameters of another group',
        code="parameter-groups-overlap",
        path=path,
        found=f"{shown}: in {others} too",
        hint="let each parameter be in one group",
    )


def optimizer_problems(
    train: Train, groups: Groups, deepspeed: dict[str, JsonValue] | None, *, stage_path: KeyPath
) -> Iterator[Problem]:
    """What an optimizer cannot go with: groups of the recipe, or weights that DeepSpeed joins and splits."""
    optim, path, usual = train.optim, (*stage_path, "train", "optim"), "write `optim: adamw_torch`"
    zero = zero_stage(deepspeed)
    is_joined = deepspeed is not None and (zero > 0 or train.bf16 or train.fp16)
    if groups and is_of_matrices(optim):
        yield Problem(
            f"`optim: {optim}` makes its own parameter groups, and cannot use `param_groups`",
            code="optimizer-makes-its-own-groups",
            path=path,
            hint=f"{usual} under `train:`, or remove `param_groups`",
        )
    if is_joined and is_of_matrices(optim):
        yield Problem(
            f"`optim: {optim}` needs whole matrices, which DeepSpeed joins and splits",
            code="optimizer-needs-whole-matrices",
            path=path,
            hint=f"{usual} under `train:`, or `deepspeed: none`",
        )
    elif is_joined and re.search("8bit|ademamix", optim) and train.save_strategy != "no":
        yield Problem(
            "the optimizer's state cannot be saved in checkpoints",
            code="optimizer-not-storable",
            path=path,
            found=f"{optim}: its blocks go across the weights that DeepSpeed joins",
            hint=f'{usual}, or `deepspeed: none`; or `save_strategy: "no"`, with which an interrupted run '
            "starts again at step 0",
        )
    if optim == "adagrad" and zero > 0 and offload_device(deepspeed, "offload_optimizer") == "none":
        yield Problem(
            "DeepSpeed replaces `optim: adagrad`, and forgets its groups and its schedule",
            code="optimizer-replaced",
            path=path,
            hint=f"{usual} under `train:`, or `deepspeed: none`",
        )


def _quantization_problems(trains: Trains, stage: AnyStage, *, stage_path: KeyPath) -> Iterator[Problem]:
    """Quantized weights that would train in full, though they have no gradient."""
    trainable = frozenset(trains.decision.trainable)
    in_full = [name for name in quantized_weights(trains.base_shapes) if name in trainable]
    if not in_full:
        return
    globs = [index for index, glob in enumerate(stage.trainable) if match_glob(glob, in_full[0])]
    freezing = "remove it here, and write" if globs else "write `freeze: all`, with"
    yield Problem(
        "a quantized language model cannot train in full",
        code="quantized-model-trains-in-full",
        path=(*stage_path, "trainable", globs[0]) if globs else (*stage_path, "freeze"),
        found=_first_of(in_full, "quantized weight"),
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
    """DoRA, ZeRO-3 or an `init_from` that a quantized language model does not support."""
    if quantization.bits == 8 and stage.lora is not None and stage.lora.use_dora:
        yield Problem(
            "DoRA supports 4 bits, not 8",
            code="dora-with-8-bits",
            path=(*stage_path, "lora", "use_dora"),
            hint="remove `use_dora`, or write `bits: 4` in `model.language_model.quantization`",
            on_key=True,
        )
    if zero_stage(stage.deepspeed) == 3:
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
                found=f"the stage starts from {folder}, which LoRA trains",
                hint="write `init_from:` with a stage that trains the projector, or train this stage with a "
                "recipe without `quantization`",
            )
