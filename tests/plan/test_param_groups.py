"""Groups with a learning rate of their own: what a plan says of them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from llava_recipes.plan.trainable import groups_of
from tests.plan.recipes import compiled, problems_of, stage_values

PROJECTOR = {"modules": ["projector"], "learning_rate": 2e-5}


def with_groups(*groups: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return stage_values(freeze=["vision_tower"], trainable=[], param_groups=list(groups), **changes)


def test_a_group_takes_what_it_does_not_say_from_train() -> None:
    decay = {"modules": ["language_model.layers.{0..1}"], "weight_decay": 0.1}
    (stage,) = compiled(with_groups(PROJECTOR, decay, train__weight_decay=0.02)).stages
    projector, layers = stage.param_groups
    assert (projector.learning_rate, projector.weight_decay) == (2e-5, 0.02)
    assert (layers.learning_rate, layers.weight_decay) == (1e-3, 0.1)
    assert projector.num_parameters == 32 * 64 + 64 + 64 * 64 + 64
    # Four attention matrices, three of the MLP, two norms; two layers of them.
    assert layers.num_parameters == 2 * (4 * 64 * 64 + 3 * 64 * 96 + 2 * 64)
    names = ["projector.0.bias", "language_model.layers.2.mlp.up_proj.weight"]
    assert groups_of(names, stage.param_groups) == {"projector.0.bias": 0}


def test_a_weight_decay_of_zero_is_one() -> None:
    group = {"modules": ["projector"], "weight_decay": 0.0}
    (stage,) = compiled(with_groups(group, train__weight_decay=0.1)).stages
    assert stage.param_groups[0].weight_decay == 0.0


@pytest.mark.parametrize(
    ("groups", "place", "message"),
    [
        (
            [{"modules": ["language_model.layer"], "learning_rate": 1e-4}],
            (0, "modules", 0),
            'glob "language_model.layer" in `modules` matches no module',
        ),
        (
            [PROJECTOR, {"modules": ["lm_head", "vision_tower"], "learning_rate": 1e-4}],
            (1, "modules", 1),
            'glob "vision_tower" in `modules` matches only frozen modules',
        ),
        (
            [PROJECTOR, {"modules": ["**.bias"], "weight_decay": 0.1}],
            (1, "modules", 0),
            'glob "**.bias" in `modules` claims parameters of another group',
        ),
    ],
)
def test_groups_that_do_not_fit_are_refused(
    groups: list[dict[str, Any]], place: tuple[int | str, ...], message: str
) -> None:
    (problem,) = problems_of(with_groups(*groups))
    assert problem.path == ("stages", 0, "param_groups", *place)
    assert problem.message == message


def test_an_optimizer_with_groups_of_its_own_is_refused() -> None:
    (problem,) = problems_of(with_groups(PROJECTOR, train__optim="galore_adamw"))
    assert problem.path == ("stages", 0, "train", "optim")
