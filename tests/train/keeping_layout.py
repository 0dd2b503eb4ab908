"""Train a recipe from its start with the batch layout of another number of processes.

torchrun --nproc-per-node N -m tests.train.keeping_layout RECIPE WORLD_SIZE PER_DEVICE ACCUMULATION
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from llava_recipes.data.order import BatchLayout
from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.runner.run_folder import write_results
from llava_recipes.train import stage as stages
from tests.processes import ROOT, TIMEOUT_S, python, run_process


def train_with(layout: BatchLayout, recipe: Path, *, processes: int) -> None:
    """Train a recipe on some processes, each of them one of this module."""
    torchrun = [*python("torch.distributed.run"), "--standalone", f"--nproc-per-node={processes}"]
    words = ["-m", "tests.train.keeping_layout", str(recipe), *map(str, layout.to_json().values())]
    env = {"PYTHONPATH": str(ROOT)}
    done = run_process([*torchrun, *words], cwd=recipe.parent, env=env, timeout_s=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr


def train_here(layout: BatchLayout, recipe: Path) -> None:
    """Train a recipe in this process, which is left changed."""
    vars(stages)["kept_layout"] = lambda *given: layout
    plan = plan_recipe(load_recipe(str(recipe)), world_size=int(os.environ.get("WORLD_SIZE", "1")))
    output_dir = Path(plan.stages[0].output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    trained = stages.train_stage(plan, 0, output_dir=output_dir, resume_from=None)
    if trained.is_first_process:
        write_results(plan, trained, output_dir)


def main(recipe: str, *numbers: str) -> None:
    import torch.distributed as dist

    train_here(BatchLayout(*map(int, numbers)), Path(recipe))
    # ZeRO-3 on a CPU sometimes aborts while the interpreter shuts down.
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
