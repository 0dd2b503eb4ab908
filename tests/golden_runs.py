"""The original's recorded runs, and the recipes that repeat them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tiny import FIXTURES, GOLDEN, stage1_values

STAGE1_RUNS = ("base", "pad", "linear", "accum2", "gc_off", "weight_decay", "save_every_5")
STAGE2_RUNS = ("full", "proj_lr", "freeze_backbone", "ungrouped", "im_start_end", "lora")

_STAGE1_OPTIONS: dict[str, dict[str, Any]] = {
    "accum2": {"gradient_accumulation_steps": 2},
    "weight_decay": {"weight_decay": 0.1},
    "save_every_5": {"save_strategy": "steps", "save_steps": 5, "save_total_limit": 1},
}
_STAGE2_OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "proj_lr": {"param_groups": [{"modules": ["projector"], "learning_rate": 2e-4}]},
    "freeze_backbone": {"freeze": "all", "trainable": ["projector", "lm_head"]},
    "ungrouped": {"group_by": "none"},
    "im_start_end": {"start_end": True},
    "lora": {
        "freeze": "all",
        "trainable": ["projector"],
        "lora": {"r": 8, "alpha": 16, "dropout": 0.0},
        "param_groups": [{"modules": ["projector"], "learning_rate": 2e-5}],
        "learning_rate": 2e-4,
    },
}


def stage1_folder(name: str) -> Path:
    return GOLDEN / "06_stage1" / name


def golden_stage1(output_dir: Path, name: str) -> dict[str, Any]:
    """A recorded Stage-1 run as recipe values."""
    return stage1_values(output_dir, golden_run=name, **_STAGE1_OPTIONS.get(name, {}))


def stage1_steps(name: str) -> list[list[dict[str, Any]]]:
    """What was recorded of each step: its micro-batches, whose losses add up to the step's."""
    steps = json.loads((stage1_folder(name) / "record.json").read_text())["steps"]
    accumulation = _STAGE1_OPTIONS.get(name, {}).get("gradient_accumulation_steps", 1)
    return [steps[at : at + accumulation] for at in range(0, len(steps), accumulation)]


def golden_stage2(output_dir: Path, name: str) -> dict[str, Any]:
    """A recorded Stage-2 run as recipe values."""
    options = _STAGE2_OPTIONS[name]
    values = stage1_values(output_dir, learning_rate=options.get("learning_rate", 2e-5))
    init = name if name == "im_start_end" else "full"
    values["model"]["projector"]["init_from"] = str(run_folder(init) / "init.safetensors")
    values["model"]["image_tokens"] = {"start_end": options.get("start_end", False)}
    stage = values["stages"][0]
    stage["freeze"] = options.get("freeze", ["vision_tower"])
    stage["trainable"] = options.get("trainable", [])
    stage["lora"] = options.get("lora")
    stage["param_groups"] = options.get("param_groups", [])
    stage["data"] |= {"template": "v1", "image_aspect_ratio": "pad", "max_length": 512}
    stage["data"]["group_by"] = options.get("group_by", "modality_length")
    stage["data"]["sources"][0]["annotations"] = str(FIXTURES / "stage2.json")
    return values


def recorded_adapters(name: str) -> Path | None:
    """The adapters' first weights in a recorded Stage-2 run that has some."""
    return run_folder(name) / "init.safetensors" if "lora" in _STAGE2_OPTIONS[name] else None


def run_folder(name: str) -> Path:
    return GOLDEN / "07_stage2" / name


def recorded_run(name: str) -> dict[str, Any]:
    """What was recorded: `order`, `steps`, `trainable`, `groups` and more."""
    record: dict[str, Any] = json.loads((run_folder(name) / "record.json").read_text())
    return record


def runs_of_several_processes() -> dict[str, dict[str, Any]]:
    """By name: the batch, `order_of_process`, and per step the loss, learning rate and gradient norm.

    Recorded from the original's code at c121f04 as its other runs were (torch 2.13.0, transformers 4.37.2,
    accelerate 0.21.0, all in float32, no DeepSpeed), under torchrun and gloo: three epochs, the projector
    from 06_stage1/base/mm_projector.bin, `stage1` samples as Stage 1, `stage2` samples as Stage 2 in full.
    The loss is the mean over accumulation steps and processes. 09_order/plain_projector.safetensors is what
    `plain` left.
    """
    file = GOLDEN / "09_order" / "runs_of_several_processes.json"
    runs: dict[str, dict[str, Any]] = json.loads(file.read_text())
    return runs


def ours_for(name: str) -> str:
    """Our name of a parameter that the original calls `name`."""
    name = name.removeprefix("base_model.model.").replace(".default.", ".")
    if name.startswith("lm_head."):
        return name
    rest = name.removeprefix("model.")
    if rest.startswith("mm_projector."):
        return f"projector.{rest.removeprefix('mm_projector.')}"
    tower = "vision_tower.vision_tower.vision_model."
    if rest.startswith(tower):
        return f"vision_tower.{rest.removeprefix(tower)}"
    return f"language_model.{rest}"
