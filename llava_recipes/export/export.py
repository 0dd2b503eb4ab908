"""`export`, `merge` and `import`: a model in another layout, kept only if it computes the same logits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from llava_recipes.errors import Mark, RecipeError
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


class _Exporter(Protocol):
    def pieces(self) -> list[Piece]: ...

    def write(self, folder: Path, *, dtype: torch.dtype, max_bytes: int) -> None: ...

    def check(self, folder: Path, expected: Expected) -> float: ...


@dataclass(frozen=True)
class Exported:
    """What was written, and the difference of its logits from the run's, relative to the largest."""

    folder: Path
    dtype: torch.dtype
    num_bytes: int
    difference: float
    notes: tuple[str, ...] = ()
    """What a user should know about programs that read it."""


def export_run(
    path: str | Path,
    target: Path,
    *,
    to: Target,
    dtype: torch.dtype | None,
    max_bytes: int,
    with_tower: bool | None = None,
    base: str | None = None,
) -> Exported:
    """Export a run or a checkpoint into the new folder `target`.

    dtype       of the weights; default: that of the run's computation, or of the checkpoint's files. The
                check compares with the run's weights in the same dtype
    max_bytes   largest size of one file of weights
    with_tower  for `llava`: whether to write the tower's weights; default: if it was trained

    Raises RecipeError if `target` is not empty, the layout can't express the model, or the logits differ.
    Then nothing is left behind.
    """
    check_target(target)
    run = open_run(path, dtype=dtype, device=torch.device("cpu"), base=base)
    return write_export(run, target, to=to, max_bytes=max_bytes, with_tower=with_tower)


def write_export(
    run: OpenedRun, target: Path, *, to: Target, max_bytes: int, with_tower: bool | None = None
) -> Exported:
    """Export an opened run, with its dtype; as `export_run`. The run loses its weights."""
    exporter = _exporter(run, target, to, with_tower)
    dtype = next(run.assembled.model.parameters()).dtype
    size = num_bytes(exporter.pieces(), dtype)
    notes, training = notes_of(run, to), training_of(run)
    expected = expected_of(run)
    with new_folder(target, num_bytes=size) as folder:
        exporter.write(folder, dtype=dtype, max_bytes=max_bytes)
        # The export is opened now; two models at once would need twice the memory.
        run.assembled.model.to("meta")
        difference = exporter.check(folder, expected)
        write_card(run, folder, layout=to, dtype=dtype, difference=difference, training=training)
    return Exported(target, dtype, size, difference, notes)


def _exporter(run: OpenedRun, target: Path, to: Target, with_tower: bool | None) -> _Exporter:
    if to == "hf":
        return HfExport(run)
    if to == "llava":
        return LlavaExport(run, with_tower=with_tower, target=target)
    return GgufExport(run)


def merge_run(
    path: str | Path, target: Path, *, dtype: torch.dtype | None, max_bytes: int, base: str | None
) -> Exported:
    """Write a LoRA run, or the original's adapters, as a whole model in the original's layout.

    Raises RecipeError as `export_run`, and if the run has no adapters.
    """
    check_target(target)
    if not (expanded(path) / ADAPTER_CONFIG).is_file():
        # Raises for a folder that isn't a run.
        open_run(path, dtype=dtype, device=torch.device("cpu"), base=base)
        raise RecipeError.of(
            "there are no adapters to merge",
            code="no-adapters",
            mark=Mark(str(path), 0, 0),
            found=f"no {ADAPTER_CONFIG}",
            hint="`llava-recipe export` exports any run",
        )
    return export_run(path, target, to="llava", dtype=dtype, max_bytes=max_bytes, base=base)


def import_checkpoint(
    path: str | Path, target: Path, *, dtype: torch.dtype | None, max_bytes: int, base: str | None
) -> tuple[Exported, str]:
    """Write another program's checkpoint in the original's layout; also returns its vision tower's source.

    Raises RecipeError as `export_run`, and for a run of llava-recipes.
    """
    check_target(target)
    run = open_run(path, dtype=dtype, device=torch.device("cpu"), base=base)
    if run.kind == "run":
        raise RecipeError.of(
            "this is already a run of llava-recipes",
            code="already-a-run",
            mark=Mark(str(path), 0, 0),
            hint="write its folder as `init_from` of a stage; `llava-recipe export` writes other layouts",
        )
    done = write_export(run, target, to="llava", max_bytes=max_bytes)
    own = target / TOWER_FOLDER
    return done, str(own if own.is_dir() else run.plan.vision_tower.source)
