"""A finished run cut back to a checkpoint, as a kill would have left it; an uncut run is trained once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner.facts import compile_loaded
from llava_recipes.runner.run_folder import PLAN, stage_plan
from llava_recipes.train.checkpoints import SEAL, SealFacts, list_checkpoints, seal

WRITTEN_LAST = (
    *("DONE", "config.json", "trainer_state.json", "latest"),
    *("mm_projector.bin", "mm_projector.safetensors", "trained.safetensors"),
    *("adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"),
)


def cut_after(run: Path, step: int) -> None:
    """Take away all that a run wrote after a step."""
    for checkpoint in list_checkpoints(run):
        if checkpoint.step > step:
            shutil.rmtree(checkpoint.folder)
    for name in WRITTEN_LAST:
        (run / name).unlink(missing_ok=True)


def copy_cut(folder: Path, to: Path, *, step: int) -> Path:
    """Copy a folder of `recipe.yaml` and `run/`, cut after a step; gives the copied recipe.

    The copy is a run of its own: what names the old folder names the new one.
    """
    shutil.copytree(folder, to, dirs_exist_ok=True)
    for file in (to / "recipe.yaml", to / "run" / "plan.json", to / "run" / "recipe.resolved.yaml"):
        file.write_text(file.read_text("utf-8").replace(str(folder), str(to)), "utf-8")
    cut_after(to / "run", step)
    return to / "recipe.yaml"


def replan(recipe: Path, processes: int) -> None:
    """Record a recipe's plan for another number of processes in its run folder."""
    plan = compile_loaded(load_recipe(str(recipe)), world_size=processes).plan
    (recipe.parent / "run" / PLAN).write_text(stage_plan(plan, 0).model_dump_json(indent=2) + "\n", "utf-8")


def reseal(checkpoint: Path) -> None:
    """Seal a checkpoint's files as they are now, as a stranger would."""
    sealed = json.loads((checkpoint / SEAL).read_text("utf-8"))
    seal(checkpoint, SealFacts(*(sealed[key] for key in ("step", "world_size", "layout", "loss"))))
