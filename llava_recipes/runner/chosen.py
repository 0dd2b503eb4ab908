"""What must have been run before the stages that a command runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from llava_recipes.plan.types import Plan
from llava_recipes.recipe.errors import Problem
from llava_recipes.runner.artifacts import DONE, FolderState, read_folder_state, stage_plan


def waiting_problems(plan: Plan, chosen: Collection[int]) -> Iterator[Problem]:
    """Stages that a chosen one starts from, that are not chosen themselves, and that are not finished."""
    numbers = {stage.output_dir: index for index, stage in enumerate(plan.stages)}
    for index in sorted(chosen):
        stage = plan.stages[index]
        for folder in stage.starts_from:
            earlier = numbers.get(folder)
            if earlier is None or earlier in chosen:
                continue
            lack = _lack(Path(folder), read_folder_state(Path(folder), stage_plan(plan, earlier)))
            if lack is not None:
                name = plan.stages[earlier].name
                yield Problem(
                    f"stage `{stage.name}` starts from `{name}`, which is not finished",
                    code="run-not-finished",
                    path=("stages", index, "init_from"),
                    on_key=True,
                    found=lack,
                    hint=f"run it first, or both with `--from-stage {name}`; `init_from:` with a folder "
                    "starts from another run",
                )


def _lack(folder: Path, state: FolderState) -> str | None:
    """Why a stage's folder is no beginning for another stage, or None."""
    if state.kind == "done" and not state.differences:
        return None
    if state.kind == "done":
        return f"{folder} was trained by another plan: {state.differences[0]}"
    if state.kind == "new":
        return f"{folder} is empty" if folder.exists() else f"there is no folder {folder}"
    return f"{folder} has no {DONE}"
