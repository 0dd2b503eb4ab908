"""Run a plan: stage after stage, each in processes of its own and a folder of its own."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import LoadedRecipe
from llava_recipes.recipe.writer import write_resolved
from llava_recipes.runner.launch import Processes, run_processes
from llava_recipes.runner.preflight import waiting_problems
from llava_recipes.runner.run_folder import (
    DONE,
    FolderState,
    describe_environment,
    read_finish_times,
    read_folder_state,
    stage_plan,
    starts_from_then,
    write_done,
    write_opening,
)
from llava_recipes.runner.worker import Request, Result, read_bug, read_problems
from llava_recipes.screen import say
from llava_recipes.train.checkpoints import UNUSABLE, find_damage, list_checkpoints
from llava_recipes.train.metrics import check_logs

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
        say(text)


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
    passed_over: Mapping[Path, str] = field(default_factory=dict)
    """Newer checkpoints, and what is wrong with each."""


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
    check_logs(folder)
    if not state.has_checkpoint:
        if run.resume:
            run.say(f"{stage.name}: no checkpoint in {folder}, so it starts at step 0")
        return Beginning(None)
    if not run.resume:
        raise RecipeError.of(
            "output_dir holds an unfinished run",
            code="output-dir-holds-unfinished-run",
            path=("stages", index, "output_dir"),
            found=f"{folder} has checkpoints and no {DONE}",
            hint="continue it with `--resume`, or choose another folder",
        )
    return _newest_sound(run, index, {})


def _newest_sound(run: Run, index: int, passed_over: Mapping[Path, str]) -> Beginning:
    """The newest checkpoint of a stage that can be resumed from; named, and what is wrong with newer ones.

    `passed_over` are those that were looked at before.
    """
    from llava_recipes.train.checkpoints import find_unreadable

    damages = dict(passed_over)
    stage = run.plan.stages[index]
    for checkpoint in list_checkpoints(Path(stage.output_dir)):
        folder = checkpoint.folder
        if folder in damages:
            continue
        damage = find_damage(folder) or find_unreadable(folder)
        if damage is None:
            run.say(f"{stage.name}: goes on from {folder}")
            return Beginning(folder, damages)
        damages[folder] = damage
        run.say(f"{folder} is passed over: {damage}")
    raise RecipeError.of(
        "no checkpoint can be resumed from",
        code="no-usable-checkpoint",
        path=("stages", index, "output_dir"),
        found="; ".join(f"{folder.name}: {damage}" for folder, damage in damages.items()),
        hint="remove the checkpoint folders to start from the beginning",
    )


def _run_stage(run: Run, index: int, beginning: Beginning) -> None:
    stage = run.plan.stages[index]
    folder = Path(stage.output_dir).absolute()
    write_opening(
        folder,
        plan=stage_plan(run.plan, index),
        recipe_yaml=write_resolved(run.loaded.recipe),
        environment=describe_environment(sys.argv),
    )
    result = _train(run, index, beginning)
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


def _train(run: Run, index: int, beginning: Beginning) -> Result | None:
    """Train a stage in its processes; from an older checkpoint where the one given cannot be loaded."""
    while True:
        try:
            return _train_from(run, index, beginning.checkpoint)
        except RecipeError as error:
            why = next((problem.found for problem in error.problems if problem.code == UNUSABLE), None)
            # On several nodes each would have to start again, and at the same time.
            if why is None or beginning.checkpoint is None or run.processes.nnodes > 1:
                raise
        run.say(f"{beginning.checkpoint} is passed over: {why}")
        try:
            beginning = _newest_sound(run, index, {**beginning.passed_over, beginning.checkpoint: why})
        except RecipeError as error:
            raise run.loaded.fail(*error.problems) from None


def _train_from(run: Run, index: int, checkpoint: Path | None) -> Result | None:
    stage = run.plan.stages[index]
    folder = Path(stage.output_dir).absolute()
    with tempfile.TemporaryDirectory(prefix="llava-recipe-") as answers_name:
        answers = Path(answers_name)
        request = Request(
            output_dir=str(folder),
            plan_file=str(folder / "plan.json"),
            resume_from=str(checkpoint.absolute()) if checkpoint else None,
            answers_dir=str(answers),
        )
        request.write(answers / "request.json")
        code = run_processes(
            run.processes, answers / "request.json", uses_deepspeed=stage.deepspeed is not None
        )
        return _read_answer(run, index, code, answers)


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
                code="training-process-died",
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
        code="base-run-changed",
        path=("stages", index, "output_dir"),
        found=f"{json.dumps(starts_from_then(folder))} when {folder} was trained",
        hint="remove the folder to train this stage again, or choose another one",
    )
