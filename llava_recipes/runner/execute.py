"""Run a plan: stage after stage, each in processes of its own and a folder of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.files import sync_folder
from llava_recipes.plan.types import StagePlan
from llava_recipes.recipe.foreign import read_object
from llava_recipes.recipe.writer import write_resolved
from llava_recipes.runner import history
from llava_recipes.runner.beginnings import (
    Beginning,
    Run,
    announce,
    at_stage,
    check_done,
    check_inputs,
    find_beginnings,
    newest_sound,
)
from llava_recipes.runner.follow import lead, outcome_of
from llava_recipes.runner.hand_off import check_start
from llava_recipes.runner.hangs import RUN_HANGS, RunHangs, in_time, watched
from llava_recipes.runner.identity import run_name
from llava_recipes.runner.inputs import Record, contents_of, describe_inputs, record_inputs
from llava_recipes.runner.launch import Answer, run_processes
from llava_recipes.runner.lock import Held, take
from llava_recipes.runner.reports import Request, Result
from llava_recipes.runner.results import DONE
from llava_recipes.runner.run_folder import (
    describe_environment,
    stage_plan,
    write_done,
    write_opening,
)
from llava_recipes.runner.team import Outcome
from llava_recipes.runner.write_failure import write_problem
from llava_recipes.screen import say, shown
from llava_recipes.stop_signals import OF_OTHERS, STOP_SIGNALS
from llava_recipes.train.stopping import is_of_peers

LOOKING = "looks at the run folders"
"""What the command does before a stage, in the words of a hang."""
_TO_RELEASE_S = 5.0


class WorkerBug(Exception):
    """A training process failed because of a bug of ours; carries its traceback."""


class Stopped(Exception):
    """The run stopped on request. Carries the line to print."""


def run_stages(run: Run) -> None:
    """Train every chosen stage that is not done yet.

    Raises RecipeError for what the user can fix, AcceptError for a needless `--accept`, Stopped when asked
    to stop with stages left, WorkerBug for a bug of ours.
    """
    with ExitStack() as released:
        with run.interruption.ending_at_once():
            # Before anything is decided: of two runs that start at once, one must see what the other writes.
            locks = _take_folders(run, released)
            with watched(LOOKING, run.hang_timeout_s):
                beginnings = find_beginnings(run)
        for index in locks.keys() - beginnings.keys():
            locks[index].close()
        for index, beginning in beginnings.items():
            run.interruption.seconds_left()
            if run.interruption.reason is not None:
                raise Stopped(_not_begun(run, index))
            try:
                _run_stage(run, index, beginning, locks[index])
            except RunHangs:
                # The disk of the folders may be what hangs: then the locks end with this process.
                in_time(released.pop_all().close, _TO_RELEASE_S)
                raise
            locks[index].close()
        with watched(LOOKING, run.hang_timeout_s):
            check_done(run, beginnings)


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
    stage, plan = run.plan.stages[index], stage_plan(run.plan, index)
    folder = Path(stage.output_dir).absolute()
    environment = describe_environment(sys.argv)
    with watched("prepares the run folder", run.hang_timeout_s):
        # Before anything in the folder changes: a stage that is refused stays as it was.
        _check_starts(run, index, beginning)
        inputs = describe_inputs(folder, plan)
        name = _name(run, index, beginning, inputs)
        _record(run, index, beginning, environment, name=name)
        if beginning.event == "extend":
            # Before the plan: a plan with more steps than were trained must not lie beside DONE.
            (folder / DONE).unlink(missing_ok=True)
            sync_folder(folder)
        _clear(run, index, beginning)
        write_opening(
            folder, plan=plan, recipe_yaml=write_resolved(run.loaded.recipe), environment=environment
        )
        knows_all = record_inputs(folder, inputs)
    result = _train(run, index, beginning, lock, name=name)
    with watched("finishes the run folder", run.hang_timeout_s):
        if not knows_all:
            record_inputs(folder, describe_inputs(folder, plan))
        write_done(
            folder,
            num_steps=result.num_steps,
            last_loss=result.last_loss,
            starts_from=stage.starts_from,
            eval_loss=result.eval_loss,
            warnings=result.warnings,
        )


def _record(run: Run, index: int, beginning: Beginning, environment: dict[str, object], *, name: str) -> None:
    """Note this start in the run's history, before anything else in its folder changes."""
    from llava_recipes.train.checkpoints import step_of

    folder, state = Path(run.plan.stages[index].output_dir), beginning.state
    step = 0 if beginning.checkpoint is None else step_of(beginning.checkpoint)
    line = history.entry(
        beginning.event,
        run=name,
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


def _name(run: Run, index: int, beginning: Beginning, inputs: Mapping[str, Record]) -> str:
    """The name that the checkpoints of a run carry: what was accepted since its start doesn't change it."""
    from llava_recipes.train.checkpoints import read_facts

    known = None
    if beginning.checkpoint is not None:
        folder = Path(run.plan.stages[index].output_dir)
        known = history.run_of(folder) or read_facts(beginning.checkpoint).run
    plan = stage_plan(run.plan, index)
    return known or run_name(plan, contents_of(plan, inputs))


def _check_starts(run: Run, index: int, beginning: Beginning) -> None:
    """Raise RecipeError when results that a stage starts from are not as their run wrote them, or others."""
    try:
        if beginning.checkpoint is not None:
            check_inputs(run, index, says=False)
        for start in run.plan.stages[index].starts_from:
            check_start(start, path=("stages", index, "init_from"))
    except RecipeError as error:
        raise run.loaded.fail(*error.problems) from None


def _train(run: Run, index: int, beginning: Beginning, lock: Held, *, name: str) -> Result:
    """Train a stage in its processes, from an older checkpoint where a newer one cannot be loaded."""
    from llava_recipes.train.checkpoints import NOTHING_LEARNED, UNUSABLE, list_checkpoints

    while True:
        try:
            return _train_from(run, index, beginning.checkpoint, lock, name=name)
        except RecipeError as error:
            why = next((problem.found for problem in error.problems if problem.code == UNUSABLE), None)
            if any(problem.code == NOTHING_LEARNED for problem in error.problems):
                found = list_checkpoints(Path(run.plan.stages[index].output_dir))
                # From these no recipe learns: the corrected one must not go on from the last.
                _clear(run, index, Beginning(None, {each.folder: "" for each in found}))
            if why is None or beginning.checkpoint is None:
                raise
        say(f"{run.plan.stages[index].name}: skips {beginning.checkpoint}: {why}")
        with watched(LOOKING, run.hang_timeout_s):
            try:
                beginning = newest_sound(run, index, {**beginning.skipped, beginning.checkpoint: why})
            except RecipeError as error:
                raise run.loaded.fail(*error.problems) from None
            announce(run, index, beginning)
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


def _train_from(run: Run, index: int, checkpoint: Path | None, lock: Held, *, name: str) -> Result:
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
        run=name,
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
    # What a process says whose peer is gone is no cause.
    killed = next((each for each in outcomes if each.killed and not each.was_interrupted), None)
    spoils = killed is not None and _by_nobody(killed, answer)
    bugs = [outcome.bug for outcome in outcomes if outcome.bug is not None]
    if is_asked:
        # Nor is what one says whose peer was asked to stop, and has left.
        bugs = [bug for bug in bugs if not is_of_peers(bug)]
    if is_asked and is_unfinished and (answer.cut_short or not (spoils or bugs)):
        raise Stopped(_stopped_words(run.plan.stages[index], answer, run.interruption.reason))
    silent = [each for each in outcomes if each.code and not each.bug and not each.was_interrupted]
    if killed is not None:
        # The others only report that it is gone.
        bugs, silent = [], [killed]
    if bugs and not (silent and all(map(is_of_peers, bugs))):
        raise WorkerBug(next((bug for bug in bugs if not is_of_peers(bug)), bugs[0]))
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
        raise Stopped(_stopped_words(run.plan.stages[index], answer, run.interruption.reason))
    return result


def _by_nobody(killed: Outcome, answer: Answer) -> bool:
    """Whether a process was killed by no request to stop, before what was learned had been saved."""
    was_asked = str(killed.killed).endswith(tuple(f" by {each.name}" for each in STOP_SIGNALS))
    return not was_asked and not any(each.stopped_early for each in answer.reports.results.values())


def _not_begun(run: Run, index: int) -> str:
    stage = run.plan.stages[index]
    return (
        f"{stage.name}: not begun, since the run was asked to stop by {run.interruption.reason}; the "
        "stages before it are done, and `--resume` continues with it"
    )


def _stopped_words(stage: StagePlan, answer: Answer, reason: str | None) -> str:
    """One line for a stage that stopped early, or was killed while it was asked to."""
    reports = answer.reports
    newest = _newest_checkpoint(Path(stage.output_dir))
    saved = [result.num_steps for result in reports.results.values() if result.stopped_early]
    if saved and not answer.cut_short:
        step = max(saved)
        what = f"stopped after step {step:,} and saved checkpoint-{step}; `--resume` continues from it"
    elif answer.cut_short and reports.has_begun:
        what = f"ended at once: {answer.cut_short}; {_standing(newest)}"
    elif steps := [stop["step"] for stop in reports.stops if stop.get("step") is not None]:
        waits = [stop["waited_for"] for stop in reports.stops if stop.get("waited_for")]
        met = [line for stop in reports.stops for line in (stop.get("met") or "").splitlines()[:1]]
        why = ""
        if waits:
            why = f", since nothing moved while the run waited for {waits[0]}"
        elif met:
            why = f", since another process had left: {shown(met[0])}"
        what = f"stopped after step {max(steps):,} without saving it{why}; {_standing(newest)}"
    elif reason == "--max-time":
        # The same command would get no further either.
        saved_so_far = "nothing was saved" if newest is None else f"{newest.name} stands"
        what = f"loading left no time for a step; {saved_so_far}; give it more time"
    elif newest is None:
        what = "interrupted before the first step; nothing was saved; the same command starts it again"
    else:
        what = f"interrupted before a further step; {_standing(newest)}"
    return f"{stage.name}: {what}" + ("" if reason is None else f" (asked by {reason})")


def _standing(newest: Path | None) -> str:
    if newest is None:
        return "no checkpoint was saved; the same command starts it again at step 0"
    return f"{newest.name} stands, and `--resume` continues from it"


def _newest_checkpoint(folder: Path) -> Path | None:
    from llava_recipes.train.checkpoints import SEAL, list_checkpoints

    return next((found.folder for found in list_checkpoints(folder) if (found.folder / SEAL).is_file()), None)
