"""Run a plan: stage after stage, each in processes of its own and a folder of its own."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from llava_recipes.plan.types import Plan
from llava_recipes.recipe.errors import Problem, RecipeError
from llava_recipes.recipe.load import LoadedRecipe
from llava_recipes.recipe.written import write_resolved
from llava_recipes.runner.artifacts import (
    DONE,
    FolderState,
    read_finish_times,
    read_folder_state,
    stage_plan,
    starts_from_then,
    write_done,
    write_opening,
)
from llava_recipes.runner.chosen import waiting_problems
from llava_recipes.runner.environment import describe_environment
from llava_recipes.runner.launch import Processes, run_processes
from llava_recipes.runner.messages import Request, Result, read_bug, read_problems
from llava_recipes.train.checkpoints import find_damage, list_checkpoints

_NUM_SHOWN_DIFFERENCES = 12


class WorkerBug(Exception):
    """A training process ended by a mistake of ours; holds its traceback."""


class Stopped(Exception):
    """The run was asked to stop, and did with a checkpoint. Holds what to tell the person."""


@dataclass(frozen=True)
class Run:
    """What is run, how, and where words go."""

    loaded: LoadedRecipe
    plan: Plan
    processes: Processes
    resume: bool
    stages: tuple[int, ...]
    """Numbers of the stages to run; those that they start from are done, or among them."""

    def say(self, text: str) -> None:
        """One line to the person; standard output belongs to the training processes too."""
        print(text, flush=True)


def run_stages(run: Run) -> None:
    """Train every chosen stage that is not done yet.

    Raises RecipeError for what the user can mend, Stopped after a signal, WorkerBug for what they cannot.
    """
    for index, beginning in find_beginnings(run).items():
        _run_stage(run, index, beginning)


@dataclass(frozen=True)
class Beginning:
    """Where a stage begins: a checkpoint folder, or None for step 0."""

    checkpoint: Path | None


def find_beginnings(run: Run) -> dict[int, Beginning]:
    """Where each chosen stage begins that is not done yet, by number. Writes nothing.

    Raises RecipeError with what is wrong with the folders of all of them, before the first one starts.
    """
    beginnings: dict[int, Beginning] = {}
    problems: list[Problem] = [*waiting_problems(run.plan, run.stages)]
    for index in run.stages:
        try:
            beginning = _decide(run, index)
        except RecipeError as error:
            problems += error.problems
            continue
        if beginning is not None:
            beginnings[index] = beginning
    if problems:
        raise run.loaded.fail(*problems)
    return beginnings


def _decide(run: Run, index: int) -> Beginning | None:
    """Where the stage begins, or None when it is done already."""
    stage = run.plan.stages[index]
    folder = Path(stage.output_dir)
    state = read_folder_state(folder, stage_plan(run.plan, index))
    if state.differences:
        raise RecipeError(_other_plan(folder, index, state))
    if state.kind == "done":
        if starts_from_then(folder) != read_finish_times(stage.starts_from):
            raise RecipeError(_stale(folder, index))
        run.say(f"{stage.name}: done already, in {folder}")
        return None
    if not state.has_checkpoint:
        if run.resume:
            run.say(f"{stage.name}: no checkpoint in {folder}, so it starts at step 0")
        return Beginning(None)
    if not run.resume:
        raise RecipeError(
            Problem(
                "output_dir holds an unfinished run",
                code="output-dir-holds-unfinished-run",
                path=("stages", index, "output_dir"),
                found=f"{folder} has checkpoints and no {DONE}",
                hint="continue it with `--resume`, or choose another folder",
            )
        )
    return Beginning(_newest_sound_checkpoint(run, index, folder))


def _newest_sound_checkpoint(run: Run, index: int, folder: Path) -> Path:
    damages = []
    for checkpoint in list_checkpoints(folder):
        damage = find_damage(checkpoint.folder)
        if damage is None:
            return checkpoint.folder
        damages.append(f"{checkpoint.folder.name}: {damage}")
        run.say(f"{checkpoint.folder} is passed over: {damage}")
    raise RecipeError(
        Problem(
            "no checkpoint can be resumed from",
            code="no-checkpoint-can-be-resumed",
            path=("stages", index, "output_dir"),
            found="; ".join(damages),
            hint="remove the checkpoint folders to start from the beginning",
        )
    )


def _run_stage(run: Run, index: int, beginning: Beginning) -> None:
    stage = run.plan.stages[index]
    folder = Path(stage.output_dir).absolute()
    plan = stage_plan(run.plan, index)
    write_opening(
        folder,
        plan=plan,
        recipe_yaml=write_resolved(run.loaded.recipe),
        environment=describe_environment(sys.argv),
    )
    with tempfile.TemporaryDirectory(prefix="llava-recipe-") as answers_name:
        answers = Path(answers_name)
        request = Request(
            output_dir=str(folder),
            plan_file=str(folder / "plan.json"),
            resume_from=str(beginning.checkpoint.absolute()) if beginning.checkpoint else None,
            answers_dir=str(answers),
        )
        request.write(answers / "request.json")
        code = run_processes(
            run.processes, answers / "request.json", uses_deepspeed=stage.deepspeed is not None
        )
        result = _read_answer(run, index, code, answers)
    if result is None:
        # The first process ran on another node, which reports.
        return
    if result.stopped_early:
        raise Stopped(
            f"{stage.name}: stopped at step {result.num_steps:,} with a checkpoint; `--resume` continues"
        )
    write_done(
        folder,
        num_steps=result.num_steps,
        last_loss=result.last_loss,
        starts_from=stage.starts_from,
        eval_loss=result.eval_loss,
    )


def _read_answer(run: Run, index: int, code: int, answers: Path) -> Result | None:
    problems = read_problems(answers)
    if problems:
        raise run.loaded.fail(*(at_stage(problem, index) for problem in problems))
    bug = read_bug(answers)
    if bug is not None:
        raise WorkerBug(bug)
    result = Result.read(answers)
    if result is not None:
        return result
    if code != 0:
        raise run.loaded.fail(
            Problem(
                "a training process ended without a word",
                code="training-process-ended-without-word",
                path=("stages", index),
                found=f"exit code {code}" + (", killed by a signal" if code < 0 or code > 128 else ""),
                hint="often the machine ran out of memory; `--resume` continues from the last checkpoint",
            )
        )
    return None if run.processes.nnodes > 1 else _missing_result()


def _missing_result() -> Result:
    raise WorkerBug("the first process ended well and left no result")


def at_stage(problem: Problem, index: int) -> Problem:
    """A worker knows one stage, number 0; here it has its own number."""
    if problem.path is None or problem.path[:2] != ("stages", 0):
        return problem
    return replace(problem, path=("stages", index, *problem.path[2:]))


def _other_plan(folder: Path, index: int, state: FolderState) -> Problem:
    shown = list(state.differences[:_NUM_SHOWN_DIFFERENCES])
    if len(state.differences) > len(shown):
        shown.append(f"and {len(state.differences) - len(shown)} more")
    what = "a finished run" if state.kind == "done" else "a run"
    return Problem(
        f"output_dir holds {what} of another plan",
        code="output-dir-holds-another-plan",
        path=("stages", index, "output_dir"),
        found="\n       ".join([f"{folder} differs in", *shown]),
        hint="choose another folder, or bring the recipe back to what was run",
    )


def _stale(folder: Path, index: int) -> Problem:
    return Problem(
        "the stage before was trained again after this one was done",
        code="stage-before-trained-again-after-one",
        path=("stages", index, "output_dir"),
        found=f"{json.dumps(starts_from_then(folder))} when {folder} was trained",
        hint="remove the folder to train this stage again, or choose another one",
    )
