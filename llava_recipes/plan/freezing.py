"""What a stage's globs come to on a model's parameter names, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Literal

from llava_recipes.freeze import decide, split_glob, tree_of
from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.globs import ROOTS
from llava_recipes.recipe.renames import OTHER_MODULES
from llava_recipes.recipe.spelling import nearest

_NUM_SHOWN = 8
_RANGE = re.compile(r"\{(?P<first>\d+)\.\.(?P<last>\d+)\}")


def freezing_problems(
    names: Collection[str],
    *,
    freeze: Literal["all", "none"] | tuple[str, ...],
    trainable: tuple[str, ...],
    stage_path: KeyPath,
    has_lora: bool = False,
) -> Iterator[Problem]:
    """Globs that match nothing in these canonical parameter names, and a stage in which nothing trains."""
    decision = decide(names, freeze=freeze, trainable=trainable)
    for key, globs in (("freeze", freeze if isinstance(freeze, tuple) else ()), ("trainable", trainable)):
        for index, glob in enumerate(globs):
            path: KeyPath = (*stage_path, key, index)
            if glob in decision.unmatched:
                yield explain_glob(glob, names, key=key, path=path)
            else:
                yield from _check_ranges(glob, names, key=key, path=path)
    if not decision.unmatched and not decision.trainable and not has_lora:
        yield Problem(
            "nothing trains in this stage",
            code="nothing-trains",
            path=(*stage_path, "trainable" if trainable else "freeze"),
            found="every parameter is frozen",
            hint="name what trains, for example `trainable: [projector]`",
        )


def explain_glob(glob: str, names: Collection[str], *, key: str, path: KeyPath) -> Problem:
    """What is wrong with a glob that matches none of these names, and what is there instead."""
    segments = split_glob(glob)
    tree = tree_of(names)
    depth = 0 if "**" in segments else tree.depth_of(segments[:-1])
    known = ".".join(segments[:depth])
    children = tree.below(segments[:depth]) if known else _roots(names)
    hint = _suggest(segments, depth, children)
    if segments[0] == "image_newline" and "image_newline" not in children:
        hint = "a model has an image_newline where a stage says `mm_patch_merge_type: spatial_unpad`"
    if segments[0] == "lm_head" and "lm_head" not in children:
        hint = "this model has no lm_head of its own: it shares the weights of language_model.embed_tokens"
    return Problem(
        f'glob "{glob}" in `{key}` matches no module',
        code="glob-matches-no-module",
        path=path,
        found=f"{known or 'the model'} has {_listed(children)}",
        hint=hint,
    )


def _check_ranges(glob: str, names: Collection[str], *, key: str, path: KeyPath) -> Iterator[Problem]:
    """A range that begins inside the model and ends beyond it, as one copied from a larger model does."""
    segments = split_glob(glob)
    for depth, segment in enumerate(segments):
        found = _RANGE.fullmatch(segment)
        if "**" in segments[:depth]:
            return
        if found is None:
            continue
        owner = ".".join(segments[:depth])
        numbers = [int(child) for child in tree_of(names).below(segments[:depth]) if child.isdigit()]
        if numbers and int(found["last"]) > max(numbers):
            yield Problem(
                f'the range in the glob "{glob}" of `{key}` goes beyond what there is',
                code="glob-range-too-large",
                path=path,
                found=f"{owner} has {min(numbers)} to {max(numbers)}",
                hint=f"write `{{{found['first']}..{max(numbers)}}}`",
            )


def _roots(names: Collection[str]) -> list[str]:
    present = {name.split(".", 1)[0] for name in names}
    return [root for root in sorted(ROOTS) if root in present]


def _suggest(segments: tuple[str, ...], depth: int, children: list[str]) -> str | None:
    word = segments[depth]
    # Another layer's number is no misspelling.
    near = None if word.isdigit() else nearest(word, children)
    near = near or (OTHER_MODULES.get(word) if depth == 0 else None)
    if near is None or near not in children:
        return None
    return f'did you mean "{".".join((*segments[:depth], near, *segments[depth + 1 :]))}"?'


def _listed(words: list[str]) -> str:
    if len(words) > 2 and words == [str(number) for number in range(len(words))]:
        return f"0 to {len(words) - 1}"
    shown = ", ".join(words[:_NUM_SHOWN])
    return shown if len(words) <= _NUM_SHOWN else f"{shown}, … ({len(words)} in all)"
