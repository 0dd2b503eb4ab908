"""Which part of a model learns what, how fast, and which words of the recipe decided it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from llava_recipes.plan.trainable import (
    ADAPTER,
    IMAGE_TOKENS,
    StoredType,
    Trains,
    groups_of,
    quantized_weights,
    stored_type,
)
from llava_recipes.plan.types import StagePlan
from llava_recipes.recipe.globs import ROOTS, tree_of
from llava_recipes.recipe.schema import Quantization

DType = Literal["float32", "bfloat16", "float16", "nf4", "fp4", "int8"]

DTYPES: Mapping[str, DType] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""What torch calls the precisions of a recipe."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One module of a stage, as large as one rule reaches."""

    module: str
    num_parameters: int
    trains: bool
    rule: Annotated[str, Field(description="The words of the recipe that decided it.")]
    learning_rate: Annotated[
        float | None, Field(description="Peak learning rate; None where nothing trains.")
    ]
    weight_decay: Annotated[float | None, Field(description="Weight decay of what is not a bias or a norm.")]
    num_decayed: Annotated[int, Field(description="Parameters that decay; biases and norms never do.")]
    dtype: Annotated[DType, Field(description="How the weights are held on the GPU.")]
    masters: Annotated[bool, Field(description="Whether the optimizer holds a float32 copy besides.")]


@dataclass(frozen=True)
class _Words:
    """What a recipe says of parameters, by their names: the first glob of each kind that matches them."""

    trainable: Mapping[str, str]
    freeze: Mapping[str, str]
    group: Mapping[str, int]


@dataclass(frozen=True)
class _Fate:
    """What a parameter shares with others of the same assignment."""

    trains: bool
    rule: str
    learning_rate: float | None
    weight_decay: float | None
    dtype: DType
    masters: bool


def assign(
    stage: StagePlan, trains: Trains, quantization: Quantization | None = None
) -> tuple[Assignment, ...]:
    """The module tree of a stage, adapters included, cut where the fate of the parameters differs."""
    shapes, trainable = trains.shapes, frozenset(trains.decision.trainable)
    stored = None if quantization is None else stored_type(quantization)
    small = frozenset(quantized_weights(trains.base_shapes)) if stored else frozenset[str]()
    words = _Words(
        _first_globs(stage.trainable, shapes),
        _first_globs(stage.freeze, shapes) if isinstance(stage.freeze, tuple) else {},
        groups_of(shapes, stage.param_groups),
    )
    known: dict[_Fate, _Fate] = {}
    # Few fates are shared by many names: each is one object, so that it is compared at once.
    fates = {
        name: known.setdefault(fate, fate)
        for name in shapes
        for fate in [_fate(name, name in trainable, stage, words, stored if name in small else None)]
    }
    grouped: dict[str, list[str]] = {}
    for name, module in _owners(fates).items():
        grouped.setdefault(module, []).append(name)
    return tuple(
        Assignment(
            module=module,
            num_parameters=sum(math.prod(shapes[name]) for name in names),
            num_decayed=sum(math.prod(shapes[name]) for name in names if decays(name))
            if fates[names[0]].weight_decay
            else 0,
            **vars(fates[names[0]]),
        )
        for module, names in grouped.items()
    )


def decays(name: str) -> bool:
    """Whether weight decay reaches this parameter: not a bias, not the weight of a norm."""
    *owners, leaf = name.split(".")
    return "bias" not in leaf and not any("norm" in owner for owner in owners[-1:])


def is_held_in_float32(name: str, *, trains: bool, stage: StagePlan) -> bool:
    """Whether a parameter is float32 on the GPU although the stage computes in half precision.

    Without DeepSpeed what trains is its own master, and projector and image newline are never cast.
    """
    return stage.deepspeed is None and (trains or name.split(".", 1)[0] in ("projector", "image_newline"))


def _first_globs(globs: Sequence[str], names: Collection[str]) -> dict[str, str]:
    tree, found = tree_of(names), dict[str, str]()
    for glob in dict.fromkeys(globs):
        for name in tree.matched(glob):
            found.setdefault(name, glob)
    return found


def _fate(name: str, trains: bool, stage: StagePlan, words: _Words, stored: StoredType | None) -> _Fate:
    rule = _rule(name, trains, stage, words)
    held = is_held_in_float32(name, trains=trains, stage=stage)
    given = stage.train.training_arguments.get("weight_decay")
    rate, decay = stage.train.learning_rate, float(given) if isinstance(given, (int, float)) else 0.0
    number = words.group.get(name) if trains else None
    if number is not None:
        group = stage.param_groups[number]
        rate, decay, rule = group.learning_rate, group.weight_decay, f"{rule}, param_groups[{number}]"
    return _Fate(
        trains=trains,
        rule=rule,
        learning_rate=rate if trains else None,
        weight_decay=decay if trains else None,
        dtype=stored or ("float32" if held else DTYPES[stage.train.precision]),
        masters=trains and stage.deepspeed is not None,
    )


def _rule(name: str, trains: bool, stage: StagePlan, words: _Words) -> str:
    """The words that decided a parameter's fate: a glob, the word of `freeze`, or LoRA."""
    if stage.lora is not None and ADAPTER.search(name):
        return f"lora, r {stage.lora.r}"
    if name in words.trainable:
        return f'trainable "{words.trainable[name]}"'
    frozen = words.freeze.get(name)
    if trains and (frozen is not None or stage.freeze == "all"):
        return f"lora, bias {stage.lora.bias}" if stage.lora is not None else "lora"
    if isinstance(stage.freeze, tuple):
        return "in no glob of `freeze`" if frozen is None else f'freeze "{frozen}"'
    return f"freeze: {stage.freeze}"


def _owners(fates: Mapping[str, _Fate]) -> dict[str, str]:
    """For each parameter the largest module that shares its fate; a root at most."""
    shared: dict[str, _Fate | None] = {}
    for name, fate in fates.items():
        for module in _modules(name):
            shared[module] = fate if shared.get(module, fate) is fate else None
    return {
        name: next(module for module in (*_modules(name), name) if module == name or shared[module] is fate)
        for name, fate in fates.items()
    }


def _modules(name: str) -> tuple[str, ...]:
    segments = name.split(".")
    assert segments[0] in (*ROOTS, IMAGE_TOKENS), name
    return tuple(".".join(segments[:end]) for end in range(1, len(segments)))
