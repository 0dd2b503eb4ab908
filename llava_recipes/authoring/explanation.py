"""Find the keys that `train.learning_rate` or `learning_rate` names, and explain them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.recipe.keys import Key, all_keys
from llava_recipes.recipe.renames import OTHER_NAMES, nearest
from llava_recipes.recipe.scalars import Value, spell

FLAGS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "model.language_model": ("model_name_or_path", "facebook/opt-125m"),
        "model.language_model.source": ("model_name_or_path", "facebook/opt-125m"),
        "model.vision_tower.source": ("vision_tower", "none, a model without images"),
        "model.vision_tower.select_layer": ("mm_vision_select_layer", "-1"),
        "model.vision_tower.select_feature": ("mm_vision_select_feature", "patch"),
        "model.projector.type": ("mm_projector_type", "linear"),
        "model.projector.init_from": ("pretrain_mm_mlp_adapter", "none"),
        "model.image_tokens.start_end": ("mm_use_im_start_end", "False"),
        "model.image_tokens.patch": ("mm_use_im_patch_token", "True"),
        "stages[].freeze": ("freeze_backbone", "False"),
        "stages[].trainable": ("tune_mm_mlp_adapter", "False, everything trains"),
        "stages[].data.template": ("version", "v0"),
        "stages[].data.sources[].annotations": ("data_path", "none"),
        "stages[].data.sources[].images": ("image_folder", "none"),
        "stages[].data.image_aspect_ratio": ("image_aspect_ratio", "square"),
        "stages[].data.max_length": ("model_max_length", "512"),
        "stages[].data.lazy_preprocess": ("lazy_preprocess", "False"),
        "stages[].data.group_by": ("group_by_modality_length", "False"),
        "stages[].lora": ("lora_enable", "False"),
        "stages[].lora.r": ("lora_r", "64"),
        "stages[].lora.alpha": ("lora_alpha", "16"),
        "stages[].lora.dropout": ("lora_dropout", "0.05"),
        "stages[].lora.bias": ("lora_bias", "none"),
        "stages[].param_groups": ("mm_projector_lr", "none, the projector learns like the rest"),
        "stages[].deepspeed": ("deepspeed", "none"),
        "stages[].output_dir": ("output_dir", "none"),
    }
)
"""Keys for which the original LLaVA has a flag of its own, and the default there."""

_TRAIN = "stages[].train."
_OURS = ("global_batch_size", "loss_normalization", "extra")
"""Keys of `train` that TrainingArguments doesn't have."""
_INDEX = re.compile(r"\[[^\[\]]*\]")
_MAX_QUERY_CHARACTERS = 200
_DEFAULT = re.compile(r"\bDefault: |\(the default\)")
"""What a meaning says where the default depends on other values."""


def find_keys(query: str) -> tuple[Key, ...]:
    """The keys that `query` names: by full path, by its end, or as a key of a free mapping.

    Raises RecipeError, with the nearest key as hint, if there is none.
    """
    if len(query) > _MAX_QUERY_CHARACTERS:
        hint = "llava-recipe explain train.learning_rate"
        raise RecipeError.of("the key is too long", code="key-too-long", hint=hint)
    words, keys = _words(query), all_keys()
    for candidate in _candidates(words):
        exact = [key for key in keys if key.names == candidate and len(candidate) > 1]
        found = exact or [key for key in keys if key.names[-len(candidate) :] == candidate]
        if candidate and found:
            # Of several keys with one name, the one with fewer lists in its path comes first.
            return tuple(sorted(found, key=lambda key: key.path.count("[]")))
    for length in range(len(words) - 1, 0, -1):
        for candidate in _candidates(words[:length]):
            free = [key for key in keys if key.is_free and key.names[-len(candidate) :] == candidate]
            if candidate and free:
                return tuple(free)
    raise RecipeError(_unknown(query, words))


def _words(query: str) -> tuple[str, ...]:
    return tuple(word for word in _INDEX.sub("", query.strip().strip("`:")).split(".") if word)


def _candidates(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The words, then the words without list indices and without a stage's name after `stages`."""
    yield words
    names = {key.name for key in all_keys()}
    yield tuple(
        word
        for position, word in enumerate(words)
        if not word.isdecimal() and not (word not in names and position and words[position - 1] == "stages")
    )


def _unknown(query: str, words: tuple[str, ...]) -> Problem:
    last = words[-1] if words else ""
    names = sorted({key.name for key in all_keys()})
    ends = sorted({".".join(key.names[-len(words) :]) for key in all_keys()})
    near = nearest(".".join(words), ends) or nearest(last, names)
    if last in OTHER_NAMES:
        hint = OTHER_NAMES[last]
    elif near is not None:
        hint = f"did you mean `{near}`?"
    else:
        from llava_recipes.recipe.names import EXTRA_FIELDS

        hint = "`llava-recipe explain` without a key shows the top level"
        if last in EXTRA_FIELDS:
            hint = f"a TrainingArguments field: write it under `extra:` of `train:`, `extra: {{{last}: …}}`"
    return Problem(f"no key `{query}` in the recipe language", code="unknown-key", hint=hint)


def explain_key(key: Key, *, width: int) -> str:
    """A page about one key, lines wrapped at `width`."""
    default = "see above" if key.default is None and _DEFAULT.search(key.meaning) else key.default_text
    rows = [("type", key.type), ("default", default), ("source", origin(key.path))]
    lines = [key.path, "", *textwrap.wrap(key.meaning, width), ""]
    for label, text in rows:
        lines += textwrap.wrap(text, width, initial_indent=f"{label:<9} ", subsequent_indent=" " * 10)
    example = example_lines(key)
    if example:
        lines += [f"{'example':<9} {example[0]}", *(" " * 10 + line for line in example[1:])]
    children = children_of(key)
    if children:
        lines += ["", "keys", *overview(children, width=width)]
    return "\n".join(lines)


def origin(path: str) -> str:
    """The source of a key: a flag of the original LLaVA, a training argument or this language."""
    if path in FLAGS:
        flag, default = FLAGS[path]
        return f"the original's `--{flag}` (default there: {default})"
    name = path.removeprefix(_TRAIN)
    if path.startswith(_TRAIN) and "." not in name and name not in _OURS:
        return f"Hugging Face `TrainingArguments.{name}`; in the original `--{name}`"
    return "this recipe language"


def children_of(key: Key) -> list[Key]:
    """The keys directly inside a mapping, or inside the entries of a list."""
    return [other for other in all_keys() if other.names[:-1] == key.names]


def overview(keys: Sequence[Key], *, width: int) -> list[str]:
    """Lines of one entry for each key: its name and the first sentence of its meaning."""
    column = min(28, max(len(key.name) for key in keys))
    lines: list[str] = []
    for key in keys:
        needed = " Needed." if key.needed else ""
        lines += textwrap.wrap(
            first_sentence(key.meaning) + needed,
            width,
            initial_indent=f"  {key.name:<{column}}  ",
            subsequent_indent=" " * (column + 4),
        )
    return lines


def first_sentence(text: str) -> str:
    """The text up to the first full stop that ends a sentence."""
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]


def example_value(key: Key) -> Value:
    """A value to show: the first example, default, choice or value of its type; None if there is none."""
    for value in (*key.examples, key.default, *key.choices):
        if value not in (None, {}, []):
            return value
    return {"whole number": 1, "number": 1, "true or false": True}.get(key.type.split(" ≥")[0].split(" >")[0])


def example_lines(key: Key) -> list[str]:
    """Lines of a recipe with the key inside its parents; empty where no value can be shown."""
    value = example_value(key)
    if value is None or (isinstance(value, dict) and not key.is_free):
        return []
    *parents, name = key.path.split(".")
    lines: list[str] = []
    indent = lead = ""
    for parent in parents:
        lines.append(f"{indent}{lead}{parent.removesuffix('[]')}:")
        indent += "  " * (1 + len(lead) // 2)
        lead = "- " if parent.endswith("[]") else ""
    lines.append(f"{indent}{lead}{name}: {spell(value)}")
    return lines
