"""The DeepSpeed file that a command names: one of the presets where it holds the same, else the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from llava_recipes.migrate.draft import STAGE, Draft, spell_path
from llava_recipes.plan.deepspeed import original_file
from llava_recipes.recipe.errors import Mark, Path
from llava_recipes.recipe.scalars import Value
from llava_recipes.recipe.schema import DEEPSPEED_PRESETS

ReadText = Callable[[str], str | None]
"""From a path in the script to the text of that file; None where it is not at hand."""

_BY_NAME = {"zero2.json": "zero2", "zero3.json": "zero3"}
_CLIPPING = "gradient_clipping"
_MAX_GRAD_NORM: Path = (STAGE, "train", "max_grad_norm")


@dataclass(frozen=True)
class Program:
    """What another program's files leave open."""

    deepspeed: str | None
    """The DeepSpeed that it pins: up to 0.19.2 nothing is clipped without `gradient_clipping`. None where it
    pins none: what a file without the key means is then open."""
    files_clip: bool
    """Whether its own zero2.json and zero3.json say `gradient_clipping: auto`."""


LLAVA = Program(deepspeed="0.12.6", files_clip=False)
"""LLaVA, and Open-LLaVA-NeXT."""
LLAVA_NEXT = Program(deepspeed="0.14.4", files_clip=True)
TINYLLAVA = Program(deepspeed="0.14.0", files_clip=False)
OTHER = Program(deepspeed=None, files_clip=True)
"""axolotl and LLaMA-Factory."""


def translate_deepspeed(
    name: str, path: str, draft: Draft, *, read_text: ReadText, mark: Mark | None, program: Program
) -> None:
    """Fill in `deepspeed`, and `max_grad_norm` where nothing is clipped; `train` is filled in before."""
    norm = draft.read(*map(str, _MAX_GRAD_NORM))
    choice, remark, clips = _choose(path, read_text, program, max_grad_norm=norm)
    draft.mapped(name, path, (STAGE, "deepspeed"), choice, remark=remark, mark=mark)
    if not clips and program.deepspeed is not None:
        _switch_clipping_off(draft, program.deepspeed, path.rpartition("/")[2])


def _choose(
    path: str, read_text: ReadText, program: Program, *, max_grad_norm: Value
) -> tuple[str, str, bool]:
    """What `deepspeed` says, a remark on it, and whether the file clips, for all that is known."""
    text = read_text(path)
    if text is None:
        named = _BY_NAME.get(path.rpartition("/")[2])
        if named is None:
            remark = "the file is not here"
            if program.deepspeed is not None:
                remark += f"; without `{_CLIPPING}` in it nothing is clipped there: write `max_grad_norm: 0`"
            return path, remark, True
        remark = "the file is not here; by its name it is the original's, which the preset equals"
        return named, remark, program.files_clip
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return path, "", True
    if not isinstance(config, dict):
        return path, "kept as a file", True
    clips = config.get(_CLIPPING) is not None
    bare = {key: value for key, value in config.items() if key != _CLIPPING}
    same = next((preset for preset in DEEPSPEED_PRESETS if bare == original_file(preset)), None)
    if same is None or config.get(_CLIPPING) not in (None, "auto", max_grad_norm):
        return path, "kept as a file", clips
    return same, "the file holds what the preset holds", clips


def _switch_clipping_off(draft: Draft, version: str, file: str) -> None:
    why = f"DeepSpeed {version} doesn't clip without `{_CLIPPING}`, and {file} has none"
    given = [entry for entry in draft.entries if entry.key == spell_path(_MAX_GRAD_NORM)]
    if any(entry.kind == "mapped" for entry in given) and draft.read(*map(str, _MAX_GRAD_NORM)) == 0:
        return
    draft.entries = [entry for entry in draft.entries if entry not in given]
    comment = f"not clipped: {file} has no {_CLIPPING}"
    for entry in given:
        if entry.kind == "mapped":
            draft.put(_MAX_GRAD_NORM, 0, comment)
            draft.tell_mapped(entry.name, entry.value, _MAX_GRAD_NORM, remark=why, mark=entry.mark)
            return
    draft.default(_CLIPPING, _MAX_GRAD_NORM, 0, remark=why, comment=comment)
