"""Names of weights: canonical ones, and those of the original's files, of llava-hf's, and of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import JsonValue
from torch import Tensor, nn

from llava_recipes.model.checkpoint import TensorSource
from llava_recipes.plan.families import is_hf_llava, is_original_llava

Layout = Literal["language_model", "llava", "hf"]
"""A language model without the rest, the original's whole model, or llava-hf's."""
_RULES: Mapping[Layout, tuple[tuple[re.Pattern[str], str], ...]] = {
    "language_model": (),
    "llava": tuple(
        (re.compile(pattern), ours)
        for pattern, ours in (
            (r"^model\.mm_projector\.", "projector."),
            (r"^model\.vision_tower\.vision_tower\.(?:vision_model\.)?", "vision_tower."),
            (r"^model\.image_newline$", "image_newline"),
            (r"^lm_head\.", "lm_head."),
            (r"^model\.(?!vision_tower\.|vision_resampler\.)", "language_model."),
        )
    ),
    # Both spellings: that of llava-hf's folders, and that of the model in memory.
    "hf": tuple(
        (re.compile(pattern), ours)
        for pattern, ours in (
            (r"^(?:model\.)?multi_modal_projector\.linear_1\.", "projector.0."),
            (r"^(?:model\.)?multi_modal_projector\.linear_2\.", "projector.2."),
            (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision_tower."),
            (r"^(?:model\.)?image_newline$", "image_newline"),
            (r"^(?:language_model\.)?lm_head\.", "lm_head."),
            (r"^(?:language_model\.model|model\.language_model)\.", "language_model."),
        )
    ),
}
_HF_NAMES = (
    (re.compile(r"^projector\.0\."), "multi_modal_projector.linear_1."),
    (re.compile(r"^projector\.2\."), "multi_modal_projector.linear_2."),
    (re.compile(r"^vision_tower\."), "vision_tower.vision_model."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (re.compile(r"^language_model\."), "language_model.model."),
)
_PREFIXES = {
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "projector.",
    "model.language_model.": "language_model.",
    "lm_head.": "lm_head.",
    "model.image_tokens.": "image_tokens.",
}
_WHOLE = {"model.image_newline.weight": "image_newline"}
_ADAPTER = re.compile(r"\.(lora_[A-Za-z_]+)\.default\.")
_NESTED_TOWER = "vision_tower.vision_model."


def canonical_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter once (tied ones under their first name), by canonical name, in model order."""
    return {canonical_name(name): parameter for name, parameter in model.named_parameters()}


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
            nested = name.startswith(_NESTED_TOWER)
            return "vision_tower." + name.removeprefix(_NESTED_TOWER) if nested else name
    raise ValueError(f"{transformers_name!r} is under none of {', '.join(_PREFIXES)}")


def transformers_name(canonical: str, *, nested_tower: bool = False) -> str:
    """The inverse of `canonical_name`; `nested_tower` for a tower with its layers under `vision_model`."""
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
    """The original code's name: `projector.0.weight` -> `model.mm_projector.0.weight`."""
    root, _, rest = canonical.partition(".")
    before = {
        "projector": "model.mm_projector.",
        "language_model": "model.",
        "vision_tower": "model.vision_tower.vision_tower.vision_model.",
        "lm_head": "lm_head.",
        "image_newline": "model.image_newline",
    }
    return before[root] + rest


def hf_name(canonical: str) -> str:
    """The name in llava-hf's folders: `projector.0.bias` -> `multi_modal_projector.linear_1.bias`."""
    for pattern, theirs in _HF_NAMES:
        if pattern.match(canonical):
            return pattern.sub(theirs, canonical)
    return canonical


def canonical_in(layout: Layout, name: str) -> str | None:
    """The canonical name of a weight in a file of a layout; None when the model has no place for it."""
    for pattern, ours in _RULES[layout]:
        if pattern.match(name):
            return pattern.sub(ours, name)
    return None


def layout_of(config: Mapping[str, JsonValue]) -> Layout:
    """The layout that a config.json belongs to."""
    if is_original_llava(config):
        return "llava"
    return "hf" if is_hf_llava(config) else "language_model"


class Renamed:
    """The part of a whole model under one canonical root, by the names after that root."""

    def __init__(self, source: TensorSource, layout: Layout, root: str) -> None:
        self._source = source
        self._theirs = {
            ours.removeprefix(root): name
            for name in source.names()
            if (ours := canonical_in(layout, name)) is not None and ours.startswith(root)
        }

    def names(self) -> frozenset[str]:
        return frozenset(self._theirs)

    def read(self, name: str) -> Tensor:
        return self._source.read(self._theirs[name])
