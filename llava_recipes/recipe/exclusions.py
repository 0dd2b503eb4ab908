"""Which keys exclude each other: one table, for `extends`, `--set` and the rules against both at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.scalars import Value
from llava_recipes.recipe.values import given_keys

ANY: Final = "*"
"""Stands for one segment of a path: an entry of a list, by its number or by its name."""


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
    """A new `loser` takes the place of an inherited `winner` too; the later of the two is shown as wrong."""
    unless: str | None = None
    """A third key whose own exclusion is enough to report."""
    companions: tuple[str, ...] = ()
    """Keys that belong to an inherited `loser` and go with it, though they may stand beside `winner`."""


def _both(place: KeyPath, left: str, right: str, reason: str) -> Exclusion:
    return Exclusion(place, left, right, f"`{left}` and `{right}` are both given; {reason}")


def _idle(
    place: KeyPath, winner: str, loser: str, message: str, hint: str, unless: str | None = None
) -> Exclusion:
    return Exclusion(place, winner, loser, message, hint, mutual=False, unless=unless)


def _origins(part: str, *idle: str, companions: tuple[str, ...] = ()) -> Iterator[Exclusion]:
    """The exclusions of a part of the model; `idle` are the keys that only `config` reads.

    companions  keys that are another part's with `config`, and its own model's with `source`
    """
    place = ("model", part)
    yield Exclusion(
        place,
        "source",
        "config",
        f"`{part}` has both `source` and `config`",
        "keep `source` for pretrained weights, or `config` for random ones",
        companions=companions,
    )
    for key in idle:
        message = f"`{key}` has no effect on `{part}` with `source`"
        yield _idle(place, "source", key, message, f"remove it; `{key}` goes with `config`", unless="config")
    message, hint = "`revision` has no effect with `config`", "remove it; `revision` goes with `source`"
    yield _idle(place, "config", "revision", message, hint, unless="source")


_STAGE: Final = ("stages", ANY)
_TRAIN: Final = (*_STAGE, "train")

EXCLUSIONS: Final[tuple[Exclusion, ...]] = (
    *_origins("language_model", "seed", companions=("tokenizer",)),
    *_origins("vision_tower", "image_processor", "seed"),
    _both((*_STAGE, "data"), "template", "chat_template", "each of them says how conversations become text"),
    Exclusion(
        (*_STAGE, "data", "validation"),
        "sources",
        "split",
        "`validation` has both `sources` and `split`",
        "keep `sources` for files of their own, or `split` to hold out training data",
    ),
    _both(_TRAIN, "num_train_epochs", "max_steps", "each of them says how long to train"),
    _both(_TRAIN, "gradient_accumulation_steps", "global_batch_size", "the one follows from the other"),
    _both(_TRAIN, "warmup_ratio", "warmup_steps", "each of them says how long to warm up"),
    _idle(
        (*_STAGE, "samples"),
        "images",
        "num",
        "`num` counts records, and `images` are asked instead of records",
        "remove one of the two",
    ),
)


def displaced(
    path: KeyPath, value: Value, *, given: Collection[str], below: Collection[str]
) -> list[KeyPath]:
    """The paths that a new value takes the place of.

    given  the keys that were given together with it, which stay
    below  the keys that stand there so far
    """
    if value is None or not path:
        return []
    place, key = path[:-1], path[-1]
    others: list[str] = []
    for exclusion in EXCLUSIONS:
        if not _matches(place, exclusion.place):
            continue
        if key == exclusion.winner:
            others.append(exclusion.loser)
            others += (
                exclusion.companions if exclusion.loser in below and exclusion.loser not in given else ()
            )
        elif exclusion.mutual and key == exclusion.loser:
            others.append(exclusion.winner)
    return [(*place, other) for other in others if other not in given]


def check_exclusions(root: Value) -> Iterator[Problem]:
    """Every two keys of a recipe that exclude each other and are both given."""
    for exclusion in EXCLUSIONS:
        for place, mapping in _mappings(root, exclusion.place):
            pair = given_keys(mapping, exclusion.winner, exclusion.loser)
            if len(pair) < 2 or (exclusion.unless is not None and mapping.get(exclusion.unless) is not None):
                continue
            wrong = max(pair, key=list(mapping).index) if exclusion.mutual else exclusion.loser
            yield Problem(
                exclusion.message,
                code="keys-exclude-each-other" if exclusion.mutual else "key-has-no-effect-beside-another",
                path=(*place, wrong),
                hint=exclusion.hint,
                on_key=True,
            )


def _matches(path: KeyPath, place: KeyPath) -> bool:
    return len(path) == len(place) and all(
        wanted in (ANY, segment) for wanted, segment in zip(place, path, strict=True)
    )


def _mappings(root: Value, place: KeyPath) -> Iterator[tuple[KeyPath, dict[str, Value]]]:
    """The mappings of a recipe that a place stands for, with their paths."""
    found: list[tuple[KeyPath, Value]] = [((), root)]
    for segment in place:
        inner: list[tuple[KeyPath, Value]] = []
        for path, value in found:
            if segment == ANY and isinstance(value, list):
                inner += [((*path, index), entry) for index, entry in enumerate(value)]
            elif isinstance(value, dict) and isinstance(segment, str) and segment in value:
                inner.append(((*path, segment), value[segment]))
        found = inner
    return ((path, value) for path, value in found if isinstance(value, dict))
