"""Run a plan: stage after stage, each in processes of its own and a folder of its own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import LoadedRecipe
from llava_recipes.recipe.writer import write_resolved
from llava_recipes.runner.follow import lead, outcome_of
from llava_recipes.runner.hand_off import check_start
from llava_recipes.runner.hangs import RUN_HANGS, RunHangs
from llava_recipes.runner.inputs import INPUTS, compare_inputs, input_problems, record_inputs
from llava_recipes.runner.interruption import Interruption
from llava_recipes.runner.launch import Answer, Processes, run_processes
from llava_recipes.runner.lock import Held, take
from llava_recipes.runner.preflight import waiting_problems
from llava_recipes.runner.reports import Request, Result
from llava_recipes.runner.results import DONE, check_results
from llava_recipes.runner.run_folder import (
    FolderState,
    describe_environment,
    is_stale,
    read_folder_state,
    stage_plan,
    starts_from_then,
    write_done,
    write_opening,
)
from llava_recipes.runner.stop_words import stopped_words
from llava_recipes.runner.team import Outcome, Team
from llava_recipes.runner.write_failure import write_problem
from llava_recipes.screen import say
from llava_recipes.stop_signals import STOP_SIGNALS
from llava_recipes.train.metrics import check_logs

_NUM_SHOWN_DIFFERENCES = 12
_MOST_CHEAP_BYTES = 2**26
_OF_PEERS = re.compile(r"gloo|nccl|c10d|DistNetworkError|Connection (closed|reset)", re.IGNORECASE)


class WorkerBug(Exception):
    """A training process failed because of a bug of ours; carries its traceback."""


class Stopped(Exception):
    """The run stopped on request. Carries the line to print."""


@dataclass(frozen=True)
class Run:
    """What is run, and how."""

    loaded: LoadedRecipe
    plan: Plan
    processes: Processes
    resume: bool
    stages: tuple[int, ...]
    """Numbers of the stages to run; those that they start from are done, or among them."""
    interruption: Interruption = field(default_factory=Interruption)
    hang_timeout_s: float | None = None
    """How long nothing may advance, in every phase; None for the usual times."""
    team: Team | None = None
    """The other commands of the run, which train along; this one decides."""


def run_stages(run: Run) -> None:
    """Train every chosen stage that is not done yet.

    Raises RecipeError for what the user can fix, Stopped when asked to stop with stages left, WorkerBug for a
    bug of ours.
    """
    with ExitStack() as released:
        with run.interruption.ending_at_once():
            # Before anything is decided: of two runs that start at once, one must see what the other writes.
            locks = _take_folders(run, released)
            beginnings = find_beginnings(run)
        for index in locks.keys() - beginnings.keys():
            locks[index].close()
        for index, beginning in beginnings.items():
            run.interruption.seconds_left()
            if run.interruption.reason is not None:
                raise Stopped(_not_begun(run, index))
            _run_stage(run, index, beginning, locks[index])
            locks[index].close()


def _take_folders(run: Run, released: ExitStack) -> dict[int, Held]:
    """The locks of all chosen stages' folders, by number; raises RecipeError when another run has one."""
    locks: dict[int, Held] = {}
    folders = {index: Path(run.plan.stages[index].output_dir).absolute() for index in run.stages}
    # Two runs that share several folders take them in one order, so that one of them gets all.
    for index in sorted(folders, key=lambda index: os.path.realpath(folders[index])):
        try:
            locks[index] = take(folders[index])
        except RecipeError as error:
            path = ("stages", index, "output_dir")
            raise run.loaded.fail(*(replace(problem, path=path) for problem in error.problems)) from None
        released.callback(locks[index].close)
    return locks


@dataclass(frozen=True)
class Beginning:
    """Where a stage begins: a checkpoint folder, or None for step 0."""

    checkpoint: Path | None
    skipped: Mapping[Path, str] = field(default_factory=dict)
    """Newer checkpoints that cannot be used, and what is wrong with each."""


def find_beginnings(run: Run) -> dict[int, Beginning]:
    """Where each chosen stage that is not done yet begins, by number; nothing is written.

    Raises RecipeError with every problem of their folders, before the first one starts.
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
        check_results(folder, path=("stages", index, "output_dir"))
        if is_stale(folder, stage.starts_from):
            raise RecipeError(_stale(folder, index))
        say(f"{stage.name}: already done, in {folder}")
        _report_changed_inputs(run, index)
        return None
    check_logs(folder)
    if not state.has_checkpoint:
        if run.resume or state.kind == "started":
            say(f"{stage.name}: starts at step 0, since {folder} has no checkpoint")
        return Beginning(None)
    beginning = _newest_sound(run, index, {})
    if beginning.checkpoint is not None:
        _check_inputs(run, index, says=True)
    return beginning


def _check_inputs(run: Run, index: int, *, says: bool) -> None:
    """Raise RecipeError when a started stage would go on with other data, base weights or earlier runs."""
    stage = run.plan.stages[index]
    folder = Path(stage.output_dir)
    comparison = compare_inputs(folder, stage_plan(run.plan, index))
    if says and not comparison.is_recorded:
        say(
            f"{stage.name}: {folder} has no usable {INPUTS}: whether its data and base weights were changed "
            "cannot be told"
        )
    problems = [*input_problems(folder, comparison, waits_for=_resumed_before(run, index))]
    for warning in (problem for problem in problems if says and problem.severity == "warning"):
        say(f"{stage.name}: {warning.message}: {warning.found}")
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        raise RecipeError(*(at_stage(problem, index) for problem in errors))


def _resumed_before(run: Run, index: int) -> frozenset[str]:
    """Folders that this stage starts from and that go on first: what they contain is compared then."""
    from llava_recipes.train.checkpoints import list_checkpoints

    earlier = {run.plan.stages[number].output_dir for number in run.stages if number < index}
    return frozenset(
        start
        for start in run.plan.stages[index].starts_from
        if start in earlier and not (Path(start) / DONE).is_file() and list_checkpoints(Path(start))
    )


def _report_changed_inputs(run: Run, index: int) -> None:
    """Print which inputs of a finished stage were changed since, as far as little reading shows it."""
    stage = run.plan.stages[index]
    comparison = compare_inputs(
        Path(stage.output_dir), stage_plan(run.plan, index), most_bytes=_MOST_CHEAP_BYTES
    )
    found = [each.words for each in comparison.differences if each.kind == "changed"]
    if found:
        say(f"{stage.name}: it was trained before this was changed: {'; '.join(found)}")


def _newest_sound(run: Run, index: int, skipped: Mapping[Path, str]) -> Beginning:
    """The newest usable checkpoint of a stage, or step 0; printed, like what is wrong with each newer one.

    `skipped` are those that were looked at before. Raises RecipeError for a checkpoint of an earlier version.
    """
    from llava_recipes.train.checkpoints import check_form, find_damage, list_checkpoints, missing_latest

    damages = dict(skipped)
    stage = run.plan.stages[index]
    missing = missing_latest(Path(stage.output_dir))
    if missing is not None and not damages:
        say(f"{stage.name}: {missing}, which was saved last, is missing in {stage.output_dir}")
    for checkpoint in list_checkpoints(Path(stage.output_dir)):
        folder = checkpoint.folder
        if folder in damages:
            continue
        with problems_at(index):
            check_form(folder)
        damage = find_damage(folder)
        if damage is None:
            say(f"{stage.name}: resumes from {folder}")
            return Beginning(folder, damages)
        damages[folder] = damage
        say(f"{stage.name}: skips {folder}: {damage}")
    say(f"{stage.name}: starts again at step 0, since no checkpoint can be used")
    return Beginning(None, damages)


def _run_stage(run: Run, index: int, beginning: Beginning, lock: Held) -> None:
    try:
        _run_in_folder(run, index, beginning, lock)
    except Exception as error:
        folder = Path(run.plan.stages[index].output_dir)
        problem = write_problem(error, folder=folder, stage=("stages", index))
        if problem is None:
            raise
        raise run.loaded.fail(problem) from error


def _run_in_folder(run: Run, index: int, beginning: Beginning, lock: Held) -> None:
    stage = run.plan.stages[index]
    folder = Path(stage.output_dir).absolute()
    _clear(run, index, beginning)
    write_opening(
        folder,
        plan=stage_plan(run.plan, index),
        recipe_yaml=write_resolved(run.loaded.recipe),
        environment=describe_environment(sys.argv),
    )
    _check_starts(run, index, beginning)
    knows_all = record_inputs(folder, stage_plan(run.plan, index))
    result = _train(run, index, beginning, lock)
    if not knows_all:
        record_inputs(folder, stage_plan(run.plan, index))
    write_done(
        folder,
        num_steps=result.num_steps,
        last_loss=result.last_loss,
        starts_from=stage.starts_from,
        eval_loss=result.eval_loss,
        warnings=result.warnings,
    )


def _check_starts(run: Run, index: int, beginning: Beginning) -> None:
    """Raise RecipeError when results that a stage starts from are not as their run wrote them, or others."""
    try:
        if beginning.checkpoint is not None:
            _check_inputs(run, index, says=False)
        for start in run.plan.stages[index].starts_from:
            check_start(start, path=("stages", index, "init_from"))
    except RecipeError as error:
        raise run.loaded.fail(*error.problems) from None


def _train(run: Run, index: int, beginning: Beginning, lock: Held) -> Result:
    """Train a stage in its processes, from an older checkpoint where a newer one cannot be loaded."""
    from llava_recipes.train.checkpoints import UNUSABLE

    while True:
        try:
            return _train_from(run, index, beginning.checkpoint, lock)
        except RecipeError as error:
            why = next((problem.found for problem in error.problems if problem.code == UNUSABLE), None)
            if why is None or beginning.checkpoint is None:
                raise
        say(f"{run.plan.stages[index].name}: skips {beginning.checkpoint}: {why}")
        try:
            beginning = _newest_sound(run, index, {**beginning.skipped, beginning.checkpoint: why})
        except RecipeError as error:
            raise run.loaded.fail(*error.problems) from None
        _clear(run, index, beginning)


def _clear(run: Run, index: int, beginning: Beginning) -> None:
    """Remove what killed writes left in a stage's folder, and move away checkpoints that cannot be used."""
    from llava_recipes.train.checkpoints import clean_up, set_aside

    if run.processes.node_rank > 0:
        # On a shared disk the first node is at work there.
        return
    stage = run.plan.stages[index]
    clean_up(Path(stage.output_dir))
    for folder in beginning.skipped:
        moved = set_aside(folder)
        if moved is not None:
            say(f"{stage.name}: {folder.name} is now {moved.name}; remove it when you no longer need it")


def _train_from(run: Run, index: int, checkpoint: Path | None, lock: Held) -> Result:
    stage = run.plan.stages[index]
    folder = Path(stage.output_dir).absolute()
    request = Request(
        output_dir=str(folder),
        plan=(folder / "plan.json").read_text("utf-8"),
        resume_from=str(checkpoint.absolute()) if checkpoint else None,
        has_other_commands=run.team is not None,
        seconds_left=run.interruption.seconds_left(),
        hang_timeout_s=run.hang_timeout_s,
        lock=lock.run,
    )
    elsewhere: list[Outcome] = []
    if run.team is None:
        answer = run_processes(
            run.processes,
            request,
            uses_deepspeed=stage.deepspeed is not None,
            interruption=run.interruption,
        )
    else:
        answer, elsewhere = lead(run.team, run.processes, request, uses_deepspeed=stage.deepspeed is not None)
    return _read_answer(run, index, answer, elsewhere)


def _read_answer(run: Run, index: int, answer: Answer, elsewhere: list[Outcome]) -> Result:
    """The result, or what is the cause that there is none."""
    outcomes = [outcome_of(answer, run.team), *elsewhere]
    problems = dict.fromkeys(problem for outcome in outcomes for problem in outcome.problems)
    hangs = [problem for problem in problems if problem.code == RUN_HANGS]
    if hangs:
        # What other processes report when one hangs, or is killed for it, is no cause.
        raise RunHangs(*run.loaded.fail(*(at_stage(problem, index) for problem in hangs)).problems)
    if problems:
        raise run.loaded.fail(*(at_stage(problem, index) for problem in problems))
    result = answer.reports.results.get(0)
    is_asked = run.interruption.reason is not None or any(
        -each.code in STOP_SIGNALS or each.code - 128 in STOP_SIGNALS for each in outcomes
    )
    is_unfinished = result is None or any(each.has_stopped or each.code for each in outcomes)
    if is_asked and is_unfinished and (answer.cut_short or not any(each.bug for each in outcomes)):
        raise Stopped(stopped_words(run.plan.stages[index], answer, run.interruption.reason))
    silent = [each for each in outcomes if each.code and not each.bug and not each.was_interrupted]
    bugs = [outcome.bug for outcome in outcomes if outcome.bug is not None]
    # What a process says whose peer is gone is no cause.
    if bugs and not (silent and all(map(_OF_PEERS.search, bugs))):
        raise WorkerBug(next((bug for bug in bugs if not _OF_PEERS.search(bug)), bugs[0]))
    if silent and (result is None or result.stopped_early or silent[0] is not outcomes[0]):
        code, where = silent[0].code, f" on {silent[0].host}" if len(outcomes) > 1 else ""
        how = ", killed by a signal" if code < 0 or code > 128 else ""
        raise run.loaded.fail(
            Problem(
                "a training process exited without an error message",
                code="training-process-died",
                path=("stages", index),
                found=f"exit code {code}{where}{how}",
                hint="often the machine ran out of memory; `--resume` continues from the last checkpoint",
            )
        )
    if result is None:
        raise WorkerBug("the first process exited with code 0 and left no result")
    if result.stopped_early:
        raise Stopped(stopped_words(run.plan.stages[index], answer, run.interruption.reason))
    return result


@contextmanager
def problems_at(index: int) -> Iterator[None]:
    """Give the problems that the block raises, about a plan of one stage, the stage's own number."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(*(at_stage(problem, index) for problem in error.problems)) from error


def _not_begun(run: Run, index: int) -> str:
    stage = run.plan.stages[index]
    return (
        f"{stage.name}: not begun, since the run was asked to stop by {run.interruption.reason}; the "
        "stages before it are done, and `--resume` continues with it"
    )


def at_stage(problem: Problem, index: int) -> Problem:
    """A problem of a worker, whose plan has one stage, number 0, with the stage's own number."""
    if problem.path is None or problem.path[:2] != ("stages", 0):
        return problem
    return replace(problem, path=("stages", index, *problem.path[2:]))


def _other_plan(folder: Path, index: int, state: FolderState) -> Problem:
    shown = list(state.differences[:_NUM_SHOWN_DIFFERENCES])
    if len(state.differences) > len(shown):
        shown.append(f"and {len(state.differences) - len(shown)} more")
    what = "a finished run" if state.kind == "done" else "a run"
    return Problem(
        f"output_dir contains {what} of another plan",
        code="output-dir-holds-another-plan",
        path=("stages", index, "output_dir"),
        found="\n       ".join([f"{folder} differs in", *shown]),
        hint="choose another folder, or change the recipe back to what was run",
    )


def _stale(folder: Path, index: int) -> Problem:
    starts = starts_from_then(folder).items()
    return Problem(
        "a run that this stage started from was trained again after this stage was done",
        code="base-run-changed",
        path=("stages", index, "output_dir"),
        found=f"{folder} was started from "
        + ", ".join(f"{start}, finished {time}" if time else start for start, time in starts),
        hint="remove the folder to train this stage again, or choose another folder",
    )
