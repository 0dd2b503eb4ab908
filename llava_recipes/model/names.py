"""Parameter names: what transformers calls them, and the one spelling used in recipes, plans and files."""

from __future__ import annotations

import re

from torch import nn

_PREFIXES = {
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "projector.",
    "model.language_model.": "language_model.",
    "lm_head.": "lm_head.",
    "model.image_tokens.": "image_tokens.",
}
_WHOLE = {"model.image_newline.weight": "image_newline"}
_ADAPTER = re.compile(r"\.(lora_[A-Za-z_]+)\.default\.")
NESTED_TOWER = "vision_tower.vision_model."


def canonical_name(transformers_name: str) -> str:
    """`model.multi_modal_projector.0.weight` -> `projector.0.weight`; ValueError for a foreign name.

    A layer with an adapter keeps its name: `q_proj.base_layer.weight` is `q_proj.weight`, and the adapter's
    parameters are `q_proj.lora_A.weight` and so on.
    """
    transformers_name = _ADAPTER.sub(r".\1.", transformers_name.replace(".base_layer.", "."))
    if transformers_name in _WHOLE:
        return _WHOLE[transformers_name]
    for theirs, ours in _PREFIXES.items():
        if transformers_name.startswith(theirs):
            name = ours + transformers_name.removeprefix(theirs)
            nested = name.startswith(NESTED_TOWER)
            return "vision_tower." + name.removeprefix(NESTED_TOWER) if nested else name
    raise ValueError(f"{transformers_name!r} is under none of {', '.join(_PREFIXES)}")


def transformers_name(canonical: str, *, nested_tower: bool = False) -> str:
    """The way back; `nested_tower` for a tower that holds its layers under `vision_model`."""
    for theirs, ours in _WHOLE.items():
        if canonical == ours:
            return theirs
    for theirs, ours in _PREFIXES.items():
        if canonical.startswith(ours):
            rest = canonical.removeprefix(ours)
            nested = "vision_model." if nested_tower and ours == "vision_tower." else ""
            return theirs + nested + rest
    raise ValueError(f"{canonical!r} is under none of {', '.join(_PREFIXES.values())}")


def original_name(canonical: str) -> str:
    """What the original code calls a parameter: `projector.0.weight` -> `model.mm_projector.0.weight`."""
    root, _, rest = canonical.partition(".")
    before = {
        "projector": "model.mm_projector.",
        "language_model": "model.",
        "vision_tower": "model.vision_tower.vision_tower.vision_model.",
        "lm_head": "lm_head.",
        "image_newline": "model.image_newline",
    }
    return before[root] + rest


def canonical_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter once (tied ones under their first name), by canonical name, in model order."""
    return {canonical_name(name): parameter for name, parameter in model.named_parameters()}
