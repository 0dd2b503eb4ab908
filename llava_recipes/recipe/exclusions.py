"""Which keys exclude or need each other: tables for `extends`, `--set` and the rules.

A rule that fits no table is a function of `rules.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Final

from llava_recipes.errors import KeyPath, Problem
from llava_recipes.projectors import PROJECTOR_TYPES
from llava_recipes.recipe.language import keys_at
from llava_recipes.recipe.renames import OTHER_NAMES, nearest
from llava_recipes.recipe.scalars import Value, Values, as_list, given_keys

ANY: Final = "*"
"""Stands for one segment of a path: an entry of a list, by its number or by its name."""
STAGE: Final = ("stages", ANY)
DATA: Final = (*STAGE, "data")
TRAIN: Final = (*STAGE, "train")


@dataclass(frozen=True)
class Exclusion:
    """Two keys of one mapping that contradict each other, or of which one makes the other useless."""

    place: KeyPath
    """The mapping that contains both keys."""
    winner: str
    loser: str
    message: str
    hint: str = "keep one of the two"
    mutual: bool = True
    """A new `loser` also replaces an inherited `winner`; the later of the two is reported."""
    unless: str | None = None
    """A third key; if it is given, its own exclusion is reported instead."""
    companions: tuple[str, ...] = ()
    """Keys that are removed with an inherited `loser`, though `winner` allows them."""
    if_neither: str | None = None
    """The hint if neither is given; None if neither is needed."""


def _both(place: KeyPath, left: str, right: str, reason: str, *, if_neither: str | None = None) -> Exclusion:
    message = f"`{left}` and `{right}` are both given; {reason}"
    return Exclusion(place, left, right, message, if_neither=if_neither)


def _idle(
    place: KeyPath, winner: str, loser: str, message: str, hint: str, unless: str | None = None
) -> Exclusion:
    return Exclusion(place, winner, loser, message, hint, mutual=False, unless=unless)


def _origins(part: str, *idle: str, companions: tuple[str, ...] = ()) -> Iterator[Exclusion]:
    """The exclusions of a part of the model.

    idle        keys that only `config` uses
    companions  keys that `config` needs and `source` may have, with another value
    """
    place = ("model", part)
    yield Exclusion(
        place,
        "source",
        "config",
        f"`{part}` has both `source` and `config`",
        "keep `source` for pretrained weights, or `config` for random ones",
        companions=companions,
        if_neither="write `source:` for pretrained weights, or `config:` for random ones",
    )
    for key in idle:
        message = f"`{key}` has no effect on `{part}` with `source`"
        yield _idle(place, "source", key, message, f"remove it; `{key}` goes with `config`", unless="config")
    message, hint = "`revision` has no effect with `config`", "remove it; `revision` goes with `source`"
    yield _idle(place, "config", "revision", message, hint, unless="source")


EXCLUSIONS: Final[tuple[Exclusion, ...]] = (
    *_origins("language_model", "seed", companions=("tokenizer",)),
    *_origins("vision_tower", "image_processor", "seed"),
    _both(
        DATA,
        "template",
        "chat_template",
        "each sets how conversations become text",
        if_neither="write `template: v1`, another of LLaVA's names, or `chat_template: tokenizer`",
    ),
    Exclusion(
        (*DATA, "validation"),
        "sources",
        "split",
        "`validation` has both `sources` and `split`",
        "keep `sources` for files of their own, or `split` to hold out training data",
        if_neither="write `split: 0.01`, or `sources:` with files of their own",
    ),
    _both(
        TRAIN,
        "num_train_epochs",
        "max_steps",
        "each sets how long to train",
        if_neither="write `num_train_epochs: 1`, or `max_steps:` for a number of optimizer steps",
    ),
    _both(TRAIN, "gradient_accumulation_steps", "global_batch_size", "one follows from the other"),
    _both(TRAIN, "warmup_ratio", "warmup_steps", "each sets how long to warm up"),
    _idle(
        (*STAGE, "samples"),
        "images",
        "num",
        "`num` counts records, which `images` replaces",
        "remove one of the two",
    ),
)


@dataclass(frozen=True)
class Idle:
    """A key that has no effect because of the value of another key, or because another is missing."""

    place: KeyPath
    key: str
    message: str
    hint: str
    when: Callable[[Values, Value], object]
    """Whether it has no effect, given the mapping and the key's value."""
    code: str = "key-has-no-effect"


_WEIGHTLESS: Final = tuple(kind.name for kind in PROJECTOR_TYPES if not kind.shapes(1, 1, 1))

IDLE: Final[tuple[Idle, ...]] = (
    Idle(
        ("model", "projector"),
        "init_from",
        "a projector of this type has no weights to load",
        "remove `init_from`",
        lambda projector, _: projector.get("type") in _WEIGHTLESS,
        code="identity-projector-has-no-weights",
    ),
    Idle(
        ("model", "language_model"),
        "quantization",
        "`quantization` cannot be used with random weights",
        "remove it, or load pretrained weights with `source`",
        lambda part, quantization: (
            quantization and isinstance(quantization, dict) and given_keys(part, "config")
        ),
    ),
    *(
        Idle(
            ("model", "language_model", "quantization"),
            key,
            f"`{key}` has no effect with `bits: 8`",
            "remove it, or write `bits: 4`",
            lambda quantization, _: quantization.get("bits") == 8,
        )
        for key in ("type", "double_quant")
    ),
    Idle(
        STAGE,
        "trainable",
        "`trainable` has no effect with `freeze: none`: everything trains already",
        "remove it, or write `freeze: all`",
        lambda stage, globs: stage.get("freeze") == "none" and globs,
    ),
    Idle(
        STAGE,
        "samples",
        "`samples` has no effect without `sample_every`",
        "write `sample_every:` with a number of steps, or remove `samples`",
        lambda stage, _: stage.get("sample_every") is None,
    ),
    *(
        Idle(
            DATA,
            key,
            f"`{key}` has no effect without `image_aspect_ratio: anyres`",
            "remove it, or write `image_aspect_ratio: anyres`",
            lambda data, _: data.get("image_aspect_ratio", "square") in ("square", "pad"),
        )
        for key in ("image_grid_pinpoints", "mm_patch_merge_type")
    ),
    *(
        Idle(
            TRAIN,
            key,
            f"`{key}` has no effect with `lr_scheduler_type: constant`",
            "write `lr_scheduler_type: constant_with_warmup`, or remove it",
            lambda train, steps: train.get("lr_scheduler_type") == "constant" and steps,
        )
        for key in ("warmup_ratio", "warmup_steps")
    ),
)


def displaced(
    path: KeyPath, value: Value, *, given: Collection[str], below: Collection[str]
) -> list[KeyPath]:
    """The paths whose values a new value replaces.

    given  the keys that are given together with it, which stay
    below  the keys that the mapping has so far
    """
    if value is None or not path:
        return []
    place, key = path[:-1], path[-1]
    others: list[str] = []
    for exclusion in (each for each in EXCLUSIONS if _matches(place, each.place)):
        if key == exclusion.winner:
            is_replaced = exclusion.loser in below and exclusion.loser not in given
            others += (exclusion.loser, *(exclusion.companions if is_replaced else ()))
        elif exclusion.mutual and key == exclusion.loser:
            others.append(exclusion.winner)
    return [(*place, other) for other in others if other not in given]


def check_exclusions(root: Value) -> Iterator[Problem]:
    """Pairs of keys in a recipe that exclude each other and are both given."""
    for exclusion in EXCLUSIONS:
        for place, mapping in _mappings(root, exclusion.place):
            pair = given_keys(mapping, exclusion.winner, exclusion.loser)
            if len(pair) < 2 or (exclusion.unless is not None and mapping.get(exclusion.unless) is not None):
                continue
            wrong = max(pair, key=list(mapping).index) if exclusion.mutual else exclusion.loser
            code = "keys-exclude-each-other" if exclusion.mutual else "key-has-no-effect-beside-another"
            path, hint = (*place, wrong), exclusion.hint
            yield Problem(exclusion.message, code=code, path=path, hint=hint, on_key=True)


def check_one_given(root: Value) -> Iterator[Problem]:
    """Mappings that need one of two keys and have neither."""
    for exclusion in EXCLUSIONS:
        keys = (exclusion.winner, exclusion.loser)
        for place, mapping in _mappings(root, exclusion.place) if exclusion.if_neither else ():
            if not given_keys(mapping, *keys) and not misspelled(mapping, place, *keys):
                message, hint = f"`{place[-1]}` needs `{keys[0]}` or `{keys[1]}`", exclusion.if_neither
                yield Problem(message, code="one-of-two-keys-is-needed", path=place, hint=hint, on_key=True)


def check_idle(root: Value) -> Iterator[Problem]:
    """Keys of a recipe that have no effect."""
    for idle in IDLE:
        for place, mapping in _mappings(root, idle.place):
            value = mapping.get(idle.key)
            if value is not None and idle.when(mapping, value):
                path = (*place, idle.key)
                yield Problem(idle.message, code=idle.code, path=path, hint=idle.hint, on_key=True)


def misspelled(mapping: Values, place: KeyPath, *names: str) -> bool:
    """Whether a key is another spelling of one of the names; then only the spelling is reported."""
    known = keys_at(place)
    unknown = [key for key in mapping if key not in known]
    # Where a mapping takes these names alone, any other key is meant as one of them.
    return (bool(unknown) and set(known) == set(names)) or any(
        nearest(key, known) in names or any(f"`{name}:" in OTHER_NAMES.get(key, "") for name in names)
        for key in unknown
    )


def _matches(path: KeyPath, place: KeyPath) -> bool:
    return len(path) == len(place) and all(
        wanted in (ANY, segment) for wanted, segment in zip(place, path, strict=True)
    )


def _mappings(root: Value, place: KeyPath) -> Iterator[tuple[KeyPath, Values]]:
    return ((path, value) for path, value in values_under(root, place) if isinstance(value, dict))


def values_under(root: Value, place: KeyPath) -> list[tuple[KeyPath, Value]]:
    """The values of a recipe at every path that a place matches, with their paths."""
    found: list[tuple[KeyPath, Value]] = [((), root)]
    for segment in place:
        inner: list[tuple[KeyPath, Value]] = []
        for path, value in found:
            if segment == ANY:
                inner += [((*path, index), entry) for index, entry in enumerate(as_list(value))]
            elif isinstance(value, dict) and isinstance(segment, str) and segment in value:
                inner.append(((*path, segment), value[segment]))
        found = inner
    return found
