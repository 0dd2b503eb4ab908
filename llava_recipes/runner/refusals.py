"""Why a run does not go on in its folder with another recipe, and the ways on."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.plan.types import StagePlan
from llava_recipes.recipe.scalars import value_at
from llava_recipes.runner.accepted import Accepted
from llava_recipes.runner.changes import Change, is_elementwise
from llava_recipes.runner.run_folder import FolderState

if TYPE_CHECKING:
    from llava_recipes.train.checkpoints import Checkpoint

_NUM_SHOWN = 12
_FITTING = ("trainable", "freeze", "train.optim", "train.extra.optim_target_modules", "deepspeed")
"""Structural keys whose change leaves the checkpoint's weights usable as a start."""


def unaccepted(state: FolderState, stage: str, accepted: Iterable[Accepted]) -> tuple[Change, ...]:
    """The changes that keep a stage from going on in its folder; none where nothing was trained there."""
    if not (state.kind == "done" or state.checkpoints or state.has_results):
        return ()
    if not state.checkpoints or (state.kind == "done" and not is_longer(state)):
        return state.decisive
    given = tuple(accepted)
    return tuple(
        change
        for change in state.decisive
        if change.kind == "structural" or not any(each.covers(change, stage) for each in given)
    )


def is_longer(state: FolderState) -> bool:
    """Whether more steps are wanted than the folder's plan has."""
    lengths = [(change.then, change.now) for change in state.changes if "train.max_steps" in change.keys]
    return any(
        isinstance(then, int | float) and isinstance(now, int | float) and now > then for then, now in lengths
    )


def keys_to_accept(state: FolderState, stage: StagePlan) -> list[str]:
    """What `--accept` must name for the stage to go on; empty where it cannot."""
    if not state.checkpoints or state.is_of_earlier_form or (state.kind == "done" and not is_longer(state)):
        return []
    if _is_too_long(stage, state.checkpoints[0].step):
        return []
    if any(change.kind == "structural" for change in state.decisive):
        return []
    return list(dict.fromkeys(change.key for change in state.decisive))


def describe_folder(state: FolderState, stage: StagePlan) -> str | None:
    """What `run` does with a stage's folder, in a line; None where it has none yet."""
    if state.kind == "new":
        return None
    if state.kind == "foreign":
        return f"{stage.output_dir} contains files that no run of llava-recipe wrote: `run` refuses it"
    changes = unaccepted(state, stage.name, ())
    if changes:
        keys = " ".join(f"--accept {key}" for key in keys_to_accept(state, stage))
        what = f"`run` needs {keys}" if keys else "`run` refuses it"
        more = f"; and {len(changes) - 1} more" if len(changes) > 1 else ""
        return f"{stage.output_dir} contains a run of another plan: {what} ({changes[0]}{more})"
    if state.kind == "done":
        return f"already done, in {stage.output_dir}"
    if not state.checkpoints:
        return f"starts at step 0: nothing was trained in {stage.output_dir}"
    if state.is_of_earlier_form:
        return f"{state.checkpoints[0].folder} was written by an earlier version: `run` refuses it"
    return f"continues from {state.checkpoints[0].folder}"


def other_plan(
    stage: StagePlan,
    index: int,
    state: FolderState,
    changes: Sequence[Change],
    *,
    command: Sequence[str],
    launcher: str | None,
) -> Problem:
    """The problem of a folder whose run has another plan.

    `command` accepts the changes of every stage. Where a launcher starts it, alone it would be another run.
    """
    shown = [f"{change}" for change in changes[:_NUM_SHOWN]]
    if len(changes) > len(shown):
        shown.append(f"and {len(changes) - len(shown)} more")
    what = "a finished run" if state.kind == "done" else "a run"
    way_on = _way_on(stage, state, command, launcher)
    return Problem(
        f"output_dir contains {what} of another plan",
        code="output-dir-holds-another-plan",
        path=("stages", index, "output_dir"),
        found="\n".join([f"{stage.output_dir} differs in", *shown]),
        hint=f"{way_on}; or choose another `output_dir`, or change the recipe back",
    )


def _way_on(stage: StagePlan, state: FolderState, command: Sequence[str], launcher: str | None) -> str:
    newest = state.checkpoints[0].folder if state.checkpoints else None
    if keys_to_accept(state, stage) and newest is not None:
        started = "" if launcher is None else f", started by {launcher} as before,"
        return f"`{shlex.join(command)}`{started} goes on from {newest.name} with the changes"
    structural = [change for change in state.decisive if change.kind == "structural"]
    if state.kind != "done" and not structural and newest is not None and not state.is_of_earlier_form:
        return _of_length(stage, state.checkpoints)
    if state.kind == "done":
        fits = all(change.key in _FITTING for change in structural)
        return (
            f"to start from its weights, write `init_from: {written(stage.output_dir)}` and another "
            "`output_dir`"
            if fits
            else "its weights do not fit this recipe"
        )
    has_adapters = value_at(dict(state.recorded), ("stages", 0, "lora")) is not None
    if newest is None or has_adapters or any(change.key not in _FITTING for change in structural):
        return "no checkpoint of it fits this recipe" if newest else "it has no checkpoint to go on from"
    start = written(str(Path(stage.output_dir) / newest.name))
    return f"to start from its weights, write `init_from: {start}` and another `output_dir`"


def written(folder: str) -> str:
    """A folder as `init_from` takes it, which reads a bare word as a stage's name."""
    return folder if folder.startswith(("/", ".", "~")) else f"./{folder}"


def check_length(stage: StagePlan, index: int, checkpoint: Path) -> None:
    """Raise RecipeError where more steps were trained than the recipe wants."""
    from llava_recipes.train.checkpoints import list_checkpoints, step_of

    step = step_of(checkpoint)
    if not _is_too_long(stage, step):
        return
    found = [each for each in list_checkpoints(Path(stage.output_dir)) if each.step <= step]
    raise RecipeError.of(
        "more steps were trained than the recipe wants",
        code="more-steps-than-wanted",
        path=("stages", index, "train"),
        found=f"{checkpoint} is after step {step:,}, and the recipe ends after step "
        f"{stage.train.max_steps:,}",
        hint=f"{_of_length(stage, found)}; or choose another `output_dir`",
    )


def _is_too_long(stage: StagePlan, step: int) -> bool:
    return stage.train.max_steps is not None and step > stage.train.max_steps


def _of_length(stage: StagePlan, checkpoints: Sequence[Checkpoint]) -> str:
    """The ways on where the newest checkpoint is after the last step that is wanted."""
    later = [each.folder.name for each in checkpoints if _is_too_long(stage, each.step)]
    older = [each.folder.name for each in checkpoints if not _is_too_long(stage, each.step)]
    instead = "" if stage.train.num_train_epochs is None else " instead of `num_train_epochs`"
    back = f"; or remove {', '.join(later)} to go back to {older[0]}" if older else ""
    return f"write `max_steps: {checkpoints[0].step}`{instead} to end the run there{back}"


def check_pieces(stage: StagePlan, index: int, checkpoint: Path, *, world_size: int) -> None:
    """Raise RecipeError where an optimizer would go on with other pieces of the weights.

    DeepSpeed gives each process a piece, and some optimizers compute with what all of it has in common.
    """
    from llava_recipes.train.checkpoints import read_facts

    optimizer, before = stage.train.training_arguments.get("optim"), read_facts(checkpoint).world_size
    if stage.deepspeed is None or is_elementwise(optimizer) or before == world_size:
        return
    raise RecipeError.of(
        f"`optim: {optimizer}` cannot go on with another number of processes under DeepSpeed",
        code="optimizer-needs-the-same-processes",
        path=("stages", index, "train", "optim"),
        found=f"{checkpoint} is of {before} processes, and there are {world_size} now: the optimizer "
        "computes with pieces of the weights, which would be others",
        hint=f"run it with {before} processes in all, as by `--processes {before}`; or choose another "
        "`output_dir`" + ("" if stage.lora else f", with `init_from: {written(str(checkpoint))}`"),
    )
