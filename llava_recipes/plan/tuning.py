"""What a stage trains of a model whose parameter shapes are known, and every glob of it that does not fit."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from llava_recipes.plan.image_tokens import image_token_problems, with_image_tokens
from llava_recipes.plan.lora import (
    ADAPTER,
    Shapes,
    adapter_shapes,
    decide_with_lora,
    linear_weights,
    lora_problems,
    lora_targets,
    summarize_adapters,
)
from llava_recipes.plan.param_groups import param_group_problems
from llava_recipes.plan.types import StagePlan
from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.globs import (
    Decision,
    Freeze,
    check_ranges,
    decide,
    explain_glob,
    summarize_modules,
)
from llava_recipes.recipe.schema import Stage


@dataclass(frozen=True)
class Trains:
    """What trains and what does not, adapters included."""

    decision: Decision
    shapes: Shapes
    modules: tuple[str, ...]
    """The shortest list of names that holds exactly what trains; globs for adapters."""

    @property
    def base_shapes(self) -> Shapes:
        """Those of the model without adapters."""
        return {name: shape for name, shape in self.shapes.items() if not ADAPTER.search(name)}

    def count(self, names: Collection[str]) -> int:
        """Parameters under these names."""
        return sum(math.prod(self.shapes[name]) for name in names)

    def count_trainable(self) -> int:
        return self.count(self.decision.trainable)


def what_trains(shapes: Shapes, stage: Stage | StagePlan) -> Trains:
    """What a stage trains. `shapes` are those of the model without adapters, by canonical name."""
    shapes = with_image_tokens(shapes, stage)
    decision = decide(shapes, freeze=stage.freeze, trainable=stage.trainable)
    if stage.lora is None:
        return Trains(decision, shapes, summarize_modules(decision.trainable, shapes))
    targets = lora_targets(linear_weights(shapes), stage.lora)
    adapters = adapter_shapes(shapes, targets, stage.lora)
    whole = decide_with_lora(decision, targets=targets, adapters=adapters, lora=stage.lora)
    in_full = [name for name in whole.trainable if name not in adapters]
    modules = (*summarize_modules(in_full, shapes), *summarize_adapters(adapters))
    return Trains(whole, {**shapes, **adapters}, modules)


def tuning_problems(shapes: Shapes, stage: Stage | StagePlan, *, stage_path: KeyPath) -> Iterator[Problem]:
    """What is wrong with `freeze`, `trainable`, `lora` and `param_groups` of a stage on this model."""
    shapes = with_image_tokens(shapes, stage)
    yield from freezing_problems(
        shapes,
        freeze=stage.freeze,
        trainable=stage.trainable,
        stage_path=stage_path,
        has_lora=stage.lora is not None,
    )
    if stage.lora is not None:
        decision = decide(shapes, freeze=stage.freeze, trainable=stage.trainable)
        yield from lora_problems(
            stage.lora, freeze=stage.freeze, shapes=shapes, decision=decision, stage_path=stage_path
        )
    trains = what_trains(shapes, stage)
    yield from image_token_problems(stage, frozenset(trains.decision.trainable), stage_path=stage_path)
    yield from param_group_problems(
        stage.param_groups, names=trains.shapes, trainable=trains.decision.trainable, stage_path=stage_path
    )


def freezing_problems(
    names: Collection[str],
    *,
    freeze: Freeze,
    trainable: tuple[str, ...],
    stage_path: KeyPath,
    has_lora: bool = False,
) -> Iterator[Problem]:
    """Globs that match nothing in these canonical parameter names, and a stage in which nothing trains."""
    decision = decide(names, freeze=freeze, trainable=trainable)
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
