"""Open a run or a checkpoint as one whole model: every weight in place, adapters merged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from llava_recipes.errors import Mark, RecipeError
from llava_recipes.files import expanded
from llava_recipes.layouts import LAYOUTS
from llava_recipes.model.assemble import Assembled
from llava_recipes.model.generate import Answerer
from llava_recipes.model.placing import TORCH_DTYPES, usual_device
from llava_recipes.model.pretrained import Part, pretrained_folder
from llava_recipes.model.weight_names import layout_of
from llava_recipes.plan.types import DataPlan, ModelPlan, Precision
from llava_recipes.recipe.foreign import check_model_folder, read_object
from llava_recipes.runner.run_folder import PLAN
from llava_recipes.use.foreign_folders import assemble_hf, assemble_llava
from llava_recipes.use.trained_run import assemble_run, read_run, with_base

WHOLE = ("language_model", "lm_head", "projector", "vision_tower")
_PARTS: tuple[Part, ...] = ("weights", "start", "tokenizer", "image_processor")
Kind = Literal["run", "hf", "llava"]


@dataclass(frozen=True)
class OpenedRun:
    """A whole model, and what is known about where it came from."""

    assembled: Assembled
    """In evaluation mode, without gradients, on the requested device."""
    plan: ModelPlan
    data: DataPlan
    """How its text and images were prepared last: template, aspect ratio, length."""
    kind: Kind
    path: Path
    trained: frozenset[str]
    """Roots (`projector`, `language_model`, …) whose weights are in the files."""


def open_run(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    base: str | None = None,
) -> OpenedRun:
    """Open a folder, or a whole model of the hub by its id.

    dtype   of the weights; default: the precision of the last stage
    device  default: the GPU if there is one, else the CPU
    base    the language model, hub id or folder, for files that contain only a part of the model; for a run
            of ours it replaces the one in its plan

    Raises RecipeError when there is no model, or it is unfinished, broken, or does not fit its base.
    """
    folder = expanded(path)
    try:
        opened = _open(folder, dtype, base)
        # Settings of images that the tower cannot take are a fault of the folder too.
        opened.assembled.image_layout(opened.data)
    except RecipeError as error:
        mark = Mark(str(path), 0, 0)
        raise RecipeError(*(replace(problem, mark=mark, path=None) for problem in error.problems)) from error
    model = opened.assembled.model
    model.requires_grad_(False)
    model.eval()
    model.to(device if device is not None else usual_device())
    return opened


def _open(folder: Path, dtype: torch.dtype | None, base: str | None) -> OpenedRun:
    if _is_hub_id(folder):
        folder = pretrained_folder(str(folder), None, parts=_PARTS, path=())
    if not folder.is_dir():
        what = "this is a file" if folder.exists() else "this folder does not exist"
        raise RecipeError.of(f"{what}; a run folder or a checkpoint is needed", code="not-a-model-folder")
    check_model_folder(folder, ())
    if (folder / PLAN).is_file():
        plan = with_base(read_run(folder), base)
        assembled, trained = assemble_run(plan, folder, dtype)
        return OpenedRun(assembled, plan.model, plan.stages[0].data, "run", folder, trained)
    if not (folder / "config.json").is_file():
        raise _no_model(folder)
    config = read_object(folder / "config.json")
    layout = layout_of(config)
    if layout == "hf":
        return OpenedRun(*assemble_hf(folder, dtype), "hf", folder, frozenset(WHOLE))
    if layout == "llava":
        assembled, model_plan, data, trained = assemble_llava(folder, config, dtype, base)
        return OpenedRun(assembled, model_plan, data, "llava", folder, trained)
    hint = "the config.json of a LLaVA model has a projector and a vision tower"
    found = f"model_type {config.get('model_type')}"
    raise RecipeError.of("this isn't a LLaVA model", code="not-a-model-folder", found=found, hint=hint)


def _is_hub_id(path: Path) -> bool:
    """Whether a path that does not exist has the form `owner/name` of the hub."""
    is_relative = len(path.parts) == 2 and not path.is_absolute() and path.parts[0] not in (".", "..")
    return is_relative and not path.exists() and not path.parent.exists()


def _no_model(folder: Path) -> RecipeError:
    """Why a folder cannot be opened; a hint names the runs in it."""
    runs = sorted(file.parent.name for file in folder.glob(f"*/{PLAN}"))
    if runs:
        hint = f"open one of them, the last for the finished model: {', '.join(runs)}"
        return RecipeError.of(
            "this folder contains stages of a run, not a model", code="run-folder-of-stages", hint=hint
        )
    names = sorted(entry.name for entry in folder.iterdir())
    return RecipeError.of(
        "this isn't a model folder",
        code="not-a-model-folder",
        found=", ".join(names[:6]) + (f", and {len(names) - 6} more" if len(names) > 6 else "")
        if names
        else "an empty folder",
        hint=f"a run has {PLAN}, a checkpoint config.json",
    )


@dataclass(frozen=True)
class Opened:
    """A run, ready to answer questions."""

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

    precision      default: float32 on a CPU, else the run's precision
    device         `cpu`, `cuda`, `cuda:1`; default: the GPU if there is one
    system_prompt  replaces the run's

    Raises RecipeError when the device does not exist, when the template has no place for a system prompt,
    and as `open_run` does.
    """
    place = _device(device)
    dtype = None if precision is None else TORCH_DTYPES[precision]
    if dtype is None and place.type == "cpu":
        dtype = torch.float32
    run = open_run(path, dtype=dtype, device=place, base=base)
    data = run.data if system_prompt is None else _with_system(run.data, system_prompt)
    return Opened(run, Answerer(run.assembled, data, start_end=run.plan.image_tokens.start_end))


def _with_system(data: DataPlan, text: str) -> DataPlan:
    if data.template is not None and LAYOUTS[data.template].system is None:
        raise RecipeError.of(
            f"template `{data.template}` has no place for a system prompt",
            code="no-place-for-system-prompt",
            hint="leave out --system",
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
        raise RecipeError.of(
            f'device "{name}" cannot be used on this machine',
            code="unknown-device",
            found=lines[0] if lines else type(error).__name__,
            hint="use `cpu`, or `cuda` on a machine with a GPU",
        ) from None
    return device
