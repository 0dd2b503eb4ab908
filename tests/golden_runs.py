"""The original's recorded Stage-2 runs, and its runs on several processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.tiny import GOLDEN

STAGE2_RUNS = ("full", "proj_lr", "freeze_backbone", "ungrouped", "im_start_end", "lora")


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
