"""The original's recorded Stage-2 runs."""

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
