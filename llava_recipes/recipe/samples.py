"""Rules between the keys that say what is captioned during training; on plain values."""

from __future__ import annotations

from collections.abc import Iterator

from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.locations import check_local
from llava_recipes.recipe.values import Mapping, as_list, as_mapping


def check_samples(stage: Mapping, path: KeyPath) -> Iterator[Problem]:
    """Every such rule that a stage breaks."""
    samples, where = as_mapping(stage.get("samples")), (*path, "samples")
    if stage.get("samples") is not None and stage.get("sample_every") is None:
        yield Problem(
            "`samples` has no effect without `sample_every`",
            code="key-has-no-effect",
            path=where,
            hint="write `sample_every:` with a number of steps, or remove `samples`",
            on_key=True,
        )
    has_images, has_prompt = (samples.get(key) is not None for key in ("images", "prompt"))
    is_plain = as_mapping(stage.get("data")).get("template") == "plain"
    if has_prompt and not has_images:
        yield Problem(
            "`prompt` goes with `images`: records have questions of their own",
            code="key-needs-another",
            path=(*where, "prompt"),
            hint="add `images:`, or remove it",
            on_key=True,
        )
    elif has_prompt and is_plain:
        yield Problem(
            "`prompt` has no effect with `template: plain`, which captions pictures",
            code="key-has-no-effect",
            path=(*where, "prompt"),
            hint="remove it",
            on_key=True,
        )
    elif has_images and not has_prompt and not is_plain:
        yield Problem(
            "`images` need a `prompt`",
            code="key-needs-another",
            path=(*where, "images"),
            hint="write what is asked",
            on_key=True,
        )
    for number, file in enumerate(as_list(samples.get("images"))):
        yield from check_local(file, (*where, "images", number))
