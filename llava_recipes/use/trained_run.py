"""Open a run folder of ours: its plan says what its weights belong to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from llava_recipes.errors import RecipeError
from llava_recipes.files import expanded, real_path
from llava_recipes.model.assemble import Assembled, assemble
from llava_recipes.model.placing import TORCH_DTYPES, cast_weights
from llava_recipes.model.starts import load_start
from llava_recipes.model.weights import load_trained
from llava_recipes.plan.types import ModelPlan, Plan, StagePlan
from llava_recipes.runner.facts import ALL_BUT_THE_TOWER
from llava_recipes.runner.results import DONE, check_results
from llava_recipes.runner.run_folder import (
    read_finish_times,
    read_plan,
    started_in,
    starts_from_then,
    unfinished,
    was_trained_again,
)


def read_run(folder: Path) -> Plan:
    """The plan of a finished stage, with its paths as seen from here.

    Raises RecipeError when the run is not finished, its files are not as it wrote them, or its plan cannot be
    read.
    """
    if (folder / DONE).is_file():
        check_results(folder)
    plan = read_plan(folder)
    if not (folder / DONE).is_file():
        raise RecipeError(unfinished(folder))
    return _moved(plan, folder)


def assemble_run(plan: Plan, folder: Path, dtype: torch.dtype | None) -> tuple[Assembled, frozenset[str]]:
    """The model after a finished stage, adapters merged, on the CPU; and the roots that were trained.

    Weights trained with a quantized language model are laid over the unquantized one.
    """
    stage = plan.stages[0]
    dtype = dtype or TORCH_DTYPES[stage.train.precision]
    assembled = assemble(_unquantized(plan.model), dtype=dtype)
    names = [*_lay_starts_over(assembled.model, stage, folder), *load_trained(assembled.model, folder)]
    cast_weights(assembled.model, dtype)
    return assembled, frozenset(name.partition(".")[0] for name in names)


def _lay_starts_over(model: nn.Module, stage: StagePlan, folder: Path) -> Iterator[str]:
    """Lay the weights that the stage was started from over the model; yields their names.

    Raises RecipeError when one of the folders is gone, or was trained again, and the run does not contain
    all of these weights itself.
    """
    trained = set(stage.trainable_modules or ())
    then = starts_from_then(folder, len(stage.starts_from)).items()
    for start, (recorded, finished) in zip(stage.starts_from, then, strict=True):
        is_gone = finished is not None and not Path(start).exists()
        if is_gone and trained >= ALL_BUT_THE_TOWER:
            continue
        if is_gone:
            raise RecipeError.of(
                "the run that this one was started from does not exist",
                code="base-run-missing",
                found=start,
                hint="this run needs its weights: move it back to this place",
            )
        if (Path(start) / DONE).is_file():
            check_results(Path(start))
        names = load_start(model, start, ("stages",))
        yield from names
        is_needed = not {name.partition(".")[0] for name in names} <= trained
        if is_needed and was_trained_again(folder, recorded, now=start):
            now = read_finish_times((start,))[start]
            raise RecipeError.of(
                "the run that this one was started from, and needs the weights of, was trained again",
                code="base-run-changed",
                found=f"{start} was finished {finished}, and now {now or 'is not'}",
                hint="run this stage again",
            )


def with_base(plan: Plan, base: str | None) -> Plan:
    """The plan with its language model from another place, such as a copy of the folder that it names."""
    language = plan.model.language_model
    if base is None or language.source is None:
        return plan
    tokenizer = base if language.tokenizer == language.source else language.tokenizer
    language = language.model_copy(update={"source": base, "tokenizer": tokenizer, "revision": None})
    return plan.model_copy(update={"model": plan.model.model_copy(update={"language_model": language})})


def _unquantized(plan: ModelPlan) -> ModelPlan:
    language = plan.language_model.model_copy(update={"quantization": None})
    return plan.model_copy(update={"language_model": language})


def _moved(plan: Plan, folder: Path) -> Plan:
    """The plan with paths that start where the run was started; the run's own path shows where that is."""
    stage, here = plan.stages[0], real_path(folder)
    start = started_in(folder, stage.output_dir)
    if start is None or real_path(stage.output_dir) == here:
        return plan
    stage = stage.model_copy(
        update={
            "starts_from": tuple(_from(start, path, must_exist=True) for path in stage.starts_from),
            "output_dir": str(here),
        }
    )
    model, language, tower = plan.model, plan.model.language_model, plan.model.vision_tower
    init = model.projector.init_from
    model = model.model_copy(
        update={
            "language_model": language.model_copy(
                update={
                    "source": language.source and _from(start, language.source, must_exist=True),
                    "tokenizer": _from(start, language.tokenizer, must_exist=True),
                }
            ),
            "vision_tower": tower.model_copy(
                update={"source": tower.source and _from(start, tower.source, must_exist=True)}
            ),
            "projector": model.projector.model_copy(update={"init_from": init and _from(start, init)}),
        }
    )
    return plan.model_copy(update={"stages": (stage,), "model": model})


def _from(start: Path, path: str, *, must_exist: bool = False) -> str:
    """A path seen from `start`; with `must_exist` what does not exist there stays: a hub id."""
    moved = start / expanded(path)
    return path if must_exist and not moved.exists() else str(moved)
