"""Freeze a model as a stage says."""

from __future__ import annotations

from torch import nn

from llava_recipes.model.names import canonical_parameters
from llava_recipes.plan.trainable import ADAPTER, decide_with_lora, freezing_problems
from llava_recipes.recipe.errors import RecipeError
from llava_recipes.recipe.globs import Decision, Freeze, decide
from llava_recipes.recipe.schema import Lora


def freeze_model(
    model: nn.Module,
    *,
    freeze: Freeze,
    trainable: tuple[str, ...],
    lora: Lora | None = None,
    targets: tuple[str, ...] = (),
) -> Decision:
    """Set `requires_grad` on every parameter by the stage's globs, and say what was decided.

    With `lora` the model holds adapters beside the weights `targets`.
    Raises RecipeError when a glob matches nothing, or nothing is left to train.
    """
    parameters = canonical_parameters(model)
    adapters = [name for name in parameters if ADAPTER.search(name)]
    base = [name for name in parameters if not ADAPTER.search(name)]
    decision = decide(base, freeze=freeze, trainable=trainable)
    if lora is not None:
        decision = decide_with_lora(decision, targets=targets, adapters=adapters, lora=lora)
    problems = tuple(
        freezing_problems(
            decision,
            base,
            freeze=freeze,
            trainable=trainable,
            has_lora=lora is not None,
            stage_path=("stages", 0),
        )
    )
    if problems:
        raise RecipeError(*problems)
    for name in decision.trainable:
        parameters[name].requires_grad_(True)
    for name in decision.frozen:
        parameters[name].requires_grad_(False)
    return decision
