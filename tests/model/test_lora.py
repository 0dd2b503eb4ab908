"""Adapters: counted as they are built, only for the layers named, merged without a change in the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from llava_recipes.errors import RecipeError
from llava_recipes.model.assemble import assemble
from llava_recipes.model.lora import (
    PEFT_KEYS,
    freeze_model,
    inject_lora,
    is_adapter,
    read_scale,
    write_adapter,
)
from llava_recipes.model.weight_names import canonical_parameters
from llava_recipes.model.weights import load_trained, trainable_state, write_trained
from llava_recipes.plan.trainable import what_trains
from llava_recipes.recipe.schema import Lora, Stage
from tests.model.plans import plan_of
from tests.plan.recipes import STAGE

ROOT = Path(__file__).parents[2]

CHOICES: list[dict[str, Any]] = [
    {},
    {"r": 4, "use_dora": True},
    {"r": 3, "modules": ["vision_tower.encoder.layers.{0..1}", "language_model.layers.1.mlp"], "bias": "all"},
    {"r": 2, "modules": ["lm_head", "projector.2", "vision_tower"], "bias": "lora_only", "use_rslora": True},
    {"r": 2, "modules": ["**.q_proj"]},
]


def adapted(lora: Lora, *trainable: str) -> LlavaForConditionalGeneration:
    model = assemble(plan_of(), dtype=torch.float32).model
    targets = inject_lora(model, lora, seed=1)
    freeze_model(model, freeze="all", trainable=trainable, lora=lora, targets=targets)
    return model


def stir(model: LlavaForConditionalGeneration) -> None:
    """Give adapters weights that do something; a fresh one gives zero."""
    torch.manual_seed(3)
    for name, parameter in canonical_parameters(model).items():
        if is_adapter(name):
            parameter.data.add_(torch.randn_like(parameter) * 0.1)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_what_a_plan_counts_is_what_is_built(choice: dict[str, Any]) -> None:
    lora = Lora.model_validate_json(json.dumps(choice))
    base = assemble(plan_of(), dtype=torch.float32).model
    shapes = {name: tuple(parameter.shape) for name, parameter in canonical_parameters(base).items()}
    stage = Stage.model_validate_json(json.dumps({**STAGE, "trainable": [], "lora": choice}))
    trains = what_trains(shapes, stage)
    built = {
        name: tuple(parameter.shape)
        for name, parameter in canonical_parameters(adapted(lora)).items()
        if parameter.requires_grad
    }
    assert {name: trains.shapes[name] for name in trains.decision.trainable} == built
    assert trains.count_trainable() == sum(torch.Size(shape).numel() for shape in built.values())


def test_parts_other_than_the_language_model_are_adapted_by_name_alone() -> None:
    names = [name for name in canonical_parameters(adapted(Lora(modules=("**",)))) if is_adapter(name)]
    assert {name.split(".")[0] for name in names} == {"language_model"}
    model = adapted(Lora(modules=("vision_tower.**.q_proj",)))
    names = [name for name in canonical_parameters(model) if is_adapter(name)]
    assert {name.split(".")[0] for name in names} == {"vision_tower"}


def test_no_linear_layer_is_an_error() -> None:
    model = assemble(plan_of(), dtype=torch.float32).model
    with pytest.raises(RecipeError, match="matches no linear layer"):
        inject_lora(model, Lora(modules=("language_model.norm",)), seed=0)


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_merged_run_gives_the_same_logits(use_dora: bool, use_rslora: bool, tmp_path: Path) -> None:
    lora = Lora(r=4, alpha=6, dropout=0.0, use_dora=use_dora, use_rslora=use_rslora)
    model = adapted(lora, "projector")
    stir(model)
    state = trainable_state(model)
    write_trained(state, tmp_path)
    write_adapter(state, tmp_path, lora, base="base", num_layers=2)

    merged = assemble(plan_of(), dtype=torch.float32).model
    before = logits(merged)
    named = load_trained(merged, tmp_path)
    assert not any(map(is_adapter, canonical_parameters(merged)))
    assert {"projector.0.weight", "language_model.layers.1.mlp.up_proj.weight"} <= set(named)
    assert (logits(model) - before).abs().max() > 1e-3
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-5, atol=1e-5)


def test_adapters_for_another_model_are_refused(tmp_path: Path) -> None:
    lora = Lora(r=4)
    state = trainable_state(adapted(lora))
    foreign = {name.replace("layers.1", "layers.7"): tensor for name, tensor in state.items()}
    write_trained(foreign, tmp_path)
    model = assemble(plan_of(), dtype=torch.float32).model
    with pytest.raises(RecipeError, match="cannot be read"):
        load_trained(model, tmp_path)
    write_adapter(foreign, tmp_path, lora, base="base", num_layers=2)
    with pytest.raises(RecipeError, match=r"it has no language_model\.layers\.7"):
        load_trained(model, tmp_path)


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (("language_model.**.q_proj",), ["q_proj"]),
        (("language_model.layers.0.**.q_proj",), ["model.layers.0.self_attn.q_proj"]),
        (("lm_head",), ["lm_head"]),
    ],
)
def test_the_adapters_config_names_its_layers(
    modules: tuple[str, ...], expected: list[str], tmp_path: Path
) -> None:
    lora = Lora(modules=modules)
    write_adapter(trainable_state(adapted(lora)), tmp_path, lora, base="base", num_layers=2)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == expected
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.") for name in names)


GOLDEN_ADAPTERS = ROOT / "tests" / "golden" / "07_stage2" / "lora" / "adapter_config.json"
"""Written by peft 0.8.2, which writes every key that it knows."""


def test_the_known_keys_are_those_that_peft_0_8_2_writes() -> None:
    written = json.loads(GOLDEN_ADAPTERS.read_text())
    assert PEFT_KEYS.keys() == written.keys()
    chosen = {"base_model_name_or_path", "inference_mode", "lora_alpha", "peft_type", "target_modules"}
    chosen |= {"task_type"}
    # Its rank is the default, and everything else was left at its default there.
    assert {key: PEFT_KEYS[key] for key in written.keys() - chosen} == {
        key: value for key, value in written.items() if key not in chosen
    }


@pytest.mark.parametrize(
    ("choice", "more"),
    [
        ({}, {"lora_dropout": 0.05}),
        ({"dropout": 0.0}, {}),
        ({"r": 8, "alpha": 8, "dropout": 0.0, "bias": "all"}, {"bias": "all"}),
        ({"dropout": 0.0, "use_rslora": True}, {"use_rslora": True}),
    ],
    ids=str,
)
def test_the_originals_peft_knows_every_key(
    choice: dict[str, Any], more: dict[str, Any], tmp_path: Path
) -> None:
    """It raises TypeError for a key that it doesn't know, whatever the value."""
    lora = Lora.model_validate_json(json.dumps({"modules": ["language_model.**.q_proj"], **choice}))
    write_adapter(trainable_state(adapted(lora)), tmp_path, lora, base="base", num_layers=2)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written.keys() <= PEFT_KEYS.keys()
    assert written == {
        "base_model_name_or_path": "base",
        "inference_mode": True,
        "lora_alpha": lora.alpha,
        "peft_type": "LORA",
        "r": lora.r,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
        **more,
    }
    assert_peft_reads(tmp_path, lora)


def test_dora_is_said_and_so_refused_by_the_originals_peft(tmp_path: Path) -> None:
    """Without the key it would merge the adapters as if they were plain ones, silently."""
    lora = Lora(modules=("language_model.**.q_proj",), use_dora=True)
    write_adapter(trainable_state(adapted(lora)), tmp_path, lora, base="base", num_layers=2)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written.keys() - PEFT_KEYS.keys() == {"use_dora"} and written["use_dora"] is True
    assert_peft_reads(tmp_path, lora)


def assert_peft_reads(folder: Path, lora: Lora) -> None:
    """What is left out is the default of today's peft as well."""
    from peft import LoraConfig

    found = LoraConfig.from_pretrained(str(folder))
    assert isinstance(found, LoraConfig)
    assert (found.r, found.lora_alpha, found.lora_dropout) == (lora.r, lora.alpha, lora.dropout)
    assert (found.bias, found.use_dora, found.use_rslora) == (lora.bias, lora.use_dora, lora.use_rslora)
    assert (found.fan_in_fan_out, found.modules_to_save, found.init_lora_weights) == (False, None, True)
    scale = lora.alpha / (lora.r**0.5 if lora.use_rslora else lora.r)
    assert read_scale(folder / "adapter_config.json", ()) == pytest.approx(scale)


def logits(model: LlavaForConditionalGeneration) -> torch.Tensor:
    ids = torch.arange(5, 17).view(1, 12)
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, is_image=torch.zeros_like(ids, dtype=torch.bool)).logits
    return found
