"""Parameter groups of the optimizer: modules with a learning rate or weight decay of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from llava_recipes.model.names import canonical_name
from llava_recipes.plan.trainable import groups_of
from llava_recipes.plan.types import ParamGroupPlan

Group = dict[str, Any]
"""As torch's optimizers hold them: `params`, `lr`, `weight_decay` and what else the optimizer knows."""


def split_groups(
    optimizer: torch.optim.Optimizer, model: nn.Module, groups: Sequence[ParamGroupPlan]
) -> None:
    """Part the Trainer's two groups, with weight decay and without, by the plan's groups.

    Must run before the first step. What no group claims comes first and keeps its values: its learning rate
    is the one that is reported. Biases and norms stay without weight decay in every group.
    """
    assert not optimizer.state, "an optimizer that has stepped cannot be regrouped"
    decayed, plain = optimizer.param_groups
    named = {canonical_name(name): parameter for name, parameter in model.named_parameters()}
    index_of = groups_of(named, groups)
    membership = {id(parameter): index_of.get(name) for name, parameter in named.items()}
    rest = [_part(group, membership, None) for group in (decayed, plain)]
    parted = [*rest, *_claimed(decayed, plain, membership, groups)]
    optimizer.param_groups[:] = [group for group in parted if group["params"]]


def _claimed(
    decayed: Group, plain: Group, membership: dict[int, int | None], groups: Sequence[ParamGroupPlan]
) -> Iterator[Group]:
    for index, wanted in enumerate(groups):
        rate = wanted.learning_rate
        yield _part(decayed, membership, index) | {"lr": rate, "weight_decay": wanted.weight_decay}
        yield _part(plain, membership, index) | {"lr": rate}


def _part(group: Group, membership: dict[int, int | None], index: int | None) -> Group:
    members = [parameter for parameter in group["params"] if membership[id(parameter)] == index]
    return {**group, "params": members}
