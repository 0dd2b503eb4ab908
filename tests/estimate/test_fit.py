"""Proposals keep the global batch, fit when they are followed, and are what they say."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
import yaml
from _pytest.mark.structures import ParameterSet

from llava_recipes.estimate.cost import GPUS, find_gpu
from llava_recipes.estimate.fit import Proposal, propose
from tests.estimate.estimates import VICUNA_7B, VICUNA_13B, estimator_of, stage1_values
from tests.laws import only_long

FULL: dict[str, Any] = {"trainable": ["projector", "language_model", "lm_head"], "data__template": "v1"}


def proposed(values: dict[str, Any], gpu: str, *, world_size: int = 8) -> Proposal | None:
    plan, estimator = estimator_of(values, world_size=world_size, gpu=gpu)
    return propose(estimator, plan.stages[0], gpu=find_gpu(gpu), world_size=world_size)


def followed(values: dict[str, Any], proposal: Proposal) -> dict[str, Any]:
    """The recipe with the proposed lines laid over it."""
    changed = json.loads(json.dumps(values))
    for stage in yaml.safe_load("\n".join(proposal.lines))["stages"]:
        changed["stages"][0]["train"] |= stage.get("train", {})
        changed["stages"][0]["deepspeed"] = stage.get("deepspeed", changed["stages"][0]["deepspeed"])
    return changed  # type: ignore[no-any-return]


def test_what_fits_stays_as_it_is() -> None:
    proposal = proposed(stage1_values(), "a100-80g")
    assert proposal is not None and proposal.changes == () and proposal.lines == ()


# The smallest, a middle and the largest card with everything; the others where most has to be proposed.
CARDS = ("t4", "a100-40g", "b200")


def cases() -> list[ParameterSet]:
    found = []
    for gpu, model, stage, world_size in product(GPUS, (VICUNA_7B, VICUNA_13B), ("1", "2"), (1, 8)):
        is_tried = gpu in CARDS or (model, stage, world_size) == (VICUNA_13B, "2", 8)
        name = f"{gpu}-{model.rpartition('/')[2]}-stage{stage}-{world_size}"
        marks = () if is_tried else (only_long,)
        stages = {} if stage == "1" else FULL
        found.append(pytest.param(gpu, model, stages, world_size, id=name, marks=marks))
    return found


@pytest.mark.parametrize(("gpu", "model", "stage", "world_size"), cases())
def test_a_proposal_fits_when_it_is_followed(
    gpu: str, model: str, stage: dict[str, Any], world_size: int
) -> None:
    values = stage1_values(model, **stage)
    proposal = proposed(values, gpu, world_size=world_size)
    if proposal is None:
        assert GPUS[gpu].memory_gib < 45
        return
    if not proposal.changes:
        return
    before, _ = estimator_of(values, world_size=world_size)
    plan, estimator = estimator_of(followed(values, proposal), world_size=world_size, gpu=gpu)
    assert plan.stages[0].train.global_batch_size == before.stages[0].train.global_batch_size
    assert estimator.estimate().stages[0].fits == (proposal.fit,)
    assert proposal.fit.verdict == "fits"


def test_a_smaller_micro_batch_accumulates_and_says_what_that_means() -> None:
    proposal = proposed(stage1_values(), "l40s")
    assert proposal is not None
    train = yaml.safe_load("\n".join(proposal.lines))["stages"][0]["train"]
    assert (train["per_device_train_batch_size"], train["global_batch_size"]) == (8, 256)
    assert any("device_batch" in note for note in proposal.notes)
    assert f"stages.align.train.per_device_train_batch_size={train['per_device_train_batch_size']}" in (
        proposal.overrides
    )


def test_full_training_that_does_not_fit_is_sharded() -> None:
    proposal = proposed(stage1_values(VICUNA_13B, **FULL), "a100-40g")
    assert proposal is not None
    assert yaml.safe_load("\n".join(proposal.lines))["stages"][0]["deepspeed"] == "zero3"


def test_main_memory_is_asked_for_where_weights_go_there() -> None:
    proposal = proposed(stage1_values(VICUNA_13B, **FULL), "rtx4090", world_size=1)
    assert proposal is not None
    zero = yaml.safe_load("\n".join(proposal.lines))["stages"][0]["deepspeed"]["zero_optimization"]
    assert zero["stage"] == 3 and zero["offload_param"]["device"] == "cpu"
    # Twelve bytes of optimizer, four of gradients for what trains; two of weights for all.
    trained = 13_350_839_296 - 303_507_456
    wanted = f"{(16 * trained + 2 * 13_350_839_296) / 2**30:.0f} GiB of main memory"
    assert any(wanted in note for note in proposal.notes)


def test_the_offload_preset_counts_as_zero_3_in_main_memory() -> None:
    values = stage1_values(VICUNA_13B, deepspeed="zero3_offload", **FULL)
    _, estimator = estimator_of(values, world_size=2)
    memory = estimator.estimate().stages[0].usual
    assert memory.host_bytes > 0
    assert not {"weights", "optimizer", "gradients"} & {part.name for part in memory.parts}
    proposal = proposed(values, "rtx4090", world_size=2)
    assert proposal is None or proposal.fit.verdict == "fits"


def test_what_fits_nowhere_has_no_proposal() -> None:
    values = stage1_values(VICUNA_13B, deepspeed="none")
    del values["stages"][0]["train"]["bf16"]
    assert proposed(values, "t4", world_size=1) is None
