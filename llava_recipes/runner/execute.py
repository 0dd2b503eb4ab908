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
from llava_recipes.files import sync_folder
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.foreign import read_object
from llava_recipes.recipe.load import LoadedRecipe
from llava_recipes.recipe.writer import write_resolved
from llava_recipes.runner import history
from llava_recipes.runner.accepted import Accepted, AcceptError, needless
from llava_recipes.runner.follow import lead, outcome_of
from llava_recipes.runner.hand_off import check_start
from llava_recipes.runner.hangs import RUN_HANGS, RunHangs
from llava_recipes.runner.inputs import INPUTS, compare_inputs, input_problems, record_inputs
from llava_recipes.runner.interruption import Interruption
from llava_recipes.runner.launch import Answer, Processes, run_processes
from llava_recipes.runner.lock import Held, take
from llava_recipes.runner.preflight import waiting_problems
from llava_recipes.runner.refusals import check_length, keys_to_accept, other_plan, unaccepted
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
from llava_recipes.stop_signals import OF_OTHERS, STOP_SIGNALS
from llava_recipes.train.metrics import check_logs

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
    accepted: tuple[Accepted, ...] = ()
    """Changes that the user confirms."""
    words: tuple[str, ...] = ()
    """The command line, as it is advised with more options."""
    interruption: Interruption = field(default_factory=Interruption)
    hang_timeout_s: float | None = None
    """How long nothing may advance, in every phase; None for the usual times."""
    team: Team | None = None
    """The other commands of the run, which train along; this one decides."""


def run_stages(run: Run) -> None:
    """Train every chosen stage that is not done yet.

    Raises RecipeError for what the user can fix, AcceptError for a needless `--accept`, Stopped when asked
    to stop with stages left, WorkerBug for a bug of ours.
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
    event: history.Event = "start"
    state: FolderState = field(default_factory=lambda: FolderState("new"), repr=False)
    inputs: tuple[str, ...] = ()
    """Data, base weights and earlier runs that were changed since the run was started, and accepted."""


def find_beginnings(run: Run) -> dict[int, Beginning]:
    """Where each chosen stage that is not done yet begins, by number; nothing is written.

    Raises RecipeError with every problem of their folders, before the first one starts, and AcceptError.
    """
    beginnings: dict[int, Beginning] = {}
    problems: list[Problem] = [*waiting_problems(run.plan, run.stages)]
    states = _read_states(run, problems)
    _check_accepted(run, states)
    refused = _refuse(run, states)
    problems += refused.values()
    for index, state in states.items():
        if index in refused:
            continue
        try:
            beginning = _decide(run, index, state, beginnings)
        except RecipeError as error:
            problems += error.problems
            continue
        if beginning is not None:
            beginnings[index] = beginning
    if problems:
        raise run.loaded.fail(*problems)
    return beginnings


def _read_states(run: Run, problems: list[Problem]) -> dict[int, FolderState]:
    """What the folder of each chosen stage contains; what cannot be read goes to `problems`."""
    states = {}
    for index in run.stages:
        folder = Path(run.plan.stages[index].output_dir)
        try:
            plan = stage_plan(run.plan, index)
            moved = compare_inputs(folder, plan).moved
            states[index] = read_folder_state(folder, plan, run.loaded.recipe, index, moved=moved)
        except RecipeError as error:
            problems += error.problems
    return states


def _decide(run: Run, index: int, state: FolderState, earlier: Mapping[int, Beginning]) -> Beginning | None:
    """Where the stage begins, or None when it is done already."""
    stage = run.plan.stages[index]
    folder = Path(stage.output_dir)
    trained_anew = [run.plan.stages[number].output_dir for number in earlier]
    if state.kind == "done":
        check_results(folder, path=("stages", index, "output_dir"))
        starts_anew = any(start in trained_anew for start in stage.starts_from)
        if starts_anew or is_stale(folder, stage.starts_from):
            raise RecipeError(_stale(folder, index))
        if not state.decisive:
            say(f"{stage.name}: already done, in {folder}")
            _report_changed_inputs(run, index)
            return None
    check_logs(folder)
    history.check(folder)
    for change in state.changes:
        verb = "takes" if change.kind == "harmless" or not state.checkpoints else "accepts"
        say(f"{stage.name}: {verb} {change}")
    if not state.checkpoints:
        if run.resume or state.kind == "started":
            say(f"{stage.name}: starts at step 0, since {folder} has no checkpoint")
        return Beginning(None, event="start" if state.kind == "new" else "restart", state=state)
    beginning = _newest_sound(run, index, {})
    if beginning.checkpoint is None:
        return replace(beginning, event="restart", state=state)
    inputs = _check_inputs(run, index, says=True)
    check_length(stage, index, beginning.checkpoint)
    event: history.Event = "extend" if state.kind == "done" else "resume"
    return replace(beginning, event=event, state=state, inputs=inputs)


def _check_accepted(run: Run, states: Mapping[int, FolderState]) -> None:
    """Raise AcceptError for what the user accepts though nothing asks for it, now or earlier in this run."""
    stages = run.plan.stages
    changes = [(stages[index].name, change) for index, state in states.items() for change in state.changes]
    before = {
        text
        for index, state in states.items()
        if state.kind in ("started", "done")
        for text in history.accepted_before(Path(stages[index].output_dir))
    }
    new = [each for each in run.accepted if each.text not in before]
    inputs = {
        (stages[index].name, each.key)
        for index, state in states.items()
        if new and state.kind in ("started", "done")
        for each in compare_inputs(Path(stages[index].output_dir), stage_plan(run.plan, index)).differences
    }
    names = [stages[index].name for index in states]
    faults = [
        *needless(
            [each for each in new if not any((each.stage or name, each.key) in inputs for name in names)],
            changes,
        )
    ]
    if faults:
        raise AcceptError("\n".join(faults))


def _refuse(run: Run, states: Mapping[int, FolderState]) -> dict[int, Problem]:
    """The problem of each stage whose folder has a run of another plan, with the ways on."""
    stages = run.plan.stages
    refused = {
        index: changes
        for index, state in states.items()
        if (changes := unaccepted(state, stages[index].name, run.accepted))
    }
    keys = dict.fromkeys(key for index in refused for key in keys_to_accept(states[index]))
    command = (*run.words, *(word for key in keys for word in ("--accept", key)))
    return {
        index: other_plan(stages[index], index, states[index], changes, command=command)
        for index, changes in refused.items()
    }


def _check_inputs(run: Run, index: int, *, says: bool) -> tuple[str, ...]:
    """Raise RecipeError when a started stage would go on with other data, base weights or earlier runs.

    Returns what was changed and is accepted.
    """
    stage = run.plan.stages[index]
    folder = Path(stage.output_dir)
    comparison = compare_inputs(folder, stage_plan(run.plan, index))
    if says and not comparison.is_recorded:
        say(
            f"{stage.name}: {folder} has no usable {INPUTS}: whether its data and base weights were changed "
            "cannot be told"
        )
    accepted = {each.key for each in run.accepted if each.stage in (None, stage.name)}
    waits_for = _resumed_before(run, index)
    problems = [*input_problems(folder, comparison, accepted=accepted, waits_for=waits_for)]
    for warning in (problem for problem in problems if says and problem.severity == "warning"):
        say(f"{stage.name}: {warning.message}: {warning.found}")
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        raise RecipeError(*(at_stage(problem, index) for problem in errors))
    taken = [each for each in comparison.differences if each.key in accepted]
    for each in taken if says else ():
        say(f"{stage.name}: accepts {each.key}: {each.words}")
    return tuple(each.words for each in taken)


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
    environment = describe_environment(sys.argv)
    _record(run, index, beginning, environment)
    if beginning.event == "extend":
        # Before the plan: a plan with more steps than were trained must not lie beside DONE.
        (folder / DONE).unlink(missing_ok=True)
        sync_folder(folder)
    _clear(run, index, beginning)
    write_opening(
        folder,
        plan=stage_plan(run.plan, index),
        recipe_yaml=write_resolved(run.loaded.recipe),
        environment=environment,
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


def _record(run: Run, index: int, beginning: Beginning, environment: dict[str, object]) -> None:
    """Note this start in the run's history, before anything else in its folder changes."""
    from llava_recipes.train.checkpoints import step_of

    folder, state = Path(run.plan.stages[index].output_dir), beginning.state
    step = 0 if beginning.checkpoint is None else step_of(beginning.checkpoint)
    line = history.entry(
        beginning.event,
        step=step,
        changes=state.changes,
        inputs=beginning.inputs,
        accepted=[each.text for each in run.accepted],
        world_size=run.plan.world_size,
        environment=environment,
        plan_before=dict(state.recorded) if state.changes else None,
        done_before=read_object(folder / DONE) if beginning.event == "extend" else None,
    )
    history.append(folder, line)


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
    is_asked = run.interruption.reason not in (None, OF_OTHERS) or any(
        -each.code in STOP_SIGNALS or each.code - 128 in STOP_SIGNALS for each in outcomes
    )
    is_unfinished = result is None or any(each.has_stopped or each.code for each in outcomes)
    if is_asked and is_unfinished and (answer.cut_short or not any(each.bug for each in outcomes)):
        raise Stopped(stopped_words(run.plan.stages[index], answer, run.interruption.reason))
    silent = [each for each in outcomes if each.code and not each.bug and not each.was_interrupted]
    bugs = [outcome.bug for outcome in outcomes if outcome.bug is not None]
    # What a process says whose peer is gone is no cause.
    killed = next((each for each in outcomes if each.killed and not each.was_interrupted), None)
    if killed is not None:
        # The others only report that it is gone.
        bugs, silent = [], [killed]
    if bugs and not (silent and all(map(_OF_PEERS.search, bugs))):
        raise WorkerBug(next((bug for bug in bugs if not _OF_PEERS.search(bug)), bugs[0]))
    if silent and (killed or result is None or result.stopped_early or silent[0] is not outcomes[0]):
        code, where = silent[0].code, f" on {silent[0].host}" if len(outcomes) > 1 else ""
        how = ", killed by a signal" if code < 0 or code > 128 else ""
        raise run.loaded.fail(
            Problem(
                "a training process exited without an error message",
                code="training-process-died",
                path=("stages", index),
                found=f"{killed.killed}{where}" if killed else f"exit code {code}{where}{how}",
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
