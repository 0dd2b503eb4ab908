"""A run as something to ask, from what the command line says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from llava_recipes.layouts import LAYOUTS
from llava_recipes.model.answering import Answerer
from llava_recipes.model.precision import DTYPES, usual_device
from llava_recipes.plan.types import DataPlan
from llava_recipes.recipe.errors import Problem, RecipeError
from llava_recipes.runs.opened import OpenedRun, open_run

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Opened:
    """A run, and the one who answers with it."""

    run: OpenedRun
    answerer: Answerer


def open_to_ask(
    path: str,
    *,
    precision: Precision | None,
    device: str | None,
    base: str | None,
    system_prompt: str | None = None,
) -> Opened:
    """Open a run, an exported folder or an original checkpoint.

    precision      default: float32 on a CPU, else what the run computed in
    device         `cpu`, `cuda`, `cuda:1`; default: the GPU where there is one
    system_prompt  in place of the run's

    Raises RecipeError when there is no such device, when the template has no place for a system prompt, and
    what `open_run` raises.
    """
    place = _device(device)
    dtype = None if precision is None else DTYPES[precision]
    if dtype is None and place.type == "cpu":
        dtype = torch.float32
    run = open_run(path, dtype=dtype, device=place, base=base)
    data = run.data if system_prompt is None else _with_system(run.data, system_prompt)
    return Opened(run, Answerer(run.assembled, data, start_end=run.plan.image_tokens.start_end))


def _with_system(data: DataPlan, text: str) -> DataPlan:
    if data.template is not None and LAYOUTS[data.template].system is None:
        raise RecipeError(
            Problem(
                f"template `{data.template}` has no place for a system prompt",
                code="no-place-for-system-prompt",
                hint="leave out --system",
            )
        )
    return data.model_copy(update={"system_prompt": text})


def _device(name: str | None) -> torch.device:
    if name is None:
        return usual_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        lines = str(error).splitlines()
        raise RecipeError(
            Problem(
                f'there is no device "{name}" here',
                code="unknown-device",
                found=lines[0] if lines else type(error).__name__,
                hint="`cpu`, or `cuda` where there is a GPU",
            )
        ) from None
    return device
