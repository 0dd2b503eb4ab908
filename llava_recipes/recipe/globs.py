"""Check the spelling of module globs before there is a model to match them with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

from llava_recipes.freeze import match_glob
from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.renames import OTHER_MODULES
from llava_recipes.recipe.scalars import Value, spell_value
from llava_recipes.recipe.spelling import nearest
from llava_recipes.recipe.values import Mapping, as_list, as_mapping, value_at

Root: TypeAlias = Literal["vision_tower", "projector", "language_model", "image_newline", "lm_head"]

ROOTS: tuple[Root, ...] = get_args(Root)
"""What a model consists of, in the order of plans; the names of its parameters begin with one of these."""

MODULES: tuple[Root, ...] = tuple(root for root in ROOTS if root != "image_newline")
"""Those of every model; `image_newline` is there with `mm_patch_merge_type: spatial_unpad`."""

GLOB_ROOTS = (*ROOTS, "image_tokens")
"""What a glob may begin with: also the embeddings of `<im_start>` and `<im_end>`."""

MAX_CHARACTERS = 500
"""Of one glob. Names of parameters have below 100."""
MAX_GLOBS = 2_000
"""In one recipe: a list of every adapted layer of a large model, for each of three stages."""

_RANGE = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
_STRANGE = re.compile(r"[^A-Za-z0-9_.*-]")
_SYNTAX = "globs hold names, dots, `*` inside a name, `**` across dots, and ranges such as `{30..39}`"


def check_glob(glob: str, path: KeyPath) -> Iterator[Problem]:
    """What is wrong with a glob that can be told from its text."""
    spelled, key = spell_value(glob), next(segment for segment in reversed(path) if isinstance(segment, str))
    if len(glob) > MAX_CHARACTERS:
        yield Problem(
            f"a glob in `{key}` is longer than {MAX_CHARACTERS} characters",
            code="glob-too-long",
            path=path,
            found=f"{len(glob):,} characters: {spelled}",
            hint="name a module, which brings all that is in it",
        )
        return
    for first, last in _RANGE.findall(glob):
        if len(first) > 9 or len(last) > 9 or int(first) > int(last):
            hint = "write the smaller number first; numbers have at most 9 digits"
            yield Problem(
                f"the range in the glob {spelled} in `{key}` is empty",
                code="invalid-glob",
                path=path,
                hint=hint,
            )
            return
    plain = _RANGE.sub("0", glob)
    strange = _STRANGE.search(plain)
    if strange:
        message = f"the glob {spelled} in `{key}` holds `{strange.group()}`"
        yield Problem(message, code="invalid-glob", path=path, hint=_SYNTAX)
        return
    if "" in plain.split("."):
        message = f"the glob {spelled} in `{key}` has an empty name between dots"
        yield Problem(message, code="invalid-glob", path=path, hint=_SYNTAX)
        return
    if not any(match_glob(plain.split(".")[0], root) for root in GLOB_ROOTS):
        yield Problem(
            f"glob {spelled} in `{key}` matches no module",
            code="glob-matches-no-module",
            path=path,
            found=f"the model has {', '.join(sorted(MODULES))}",
            hint=_root_hint(glob),
        )


def check_number_of_globs(recipe: Mapping) -> Iterator[Problem]:
    """Whether a recipe has more globs than anybody means."""
    num_globs = 0
    for path, globs in _lists_of_globs(recipe):
        num_globs += len(globs)
        if num_globs > MAX_GLOBS:
            yield Problem(
                f"the recipe has more than {MAX_GLOBS:,} globs",
                code="too-many-globs",
                path=path,
                hint="name the modules that hold what is listed, or write ranges: `layers.{0..31}`",
                on_key=True,
            )
            return


def _lists_of_globs(recipe: Mapping) -> Iterator[tuple[KeyPath, list[Value]]]:
    for index, stage in enumerate(as_mapping(each) for each in as_list(recipe.get("stages"))):
        groups = range(len(as_list(stage.get("param_groups"))))
        places: list[KeyPath] = [("freeze",), ("trainable",), ("lora", "modules")]
        for place in (*places, *(("param_groups", number, "modules") for number in groups)):
            path: KeyPath = ("stages", index, *place)
            yield path, as_list(value_at(recipe, path))


def _root_hint(glob: str) -> str:
    first, dot, rest = glob.partition(".")
    if first == "model" and rest.partition(".")[0] in (*GLOB_ROOTS, *OTHER_MODULES):
        first, dot, rest = rest.partition(".")
    if first in GLOB_ROOTS:
        return f'did you mean "{first}{dot}{rest}"?'
    if first in ("layers", "embed_tokens"):
        return f'did you mean "language_model.{first}{dot}{rest}"?'
    root = OTHER_MODULES.get(first) or nearest(first, GLOB_ROOTS)
    return f'did you mean "{root}{dot}{rest}"?' if root else "start with one of these names, or with `**.`"
