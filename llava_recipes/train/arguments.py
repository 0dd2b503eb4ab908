"""Hugging Face TrainingArguments for one stage, from its plan and the machine it runs on."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainingArguments

from llava_recipes.plan.arguments import keyword_arguments
from llava_recipes.plan.types import StagePlan
from llava_recipes.versions import training_arguments


def build_arguments(
    stage: StagePlan, *, output_dir: Path, run_name: str
) -> tuple[TrainingArguments, list[str]]:
    """TrainingArguments of a stage, and what a person should know of how this machine changes them."""
    wanted = keyword_arguments(stage.train)
    notes: list[str] = []
    on_cpu = not torch.cuda.is_available()
    if on_cpu and wanted.pop("tf32", None):
        notes.append("tf32 has no meaning on a CPU: off")
    if on_cpu:
        # Pinned memory exists for copies to a GPU.
        wanted.setdefault("dataloader_pin_memory", False)
    arguments = TrainingArguments(
        **{
            **training_arguments(wanted),
            "output_dir": str(output_dir),
            "run_name": run_name,
            "use_cpu": on_cpu,
            "deepspeed": stage.deepspeed and dict(stage.deepspeed),
            # Ours: checkpoints are rotated after they are sealed; a loss that is not finite ends the run.
            "save_total_limit": None,
            "logging_nan_inf_filter": False,
            "remove_unused_columns": False,
            "disable_tqdm": True,
        }
    )
    return arguments, notes
