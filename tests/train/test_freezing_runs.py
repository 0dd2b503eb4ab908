"""Every kind of stage in three steps: what is frozen stays, what trains moves, files bring it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava_recipes.recipe.globs import decide
from tests.tiny import FIXTURES, stage1_values
from tests.train.in_process import train_all, weights_of

# With `select_layer: -2` these come behind what is used.
BEHIND = ("vision_tower.encoder.layers.2.", "vision_tower.post_layernorm.")

STAGES: dict[str, dict[str, Any]] = {
    "projector, plain": {"trainable": ["projector"]},
    "projector, v1": {"trainable": ["projector"], "template": "v1"},
    "projector, llama_2": {"trainable": ["projector"], "template": "llama_2"},
    "language model": {"trainable": ["language_model", "lm_head"], "template": "v1"},
    "backbone frozen": {"trainable": ["projector", "lm_head"], "template": "v1"},
    "all but the tower": {"freeze": ["vision_tower"], "template": "v1"},
    "everything": {"freeze": "none", "template": "v1"},
    "tower": {"trainable": ["vision_tower"], "template": "v1"},
    "tower from a layer on": {
        "trainable": ["projector", "vision_tower.encoder.layers.{1..2}"],
        "template": "v1",
    },
    "norms and one layer": {
        "trainable": ["language_model.layers.*.input_layernorm", "language_model.layers.1.mlp"],
        "template": "v1",
    },
}


def kind_values(folder: Path, *, template: str = "plain", **stage: Any) -> dict[str, Any]:
    values = stage1_values(folder, max_steps=3, warmup_ratio=0.0, weight_decay=0.1)
    del values["stages"][0]["train"]["num_train_epochs"]
    values["stages"][0].pop("trainable")
    values["stages"][0] |= stage
    if template != "plain":
        data = values["stages"][0]["data"]
        data["template"] = template
        data["sources"][0]["annotations"] = str(FIXTURES / "stage2_clean.json")
    return values


@pytest.mark.parametrize("kind", STAGES)
def test_only_what_trains_moves_and_comes_back(kind: str, tmp_path: Path) -> None:
    values = kind_values(tmp_path / "run", **STAGES[kind])
    before = weights_of(values)
    (after,) = train_all(values)
    stage = values["stages"][0]
    freeze = tuple(stage["freeze"]) if isinstance(stage["freeze"], list) else stage["freeze"]
    decision = decide(before, freeze=freeze, trainable=tuple(stage.get("trainable", ())))
    assert decision.trainable and not decision.unmatched
    for name in decision.frozen:
        assert torch.equal(after[name], before[name]), name
    for name in decision.trainable:
        # A key's bias shifts all scores alike, so that nothing depends on it.
        if not name.startswith(BEHIND) and not name.endswith("k_proj.bias"):
            assert not torch.equal(after[name], before[name]), name
    again = weights_of(values, tmp_path / "run")
    assert all(torch.equal(again[name], tensor) for name, tensor in after.items())
    only_projector = {name.split(".")[0] for name in decision.trainable} == {"projector"}
    assert (tmp_path / "run" / "trained.safetensors").exists() is not only_projector
    if not only_projector:
        assert set(load_file(tmp_path / "run" / "trained.safetensors")) == set(decision.trainable)


def test_a_trained_tower_goes_on_to_the_next_stages(tmp_path: Path) -> None:
    values = kind_values(tmp_path / "one", **STAGES["tower from a layer on"])
    for number, trainable in enumerate((["language_model"], ["projector"]), 2):
        stage = json.loads(json.dumps(values["stages"][0]))
        stage |= {"name": f"stage{number}", "trainable": trainable, "output_dir": str(tmp_path / str(number))}
        values["stages"].append(stage)
    before = weights_of(values)
    one, two, three = train_all(values)
    tower = "vision_tower.encoder.layers.1.mlp.fc1.weight"
    assert not torch.equal(one[tower], before[tower])
    assert torch.equal(two[tower], one[tower]) and torch.equal(three[tower], one[tower])
    layer = "language_model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(two[layer], one[layer]) and torch.equal(three[layer], two[layer])
    assert torch.equal(two["projector.0.weight"], one["projector.0.weight"])
    # From a folder alone, with the runs that it was started from.
    again = kind_values(tmp_path / "four", trainable=["lm_head"], init_from=str(tmp_path / "3"))
    (four,) = train_all(again)
    for name, tensor in three.items():
        assert torch.equal(four[name], tensor) is (name != "lm_head.weight"), name


def test_every_group_moves_at_its_own_rate(tmp_path: Path) -> None:
    """AdamW's first step is the learning rate, whatever the gradient."""
    groups = [
        {"modules": ["vision_tower"], "learning_rate": 2e-6},
        {"modules": ["projector"], "learning_rate": 1e-3},
        {"modules": ["language_model.layers.1"], "learning_rate": 5e-5},
    ]
    values = kind_values(tmp_path / "run", template="v1", freeze="none", param_groups=groups)
    values["stages"][0]["train"] |= {"max_steps": 1, "weight_decay": 0.0, "learning_rate": 1e-2}
    before = weights_of(values)
    (after,) = train_all(values)
    for name, rate in (
        ("vision_tower.encoder.layers.1.mlp.fc1.weight", 2e-6),
        ("projector.2.weight", 1e-3),
        ("language_model.layers.1.mlp.up_proj.weight", 5e-5),
        ("language_model.layers.0.mlp.up_proj.weight", 1e-2),
        ("lm_head.weight", 1e-2),
    ):
        assert float((after[name] - before[name]).abs().max()) == pytest.approx(rate, rel=0.02), name


@pytest.mark.parametrize("switch", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_adapters_of_every_kind_are_merged_where_the_next_stage_starts(
    switch: dict[str, bool], tmp_path: Path
) -> None:
    lora = {"r": 4, "alpha": 8, "dropout": 0.0, **switch}
    values = kind_values(tmp_path / "one", template="v1", freeze="all", trainable=["projector"], lora=lora)
    second = json.loads(json.dumps(values["stages"][0]))
    second |= {"name": "next", "trainable": ["projector"], "output_dir": str(tmp_path / "two")}
    del second["lora"]
    values["stages"].append(second)
    before = weights_of(values)
    one, two = train_all(values)
    settings = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert {key: settings[key] for key in switch} == switch
    name = "language_model.layers.0.mlp.up_proj"
    down, up = (one[f"{name}.lora_{side}.weight"] for side in "AB")
    whole = before[f"{name}.weight"] + (4 if "use_rslora" in switch else 2) * up @ down
    if "use_dora" in switch:
        # Each row has the length that was learned for it.
        length = one[f"{name}.lora_magnitude_vector.weight"]
        assert not torch.allclose(length, before[f"{name}.weight"].norm(dim=1), rtol=1e-6)
        whole = whole * (length / whole.norm(dim=1))[:, None]
    torch.testing.assert_close(two[f"{name}.weight"], whole, rtol=1e-6, atol=1e-7)
    assert not any(".lora_" in each for each in two)
    assert not torch.equal(two[f"{name}.weight"], before[f"{name}.weight"])
