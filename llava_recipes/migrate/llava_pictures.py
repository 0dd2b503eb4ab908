"""How LLaVA-NeXT's flags cut pictures and put their features in a row, as keys of `data`."""

from __future__ import annotations

import ast

from llava_recipes.migrate.draft import STAGE, Draft
from llava_recipes.migrate.flags import Flags
from llava_recipes.recipe.errors import KeyPath
from llava_recipes.recipe.scalars import Value

_DATA: KeyPath = (STAGE, "data")


def has_newline(flags: Flags) -> bool:
    """Whether the recipe's model has a learned end of a row: with pictures of one part, none is used."""
    cut, merging = (
        flags[name].text if name in flags else "" for name in ("image_aspect_ratio", "mm_patch_merge_type")
    )
    return cut.startswith("anyres") and "unpad" in merging


def translate_pictures(flags: Flags, draft: Draft) -> None:
    """Fill in `image_grid_pinpoints` and `mm_patch_merge_type`; `image_aspect_ratio` is there already."""
    # Also of the kind that recipes do not have: what becomes `anyres` by hand keeps its grids.
    is_anyres = str(draft.read(STAGE, "data", "image_aspect_ratio")).startswith("anyres")
    _translate_merging(flags, draft, is_anyres=is_anyres)
    _translate_grids(flags, draft, is_anyres=is_anyres)


def _translate_merging(flags: Flags, draft: Draft, *, is_anyres: bool) -> None:
    name = "mm_patch_merge_type"
    merging = flags.text(name)
    if merging is None:
        return
    mark = flags[name].mark
    if merging not in ("flat", "spatial", "spatial_unpad"):
        draft.lost(f"--{name}", merging, "recipes know flat, spatial and spatial_unpad", mark)
    elif is_anyres:
        draft.mapped(f"--{name}", merging, (*_DATA, name), merging, mark=mark)
    elif merging == "spatial_unpad":
        why = "recipes end a row of features in pictures of several parts alone, and here each is one"
        draft.lost(f"--{name}", merging, why, mark)
    else:
        draft.needless(f"--{name}", merging, "a picture of one part is put in a row as it is", mark)


def _translate_grids(flags: Flags, draft: Draft, *, is_anyres: bool) -> None:
    name = "image_grid_pinpoints"
    text = flags.text(name)
    if text is None:
        return
    mark, path = flags[name].mark, (*_DATA, name)
    if not is_anyres:
        draft.needless(f"--{name}", text, "without `anyres` nobody asks for grids", mark)
        return
    grids = _read_grids(text)
    if grids is None:
        draft.lost(f"--{name}", text, "recipes name every grid: write them as pairs of pixels", mark)
    else:
        draft.mapped(f"--{name}", text, path, grids, mark=mark)


def _read_grids(text: str) -> list[Value] | None:
    """Pairs written as in Python, `[(336, 672), (672, 336)]`; None for anything else, such as a range."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(found, list) or not found:
        return None
    grids: list[Value] = []
    for pair in found:
        if not isinstance(pair, (list, tuple)) or [type(side) for side in pair] != [int, int]:
            return None
        grids.append(list(pair))
    return grids
