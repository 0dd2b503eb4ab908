"""The optimizer's groups: every parameter in one, at the rate that the plan says."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llava_recipes.plan.types import ParamGroupPlan
from llava_recipes.train.trainer import split_groups


class Model(nn.Module):
    """As much of the model's names as the groups need."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.multi_modal_projector = nn.Linear(2, 2)
        self.model.language_model = nn.Module()
        self.model.language_model.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(2)])


def group(*modules: str, rate: float, decay: float) -> ParamGroupPlan:
    return ParamGroupPlan(modules=modules, learning_rate=rate, weight_decay=decay, num_parameters=None)


def test_groups_part_the_trainers_two() -> None:
    model = Model()
    weights = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    biases = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}], lr=1.0
    )
    split_groups(
        optimizer,
        model,
        [group("projector", rate=2.0, decay=0.0), group("language_model.layers.1", rate=3.0, decay=0.5)],
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        ([names[id(parameter)] for parameter in part["params"]], part["lr"], part["weight_decay"])
        for part in optimizer.param_groups
    ]
    layers = "model.language_model.layers"
    assert found == [
        ([f"{layers}.0.weight"], 1.0, 0.1),
        ([f"{layers}.0.bias"], 1.0, 0.0),
        (["model.multi_modal_projector.weight"], 2.0, 0.0),
        (["model.multi_modal_projector.bias"], 2.0, 0.0),
        ([f"{layers}.1.weight"], 3.0, 0.5),
        ([f"{layers}.1.bias"], 3.0, 0.0),
    ]


def test_a_group_without_parameters_is_left_out() -> None:
    model = Model()
    weight = model.get_parameter("model.multi_modal_projector.weight")
    parts: list[dict[str, Any]] = [{"params": [weight]}, {"params": []}]
    optimizer = torch.optim.AdamW(parts, lr=1.0)
    split_groups(optimizer, model, [group("projector", rate=2.0, decay=0.0)])
    assert [len(part["params"]) for part in optimizer.param_groups] == [1]
    assert optimizer.param_groups[0]["lr"] == 2.0
