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
