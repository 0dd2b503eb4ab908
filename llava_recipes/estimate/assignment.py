"""What trains of each module, how fast and in which precision, and the words of the recipe that say so."""

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

DTYPE_NAMES: Mapping[str, DType] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Names in torch of the precisions of a recipe."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The largest module of a stage that one rule covers."""

    module: str
    num_parameters: int
    trains: bool
    rule: Annotated[str, Field(description="The words of the recipe that decided it.")]
    learning_rate: Annotated[
        float | None, Field(description="Peak learning rate; None where nothing trains.")
    ]
    weight_decay: Annotated[float | None, Field(description="Of what isn't a bias or a norm.")]
    num_decayed: Annotated[
        int, Field(description="Parameters with weight decay; biases and norms have none.")
    ]
    dtype: Annotated[DType, Field(description="Type of the weights on the GPU.")]
    masters: Annotated[bool, Field(description="Whether the optimizer has a float32 copy.")]


@dataclass(frozen=True)
class _Words:
    """The first glob of each kind that matches a parameter, by its name."""

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
    """The modules of a stage, including adapters, divided where the fate of parameters differs."""
    shapes, trainable = trains.shapes, frozenset(trains.decision.trainable)
    stored = None if quantization is None else stored_type(quantization)
    small = frozenset(quantized_weights(trains.base_shapes)) if stored else frozenset[str]()
    words = _Words(
        _first_globs(stage.trainable, shapes),
        _first_globs(stage.freeze, shapes) if isinstance(stage.freeze, tuple) else {},
        groups_of(shapes, stage.param_groups),
    )
    known: dict[_Fate, _Fate] = {}
    # Many names share few fates: each is one object, so that comparing is fast.
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
    """Whether this parameter decays: neither a bias nor the weight of a norm."""
    *owners, leaf = name.split(".")
    return "bias" not in leaf and not any("norm" in owner for owner in owners[-1:])


def stays_float32(name: str, *, trains: bool, stage: StagePlan) -> bool:
    """Whether a parameter is float32 on the GPU even if the stage computes in half precision.

    Without DeepSpeed what trains stays in float32, and projector and image newline are never cast.
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
    held = stays_float32(name, trains=trains, stage=stage)
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
        dtype=stored or ("float32" if held else DTYPE_NAMES[stage.train.precision]),
        masters=trains and stage.deepspeed is not None,
    )


def _rule(name: str, trains: bool, stage: StagePlan, words: _Words) -> str:
    """The words that decide a parameter's fate: a glob, the value of `freeze`, or LoRA."""
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
    """For each parameter the largest module in which all share its fate."""
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
