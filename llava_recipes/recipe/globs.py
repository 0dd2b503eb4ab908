"""Check the spelling of module globs before there is a model to match them with."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llava_recipes.freeze import match_glob
from llava_recipes.recipe.errors import Path, Problem
from llava_recipes.recipe.renames import OTHER_MODULES
from llava_recipes.recipe.scalars import spell_value
from llava_recipes.recipe.spelling import nearest

ROOTS = ("vision_tower", "projector", "language_model", "lm_head", "image_tokens")

IMAGE_NEWLINE = "image_newline"
"""A root of models with `mm_patch_merge_type: spatial_unpad`."""

_RANGE = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
_STRANGE = re.compile(r"[^A-Za-z0-9_.*-]")
_SYNTAX = "globs hold names, dots, `*` inside a name, `**` across dots, and ranges such as `{30..39}`"


def check_glob(glob: str, path: Path) -> Iterator[Problem]:
    """What is wrong with a glob that can be told from its text."""
    spelled, key = spell_value(glob), next(segment for segment in reversed(path) if isinstance(segment, str))
    for first, last in _RANGE.findall(glob):
        if len(first) > 9 or len(last) > 9 or int(first) > int(last):
            hint = "write the smaller number first; numbers have at most 9 digits"
            yield Problem(
                f"the range in the glob {spelled} in `{key}` is empty",
                code="range-glob-empty",
                path=path,
                hint=hint,
            )
            return
    plain = _RANGE.sub("0", glob)
    strange = _STRANGE.search(plain)
    if strange:
        message = f"the glob {spelled} in `{key}` holds `{strange.group()}`"
        yield Problem(message, code="glob-has-strange-character", path=path, hint=_SYNTAX)
        return
    if "" in plain.split("."):
        message = f"the glob {spelled} in `{key}` has an empty name between dots"
        yield Problem(message, code="glob-empty-name-between-dots", path=path, hint=_SYNTAX)
        return
    if not any(match_glob(plain.split(".")[0], root) for root in (*ROOTS, IMAGE_NEWLINE)):
        yield Problem(
            f"glob {spelled} in `{key}` matches no module",
            code="glob-matches-no-module",
            path=path,
            found=f"the model has {', '.join(sorted(set(ROOTS) - {'image_tokens'}))}",
            hint=_root_hint(glob),
        )


def _root_hint(glob: str) -> str:
    first, dot, rest = glob.partition(".")
    if first == "model" and rest.partition(".")[0] in (*ROOTS, IMAGE_NEWLINE, *OTHER_MODULES):
        first, dot, rest = rest.partition(".")
    if first in (*ROOTS, IMAGE_NEWLINE):
        return f'did you mean "{first}{dot}{rest}"?'
    if first in ("layers", "embed_tokens"):
        return f'did you mean "language_model.{first}{dot}{rest}"?'
    root = OTHER_MODULES.get(first) or nearest(first, (*ROOTS, IMAGE_NEWLINE))
    return f'did you mean "{root}{dot}{rest}"?' if root else "start with one of these names, or with `**.`"
