"""A run folder: its files, what they record, and when a run may write them."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue, ValidationError

from llava_recipes import __version__
from llava_recipes.deepspeed_presets import DEEPSPEED_PRESETS
from llava_recipes.errors import Mark, Problem, RecipeError
from llava_recipes.files import odd_kind, real_path, replacing, system_folder, write_text
from llava_recipes.masking import mask_command
from llava_recipes.plan.deepspeed import complete
from llava_recipes.plan.types import Plan, plan_from_json
from llava_recipes.recipe.foreign import made_of, read_object
from llava_recipes.recipe.locations import check_place
from llava_recipes.recipe.scalars import kind_of
from llava_recipes.recipe.schema import Recipe
from llava_recipes.runner.changes import Change, find_changes
from llava_recipes.runner.history import HISTORY
from llava_recipes.runner.lock import LOCK
from llava_recipes.runner.results import (
    DONE,
    WEIGHTS,
    damaged_done,
    done_text,
    read_done,
    remove_leftovers,
    weights_sum,
)

if TYPE_CHECKING:
    from llava_recipes.train.checkpoints import Checkpoint
    from llava_recipes.train.stage import TrainedStage

PLAN, RECIPE, ENVIRONMENT = "plan.json", "recipe.resolved.yaml", "environment.json"

_OTHER_VERSION = (
    "it is damaged, or another version of llava-recipes wrote it: run the recipe again, or use that version"
)
_PACKAGES = (
    *("torch", "transformers", "tokenizers", "accelerate", "deepspeed"),
    *("safetensors", "pydantic", "pillow", "numpy"),
)


FolderKind = Literal["new", "foreign", "started", "done"]


@dataclass(frozen=True)
class FolderState:
    """What a run folder contains before a run."""

    kind: FolderKind
    changes: tuple[Change, ...] = ()
    """What differs between its plan and the one wanted."""
    recorded: Mapping[str, JsonValue] = field(default_factory=dict, repr=False)
    """Its plan, with what an earlier version left to defaults written out; empty without a plan."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """Newest first, damaged ones among them."""
    has_results: bool = False
    """Whether trained weights lie beside the plan."""
    is_of_earlier_form: bool = False
    """Whether its newest checkpoint is of an earlier version, from which no run goes on."""

    @property
    def decisive(self) -> tuple[Change, ...]:
        """The changes of what is learned, or of what is trained."""
        return tuple(change for change in self.changes if change.kind != "harmless")


def stage_plan(plan: Plan, index: int) -> Plan:
    """The part of a plan that one stage folder answers for."""
    return plan.model_copy(update={"stages": (plan.stages[index],), "notes": ()})


def folder_kind(folder: Path) -> FolderKind:
    """What lies in a stage's output folder: nothing, files of others, or a run of ours."""
    from llava_recipes.train.checkpoints import is_leftover

    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    # What another node is writing, or a kill left half-written, doesn't count yet, nor does a lock.
    if all(is_leftover(name) or name == HISTORY or name.startswith(LOCK) for name in names):
        return "new"
    if not (folder / PLAN).is_file():
        return "foreign"
    return "done" if (folder / DONE).is_file() else "started"


def read_folder_state(
    folder: Path, wanted: Plan, recipe: Recipe | None = None, index: int = 0, *, moved: Collection[str] = ()
) -> FolderState:
    """What a stage's output folder contains; nothing is written.

    `wanted` is the plan of stage number `index` alone. With the recipe, changes are named as it writes them.
    `moved` are paths of the plan that lead elsewhere now, to the same content.
    """
    from llava_recipes.train.checkpoints import files_of_earlier_form, list_checkpoints

    kind = folder_kind(folder)
    if kind in ("new", "foreign"):
        return FolderState(kind)
    recorded = _as_written_now(folder)
    checkpoints = tuple(list_checkpoints(folder))
    return FolderState(
        kind,
        find_changes(recorded, wanted, recipe, index, moved=moved),
        recorded,
        checkpoints,
        any((folder / name).is_file() for name in WEIGHTS),
        any(files_of_earlier_form(each.folder) is not None for each in checkpoints[:1]),
    )


def _as_written_now(folder: Path) -> dict[str, JsonValue]:
    """A run folder's plan, with what an earlier version left to defaults written out."""
    recorded = _read_object(folder / PLAN)
    try:
        plan = plan_from_json(recorded)
    except ValidationError:
        # Of another version of the plan: what differs is shown as it stands.
        return recorded
    stages = []
    for stage in plan.stages:
        if not stage.data.shuffle:
            stage = stage.model_copy(update={"data": stage.data.model_copy(update={"order": "file"})})
        norm = stage.train.training_arguments.get("max_grad_norm")
        if stage.deepspeed is not None and isinstance(norm, int | float):
            given = dict(stage.deepspeed)
            if stage.deepspeed_source in DEEPSPEED_PRESETS and given.get("gradient_clipping") == "auto":
                del given["gradient_clipping"]
            stage = stage.model_copy(update={"deepspeed": complete(given, max_grad_norm=norm)})
        stages.append(stage)
    written: dict[str, JsonValue] = plan.model_copy(update={"stages": tuple(stages)}).model_dump(mode="json")
    return written


def read_plan(folder: Path) -> Plan:
    """The plan of a run folder, which has one stage.

    Raises RecipeError where it is damaged, or of another version.
    """
    file = folder / PLAN
    values = read_object(file, hint=_OTHER_VERSION)
    with made_of(file, hint=_OTHER_VERSION):
        plan = plan_from_json(values)
    if len(plan.stages) != 1:
        raise _damaged(file, f"`stages` has {len(plan.stages)} entries instead of 1")
    for key, place in _places(plan):
        check_place(place, key=key, file=file)
    return plan


def _places(plan: Plan) -> Iterator[tuple[str, str]]:
    """The files and folders that a run's plan names, each with its key."""
    language, tower, stage = plan.model.language_model, plan.model.vision_tower, plan.stages[0]
    yield "tokenizer", language.tokenizer
    yield "output_dir", stage.output_dir
    yield from (("source", source) for source in (language.source, tower.source) if source is not None)
    yield from (("starts_from", start) for start in stage.starts_from)
    if plan.model.projector.init_from is not None:
        yield "init_from", plan.model.projector.init_from


def unfinished(folder: Path) -> Problem:
    """The problem with a run folder that has no DONE."""
    from llava_recipes.train.checkpoints import list_checkpoints

    names = [checkpoint.folder.name for checkpoint in list_checkpoints(folder)]
    return Problem(
        "this run is not finished",
        code="run-not-finished",
        found=f"no {DONE}; checkpoints: {', '.join(names) or 'none'}",
        hint=f"`{_continuing(folder)}` continues it",
    )


def _continuing(folder: Path) -> str:
    """The command that continues a run, where its relative paths lead to what they did."""
    words = ["llava-recipe", "run", str(folder / RECIPE), "--resume"]
    try:
        stage = read_plan(folder).stages[0]
    except RecipeError:
        return shlex.join(words)
    place = started_in(folder, stage.output_dir)
    if place is None and real_path(stage.output_dir) != real_path(folder):
        # It was moved.
        words += ["--set", f"stages.{stage.name}.output_dir={json.dumps(str(real_path(folder)))}"]
    elif place is not None and place != real_path("."):
        words[2] = str(Path(stage.output_dir) / RECIPE)
        return f"cd {shlex.quote(str(place))} && {shlex.join(words)}"
    return shlex.join(words)


def started_in(folder: Path, output_dir: str) -> Path | None:
    """The folder where the run was started, which relative paths of its plan start from; None if unknown.

    The folder's own path ends with the plan's `output_dir`; what stands before that is the place.
    """
    wanted = [part for part in Path(output_dir).parts if part != "."]
    here = real_path(folder)
    if Path(output_dir).is_absolute() or ".." in wanted or list(here.parts[-len(wanted) :]) != wanted:
        return None
    return here.parents[len(wanted) - 1]


def write_opening(folder: Path, *, plan: Plan, recipe_yaml: str, environment: dict[str, object]) -> None:
    """Write what is known before training."""
    folder.mkdir(parents=True, exist_ok=True)
    # The plan first, which marks the folder as ours: another node may look at it meanwhile.
    write_text(folder / PLAN, plan.model_dump_json(indent=2) + "\n")
    write_text(folder / RECIPE, recipe_yaml)
    write_text(folder / ENVIRONMENT, json.dumps(environment, indent=2) + "\n")


def write_results(plan: Plan, trained: TrainedStage, folder: Path) -> None:
    """Write what training made: weights, config.json, trainer_state.json. For the first process only.

    Raises RecipeError, and writes nothing, when a weight is not finite after the last step.
    """
    from llava_recipes.model.configs import language_half
    from llava_recipes.model.legacy_config import original_config
    from llava_recipes.model.lora import write_adapter
    from llava_recipes.model.weights import write_projector, write_trained

    trained.trainer.check_finite(trained.state, step=trained.num_steps)
    written: list[Path] = []
    if any(name.startswith("projector.") for name in trained.state):
        written += write_projector(trained.state, folder, image_tokens=trained.image_tokens)
    if any(not name.startswith("projector.") for name in trained.state):
        written.append(write_trained(trained.state, folder))
    lora = plan.stages[0].lora
    if lora is not None:
        num_layers = language_half(trained.assembled.model.config).num_hidden_layers
        base = plan.model.language_model.source or ""
        written += write_adapter(trained.state, folder, lora, base=base, num_layers=num_layers)
    remove_leftovers(folder, {file.name for file in written})
    config = original_config(plan.model, stage=plan.stages[0], assembled=trained.assembled)
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    with replacing(folder / "trainer_state.json") as temporary:
        trained.trainer.state.save_to_json(str(temporary))


def read_finish_times(folders: tuple[str, ...]) -> dict[str, str | None]:
    """When the runs in these folders were finished; None for a folder without a DONE."""
    return {folder: _finished(Path(folder)) for folder in folders}


def read_weights_sums(folders: tuple[str, ...]) -> dict[str, str | None]:
    """A SHA-256 of the weights in each of these run folders; None where no DONE lists them."""
    return {
        folder: weights_sum(read_done(Path(folder))) if (Path(folder) / DONE).is_file() else None
        for folder in folders
    }


def write_done(
    folder: Path,
    *,
    num_steps: int,
    last_loss: float | None,
    starts_from: tuple[str, ...],
    eval_loss: float | None = None,
    warnings: Sequence[str] = (),
) -> None:
    """Mark the stage as finished, with the last file of a run."""
    facts = {
        "finished": datetime.now(UTC).isoformat(),
        "steps": num_steps,
        "loss": last_loss,
        **({} if eval_loss is None else {"eval_loss": eval_loss}),
        **({"warnings": list(warnings)} if warnings else {}),
        "started_from": read_finish_times(starts_from),
        "started_from_weights": read_weights_sums(starts_from),
    }
    write_text(folder / DONE, done_text(folder, facts))


def starts_from_then(folder: Path, num_starts: int | None = None) -> dict[str, JsonValue]:
    """The folders that a finished stage started from, each with the time when it was finished then.

    Raises RecipeError where DONE is damaged, or names another number of them than `num_starts`.
    """
    recorded = read_done(folder, needs="started_from")["started_from"]
    if not isinstance(recorded, dict):
        raise damaged_done(folder, f"`started_from` is {kind_of(recorded)}, not a mapping")
    if num_starts not in (None, len(recorded)):
        raise damaged_done(folder, f"{len(recorded)} folders in `started_from`, {num_starts} in {PLAN}")
    return recorded


def is_stale(folder: Path, starts_from: tuple[str, ...]) -> bool:
    """Whether a finished stage was started from other runs, or from other weights of them."""
    then = starts_from_then(folder)
    # They may have moved since; the oldest may be gone, where later ones have trained all of them again.
    num_gone = max(0, len(then) - len(starts_from)) if starts_from else 0
    gone, kept = [*then][:num_gone], [*then][num_gone:]
    if len(kept) != len(starts_from) or any(Path(start).exists() for start in gone):
        return True
    pairs = zip(kept, starts_from, strict=True)
    return any(was_trained_again(folder, start, now=now) for start, now in pairs)


def was_trained_again(folder: Path, start: str, *, now: str) -> bool:
    """Whether a run has other weights than when a finished stage started from it.

    `start` is its folder in the stage's plan, `now` the same folder as seen from here.
    """
    then = starts_from_then(folder).get(start)
    if then == read_finish_times((now,))[now]:
        return False
    sums = read_done(folder).get("started_from_weights")
    known = sums.get(start) if isinstance(sums, dict) else None
    return known is None or known != read_weights_sums((now,))[now]


def find_obstacle(folder: Path) -> str | None:
    """Why nothing can be written to a folder, or None; nothing is created."""
    try:
        return _obstacle(folder)
    except (OSError, ValueError, RuntimeError) as error:
        return getattr(error, "strerror", None) or str(error)


def _obstacle(folder: Path) -> str | None:
    system = system_folder(folder)
    if system is not None:
        return f"it is inside {system}, a system folder"
    nearest = folder
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    what = "it" if nearest == folder else str(nearest)
    if not nearest.exists():
        return f"{what} is a broken link, to {os.readlink(nearest)}"
    if not nearest.is_dir():
        return f"{what} is {odd_kind(nearest) or 'a file'}"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{nearest} is not writable"
    return None


def _read_object(file: Path) -> dict[str, JsonValue]:
    """A JSON file of a run folder. Raises RecipeError where it is damaged."""
    try:
        return read_object(file)
    except RecipeError as error:
        raise _damaged(file, str(error.problems[0].found)) from None


def _damaged(file: Path, found: str) -> RecipeError:
    hint = "move the folder away, or choose another `output_dir`"
    message = f"{file.name} of the run folder is damaged"
    return RecipeError.of(
        message, code="run-folder-damaged", mark=Mark(str(file), 0, 0), found=found, hint=hint
    )


def _finished(folder: Path) -> str | None:
    if not (folder / DONE).is_file():
        return None
    return str(read_done(folder, needs="finished")["finished"])


def describe_environment(argv: list[str]) -> dict[str, object]:
    """Versions, platform and the command line without its secrets, for environment.json."""
    return {
        "llava_recipes": __version__,
        "command": mask_command(argv),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
