"""Where each stage of a run begins: at step 0, at a checkpoint, or not at all; and what forbids it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import LoadedRecipe
from llava_recipes.runner import history
from llava_recipes.runner.accepted import Accepted, AcceptError, needless
from llava_recipes.runner.inputs import INPUTS, compare_inputs, input_problems
from llava_recipes.runner.interruption import Interruption
from llava_recipes.runner.launch import Processes
from llava_recipes.runner.preflight import waiting_problems
from llava_recipes.runner.refusals import check_length, check_pieces, keys_to_accept, other_plan, unaccepted
from llava_recipes.runner.results import DONE, RESULTS, check_place, check_results
from llava_recipes.runner.run_folder import (
    FolderState,
    is_stale,
    read_folder_state,
    stage_plan,
    starts_from_then,
)
from llava_recipes.runner.team import Team
from llava_recipes.screen import say
from llava_recipes.train.metrics import METRICS, SAMPLES, SUPERSEDED, read_metrics

_MOST_CHEAP_BYTES = 2**26
_WRITTEN = (*RESULTS, history.HISTORY, METRICS, SUPERSEDED, SAMPLES, INPUTS, DONE)
"""The files that a run writes, except for its checkpoints."""


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
    problems: list[Problem] = [*waiting_problems(run.plan, run.stages, run.loaded.recipe)]
    states = _read_states(run, problems)
    _check_accepted(run, states)
    refused = _refuse(run, states)
    problems += refused.values()
    undecided = {*run.stages} - states.keys() | refused.keys()
    for index, state in states.items():
        if index in refused:
            continue
        try:
            beginning = _decide(run, index, state, beginnings, undecided)
        except RecipeError as error:
            problems += error.problems
            undecided.add(index)
            continue
        if beginning is not None:
            beginnings[index] = beginning
    if problems:
        raise run.loaded.fail(*problems)
    for index, beginning in beginnings.items():
        announce(run, index, beginning)
    return beginnings


def announce(run: Run, index: int, beginning: Beginning) -> None:
    """Say where a stage begins, where that is not step 0 of a new one."""
    stage = run.plan.stages[index]
    if beginning.checkpoint is not None:
        say(f"{stage.name}: resumes from {beginning.checkpoint}")
    elif beginning.skipped:
        say(f"{stage.name}: starts again at step 0, since no checkpoint can be used")
    elif run.resume or beginning.state.kind == "started":
        say(f"{stage.name}: starts at step 0, since {Path(stage.output_dir)} has no checkpoint")


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


def _decide(
    run: Run, index: int, state: FolderState, earlier: Mapping[int, Beginning], undecided: Collection[int]
) -> Beginning | None:
    """Where the stage begins, or None when it is done already; nothing is known of `undecided` stages."""
    stage = run.plan.stages[index]
    folder = Path(stage.output_dir)
    if state.kind == "done":
        check_results(folder, path=("stages", index, "output_dir"))
        # Other starts were accepted by name.
        if not any("init_from" in change.keys for change in state.decisive):
            _check_starts_of(run, index, earlier, undecided)
        if not state.decisive:
            say(f"{stage.name}: already done, in {folder}")
            _report_changed_inputs(run, index)
            return None
    _check_places(folder)
    read_metrics(folder / METRICS)
    for change in state.changes:
        verb = "takes" if change.kind == "harmless" or not state.checkpoints else "accepts"
        say(f"{stage.name}: {verb} {change}")
    if not state.checkpoints:
        return Beginning(None, event="start" if state.kind == "new" else "restart", state=state)
    beginning = newest_sound(run, index, {})
    if beginning.checkpoint is None:
        return replace(beginning, event="restart", state=state)
    inputs = check_inputs(run, index, says=True)
    check_length(stage, index, beginning.checkpoint)
    check_pieces(stage, index, beginning.checkpoint, world_size=run.plan.world_size)
    event: history.Event = "extend" if state.kind == "done" else "resume"
    return replace(beginning, event=event, state=state, inputs=inputs)


def _check_starts_of(
    run: Run, index: int, earlier: Mapping[int, Beginning], undecided: Collection[int]
) -> None:
    """Raise RecipeError when a done stage has to be trained again, as far as that can be told now.

    An earlier stage without steps left only writes its results again: `check_done` compares them then.
    """
    from llava_recipes.train.checkpoints import step_of

    stages, stage = run.plan.stages, run.plan.stages[index]
    starts = [number for number in (*earlier, *undecided) if stages[number].output_dir in stage.starts_from]
    places = {number: earlier[number].checkpoint for number in starts if number in earlier}
    trains = any(
        place is None or step_of(place) != stages[number].train.max_steps for number, place in places.items()
    )
    if trains or (not starts and is_stale(Path(stage.output_dir), stage.starts_from)):
        raise RecipeError(_stale(Path(stage.output_dir), index))


def check_done(run: Run, begun: Collection[int]) -> None:
    """Raise RecipeError when a stage that was done before must be trained again, since others were now."""
    written = {run.plan.stages[index].output_dir for index in begun}
    for index in run.stages:
        stage = run.plan.stages[index]
        folder = Path(stage.output_dir)
        if index not in begun and written & {*stage.starts_from} and is_stale(folder, stage.starts_from):
            raise run.loaded.fail(_stale(folder, index))


def _check_places(folder: Path) -> None:
    """Raise RecipeError for all that is in the place of a file of the run: none could be written there."""
    from llava_recipes.train.checkpoints import LATEST

    problems: list[Problem] = []
    for name in (*_WRITTEN, LATEST):
        try:
            check_place(folder / name)
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(*problems)


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
    inputs = [
        (stages[index].name, each)
        for index, state in states.items()
        if new and state.kind in ("started", "done")
        for each in compare_inputs(Path(stages[index].output_dir), stage_plan(run.plan, index)).differences
    ]
    others = [
        each
        for each in new
        if not any(each.stage in (None, name) and found.is_accepted({each.key}) for name, found in inputs)
    ]
    faults = [*needless(others, changes)]
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
    given = {each.text for each in run.accepted}
    keys = dict.fromkeys(key for index in refused for key in keys_to_accept(states[index], stages[index]))
    command = (*run.words, *(word for key in keys if key not in given for word in ("--accept", key)))
    launcher = None if run.team is None or run.team.world.is_optional else run.team.world.launcher
    return {
        index: other_plan(stages[index], index, states[index], changes, command=command, launcher=launcher)
        for index, changes in refused.items()
    }


def check_inputs(run: Run, index: int, *, says: bool) -> tuple[str, ...]:
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
    taken = [each for each in comparison.differences if each.is_accepted(accepted)]
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


def newest_sound(run: Run, index: int, skipped: Mapping[Path, str]) -> Beginning:
    """The newest usable checkpoint of a stage, or step 0; what is wrong with each newer one is printed.

    `skipped` are those that were looked at before. Raises RecipeError for a checkpoint of an earlier version.
    """
    from llava_recipes.train.checkpoints import check_form, find_damage, list_checkpoints, missing_latest

    damages = dict(skipped)
    stage = run.plan.stages[index]
    name = history.run_of(Path(stage.output_dir))
    missing = missing_latest(Path(stage.output_dir))
    if missing is not None and not damages:
        say(f"{stage.name}: {missing}, which was saved last, is missing in {stage.output_dir}")
    for checkpoint in list_checkpoints(Path(stage.output_dir)):
        folder = checkpoint.folder
        if folder in damages:
            continue
        with problems_at(index):
            check_form(folder)
        damage = find_damage(folder, run=name)
        if damage is None:
            return Beginning(folder, damages)
        damages[folder] = damage
        say(f"{stage.name}: skips {folder}: {damage}")
    return Beginning(None, damages)


@contextmanager
def problems_at(index: int) -> Iterator[None]:
    """Give the problems that the block raises, about a plan of one stage, the stage's own number."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(*(at_stage(problem, index) for problem in error.problems)) from error


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
