"""Rules between the keys that say in what order and at what rates a stage trains; on plain values."""

from __future__ import annotations

from collections.abc import Iterator

from llava_recipes.recipe.errors import Path, Problem
from llava_recipes.recipe.values import Mapping, as_mapping


def check_tuning(stage: Mapping, path: Path) -> Iterator[Problem]:
    """Every such rule that a stage breaks."""
    yield from _check_order(as_mapping(stage.get("data")), (*path, "data"))


def _check_order(data: Mapping, path: Path) -> Iterator[Problem]:
    if data.get("shuffle") is False and data.get("group_by") in ("length", "modality_length"):
        last = max(("shuffle", "group_by"), key=list(data).index)
        yield Problem(
            "`group_by` draws an order of its own, and `shuffle: false` asks for that of the file",
            path=(*path, last),
            hint="remove one of the two",
            on_key=True,
        )
