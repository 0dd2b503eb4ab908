"""Write an opened run in a layout that others read, and only when it was read back and says the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from llava_recipes.errors import Mark, Problem, RecipeError
from llava_recipes.export.checking import Expected, expected_of
from llava_recipes.export.model_card import training_of, write_card
from llava_recipes.export.refusing import notes_of
from llava_recipes.export.target import Piece, check_target, new_folder, num_bytes
from llava_recipes.export.to_gguf import GgufExport
from llava_recipes.export.to_hf import HfExport
from llava_recipes.export.to_llava import LlavaExport
from llava_recipes.files import expanded
from llava_recipes.model.lora import ADAPTER_CONFIG
from llava_recipes.plan.exports import Target
from llava_recipes.use.foreign_folders import TOWER_FOLDER
from llava_recipes.use.opened import OpenedRun, open_run

ExportLayout = Target


class _Exporter(Protocol):
    def pieces(self) -> list[Piece]: ...

    def write(self, folder: Path, *, dtype: torch.dtype, max_bytes: int) -> None: ...

    def check(self, folder: Path, expected: Expected) -> float: ...


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its logits are from the run's, relative to the largest."""

    folder: Path
    dtype: torch.dtype
    num_bytes: int
    difference: float
    notes: tuple[str, ...] = ()
    """What a person should know about who reads it."""


def export_run(
    path: str | Path,
    target: Path,
    *,
    to: ExportLayout,
    dtype: torch.dtype | None,
    max_bytes: int,
    with_tower: bool | None = None,
    base: str | None = None,
) -> Exported:
    """Export a run or a checkpoint into the new folder `target`.

    dtype       of the weights; default: what the run computed in, or the checkpoint is stored in. The check
                compares with the run's weights rounded in the same way
    max_bytes   of one file of weights
    with_tower  for `llava`: whether the tower's weights are written too; default: where it was trained

    Raises RecipeError when `target` is not empty, the layout cannot hold the model, or what was written does
    not give the run's logits. Nothing is left behind then.
    """
    check_target(target)
    run = open_run(path, dtype=dtype, device=torch.device("cpu"), base=base)
    return write_export(run, target, to=to, max_bytes=max_bytes, with_tower=with_tower)


def write_export(
    run: OpenedRun, target: Path, *, to: ExportLayout, max_bytes: int, with_tower: bool | None = None
) -> Exported:
    """Export an opened run, whose weights have the dtype to be written; as `export_run`.

    The run's weights are let go.
    """
    exporter = _exporter(run, target, to, with_tower)
    dtype = next(run.assembled.model.parameters()).dtype
    size = num_bytes(exporter.pieces(), dtype)
    notes, training = notes_of(run, to), training_of(run)
    expected = expected_of(run)
    with new_folder(target, num_bytes=size) as folder:
        exporter.write(folder, dtype=dtype, max_bytes=max_bytes)
        # What was written is read now, and two models at once would need twice the memory.
        run.assembled.model.to("meta")
        difference = exporter.check(folder, expected)
        write_card(run, folder, layout=to, dtype=dtype, difference=difference, training=training)
    return Exported(target, dtype, size, difference, notes)


def _exporter(run: OpenedRun, target: Path, to: ExportLayout, with_tower: bool | None) -> _Exporter:
    if to == "hf":
        return HfExport(run)
    if to == "llava":
        return LlavaExport(run, with_tower=with_tower, target=target)
    return GgufExport(run)


def merge_run(
    path: str | Path, target: Path, *, dtype: torch.dtype | None, max_bytes: int, base: str | None
) -> Exported:
    """Write a LoRA run, or adapters of the original, as a whole model in the original's layout.

    Raises RecipeError as `export_run`, and when the run trained no adapters.
    """
    check_target(target)
    if not (expanded(path) / ADAPTER_CONFIG).is_file():
        hint = "`llava-recipe export` writes any run"
        problem = Problem(
            "there are no adapters to merge", code="no-adapters", found=f"no {ADAPTER_CONFIG}", hint=hint
        )
        # What is no run at all says so itself.
        open_run(path, dtype=dtype, device=torch.device("cpu"), base=base)
        raise RecipeError(replace(problem, mark=Mark(str(path), 0, 0)))
    return export_run(path, target, to="llava", dtype=dtype, max_bytes=max_bytes, base=base)


def import_checkpoint(
    path: str | Path, target: Path, *, dtype: torch.dtype | None, max_bytes: int, base: str | None
) -> tuple[Exported, str]:
    """Write a checkpoint of others in the original's layout; also says where its vision tower is.

    Raises RecipeError as `export_run`, and for a run of ours.
    """
    check_target(target)
    run = open_run(path, dtype=dtype, device=torch.device("cpu"), base=base)
    if run.kind == "run":
        hint = "`init_from` of a stage takes it as it is; `llava-recipe export` writes it for others"
        problem = Problem(
            "this is a run of llava-recipes already",
            code="already-a-run",
            mark=Mark(str(path), 0, 0),
            hint=hint,
        )
        raise RecipeError(problem)
    done = write_export(run, target, to="llava", max_bytes=max_bytes)
    own = target / TOWER_FOLDER
    return done, str(own if own.is_dir() else run.plan.vision_tower.source)
