"""Our own run folder: the plan beside the weights says what they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from llava_recipes.errors import RecipeError
from llava_recipes.files import expanded, real_path
from llava_recipes.model.assemble import Assembled, assemble
from llava_recipes.model.placing import DTYPES, cast_weights
from llava_recipes.model.starts import load_start
from llava_recipes.model.weights import load_trained
from llava_recipes.plan.types import LanguageModelPlan, ModelPlan, Plan, StagePlan
from llava_recipes.runner.facts import ALL_BUT_THE_TOWER
from llava_recipes.runner.run_folder import (
    DONE,
    read_finish_times,
    read_plan,
    started_in,
    starts_from_then,
    unfinished,
)


def read_run(folder: Path) -> Plan:
    """The plan of a finished stage, its paths as they are from here.

    Raises RecipeError when the run is not finished, or its plan cannot be read.
    """
    plan = read_plan(folder)
    if not (folder / DONE).is_file():
        raise RecipeError(unfinished(folder))
    return _moved(plan, folder)


def assemble_run(plan: Plan, folder: Path, dtype: torch.dtype | None) -> tuple[Assembled, frozenset[str]]:
    """The model as a finished stage left it, adapters merged, on the CPU; and the roots that were trained.

    What was trained beside a quantized language model is laid over the whole one.
    """
    stage = plan.stages[0]
    dtype = dtype or DTYPES[stage.train.precision]
    assembled = assemble(in_full(plan.model), dtype=dtype)
    names = [*_lay_starts_over(assembled.model, stage, folder), *load_trained(assembled.model, folder)]
    cast_weights(assembled.model, dtype)
    return assembled, frozenset(name.partition(".")[0] for name in names)


def _lay_starts_over(model: nn.Module, stage: StagePlan, folder: Path) -> Iterator[str]:
    """Lay what the stage was started from over the model; names of weights as they change.

    Raises RecipeError when one of the folders is gone, or was trained again, and the run does not hold all
    of those weights itself.
    """
    trained = set(stage.trainable_modules or ())
    then = starts_from_then(folder, len(stage.starts_from)).values()
    for start, finished in zip(stage.starts_from, then, strict=True):
        is_gone = finished is not None and not Path(start).exists()
        if is_gone and trained >= ALL_BUT_THE_TOWER:
            continue
        if is_gone:
            hint = "its weights lie under this run's: bring it back to where it was"
            raise RecipeError.of(
                "the run that this one was started from is gone",
                code="base-run-missing",
                found=start,
                hint=hint,
            )
        names = load_start(model, start, ("stages",))
        yield from names
        now = read_finish_times((start,))[start]
        if now != finished and not {name.partition(".")[0] for name in names} <= trained:
            raise RecipeError.of(
                "the run that this one was started from was trained again, and its weights lie under it",
                code="base-run-changed",
                found=f"{start} was finished {finished}, and now {now or 'is not'}",
                hint="run this stage again",
            )


def with_base(plan: Plan, base: str | None) -> Plan:
    """The plan with its language model taken from another place, e.g. a copy of the folder it names."""
    language = plan.model.language_model
    if base is None or language.source is None:
        return plan
    tokenizer = base if language.tokenizer == language.source else language.tokenizer
    language = language.model_copy(update={"source": base, "tokenizer": tokenizer, "revision": None})
    return plan.model_copy(update={"model": plan.model.model_copy(update={"language_model": language})})


def in_full(plan: ModelPlan) -> ModelPlan:
    """The same model with every weight in its own precision."""
    language = plan.language_model.model_copy(update={"quantization": None})
    return plan.model_copy(update={"language_model": language})


def _moved(plan: Plan, folder: Path) -> Plan:
    """Relative paths of a plan start where the run was started; that place is told by the run's own path."""
    stage, here = plan.stages[0], real_path(folder)
    start = started_in(folder, stage.output_dir)
    if start is None or real_path(stage.output_dir) == here:
        return plan
    stage = stage.model_copy(
        update={
            "starts_from": tuple(_from(start, path, must_be_there=True) for path in stage.starts_from),
            "output_dir": str(here),
        }
    )
    model, language, tower = plan.model, plan.model.language_model, plan.model.vision_tower
    init = model.projector.init_from
    model = model.model_copy(
        update={
            "language_model": _language_from(start, language),
            "vision_tower": tower.model_copy(
                update={"source": tower.source and _from(start, tower.source, must_be_there=True)}
            ),
            "projector": model.projector.model_copy(update={"init_from": init and _from(start, init)}),
        }
    )
    return plan.model_copy(update={"stages": (stage,), "model": model})


def _language_from(start: Path, language: LanguageModelPlan) -> LanguageModelPlan:
    source = language.source and _from(start, language.source, must_be_there=True)
    tokenizer = _from(start, language.tokenizer, must_be_there=True)
    return language.model_copy(update={"source": source, "tokenizer": tokenizer})


def _from(start: Path, path: str, *, must_be_there: bool = False) -> str:
    """A path seen from `start`; a hub id looks like one and stays when there is no such folder."""
    moved = start / expanded(path)
    return path if must_be_there and not moved.exists() else str(moved)
