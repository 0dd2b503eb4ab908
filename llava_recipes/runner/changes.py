"""What differs between the plan that a run folder records and the one wanted, and what the user accepts."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final, TypeAlias

from pydantic import JsonValue

from llava_recipes.plan.types import Plan
from llava_recipes.recipe.foreign import in_short
from llava_recipes.recipe.scalars import spell_number, value_at
from llava_recipes.recipe.schema import Recipe
from llava_recipes.runner.identity import Kind, Rule, rule_of
from llava_recipes.seals import known_seal

Values: TypeAlias = dict[str, JsonValue]

_STAGE = ("stages", 0)
_MOVED = "moved, with the same content"
_PLACES = frozenset(["annotations", "source", "tokenizer", "init_from", "starts_from"])
_OPENED: Final = (dict, type(None))
"""A DeepSpeed config and validation data are compared key by key with none at all."""
_ELEMENTWISE = re.compile(r"(paged_)?(adamw|ademamix|adagrad|lion|rmsprop|sgd)")
_NUM_COMPARED = 200
"""Images of a folder whose names and sizes are compared."""


def is_elementwise(optimizer: JsonValue) -> bool:
    """Whether a value of `optim` treats each weight by itself, whatever else is in one tensor with it."""
    return _ELEMENTWISE.match(str(optimizer or "adamw_torch")) is not None


def _spelled(value: JsonValue) -> str:
    """As a recipe writes it: 1e-3, not 0.001."""
    return spell_number(value) if isinstance(value, float) else in_short(value)


@dataclass(frozen=True)
class Change:
    """One value that differs between the plan that was run and the one wanted."""

    kind: Kind
    keys: tuple[str, ...]
    """The keys of the recipe that set it, the one to name first; those of a stage start inside it."""
    place: str
    """The first key, with the entry of a list: `data.sources.0.annotations`."""
    then: JsonValue
    now: JsonValue
    note: str = ""

    @property
    def key(self) -> str:
        return self.keys[0]

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.place}: {_spelled(self.then)} then, {_spelled(self.now)} now{note}"

    def to_json(self) -> Values:
        return {"key": self.place, "kind": self.kind, "then": self.then, "now": self.now}


@dataclass(frozen=True)
class Differing:
    """A path where two plans differ, and the value of each."""

    path: tuple[str | int, ...]
    then: JsonValue
    now: JsonValue

    @property
    def pattern(self) -> str:
        """The path with `[]` for the entries of lists."""
        text = ""
        for segment in self.path:
            text += "[]" if isinstance(segment, int) else f".{segment}" if text else segment
        return text


def find_changes(
    recorded: Mapping[str, JsonValue],
    wanted: Plan,
    recipe: Recipe | None,
    index: int,
    *,
    moved: Collection[str] = (),
) -> tuple[Change, ...]:
    """What differs between the plan of a run folder and the one wanted, each with its meaning.

    Both plans have one stage, number `index` of the recipe, which says how values were written. Values that
    follow from others are left out. `moved` are paths of the plan, such as `model.language_model.source`,
    that lead elsewhere now, to the content that the run recorded; where none was, contents are compared.
    """
    then, now = dict(recorded), wanted.model_dump(mode="json")
    differences = tuple(_between(then, now, ()))
    judge = _Judge(
        then, now, recipe, index, frozenset(each.pattern for each in differences), frozenset(moved)
    )
    changes = [change for each in differences if (change := judge.change(each)) is not None]
    return tuple(_once(changes, then, now))


def _once(changes: list[Change], then: Values, now: Values) -> Iterator[Change]:
    """The changes, those of a DeepSpeed config as one; a base's tokenizer moves with its weights."""
    seen = set()
    for change in changes:
        is_config = change.kind == "harmless" and change.key == "deepspeed"
        what = "deepspeed" if is_config else (change.key, in_short(change.then), in_short(change.now))
        if what in seen:
            continue
        seen.add(what)
        before, after = (value_at(side, (*_STAGE, "deepspeed_source")) for side in (then, now))
        if is_config and before != after:
            yield Change(change.kind, change.keys, change.key, before, after)
        else:
            yield change


def _between(then: JsonValue, now: JsonValue, path: tuple[str | int, ...]) -> Iterator[Differing]:
    opens = _OPENED if "deepspeed" in path or path[-1:] == ("validation",) else dict
    if isinstance(then, opens) and isinstance(now, opens) and (then or now):
        left, right = then or {}, now or {}
        for key in {**left, **right}:
            yield from _between(left.get(key), right.get(key), (*path, key))
    elif (
        isinstance(then, list)
        and isinstance(now, list)
        and len(then) == len(now)
        and any(isinstance(entry, dict) for entry in then)
    ):
        for number, pair in enumerate(zip(then, now, strict=True)):
            yield from _between(*pair, (*path, number))
    elif then != now or isinstance(then, bool) != isinstance(now, bool):
        yield Differing(path, then, now)


@dataclass(frozen=True)
class _Judge:
    """Two plans of one stage, and where they differ: some values mean something only beside others."""

    then: Values
    now: Values
    recipe: Recipe | None
    index: int
    patterns: frozenset[str]
    moved: frozenset[str]

    def change(self, found: Differing) -> Change | None:
        try:
            rule = rule_of(found.pattern)
        except KeyError:
            # Of another version of the plan.
            rule = Rule("structural", (found.pattern,))
        kind, note = self._kind(found, rule), ""
        if kind == "learned" and (moved := self._moved(found)) is not None:
            kind, note = "harmless", moved
        if kind == "follows":
            return None
        keys = self._named_first(rule.keys, found)
        place = ".".join(map(str, found.path[2:] if found.path[:1] == ("stages",) else found.path))
        place = place if f"{place}.".startswith(f"{keys[0]}.") else keys[0]
        return self._told(Change(kind, keys, place, found.then, found.now, note), str(found.path[-1]))

    def _told(self, change: Change, name: str) -> Change:
        """The change in the words of the recipe: epochs instead of steps, what it counts."""
        if name in ("max_steps", "warmup_steps"):
            epochs = [self._train(side, "num_train_epochs") for side in (self.then, self.now)]
            if name == "warmup_steps" or None in epochs:
                return replace(change, note="steps")
            note = f"{in_short(change.then)} steps then, {in_short(change.now)} now"
            return replace(change, then=epochs[0], now=epochs[1], note=note)
        if name == "global_batch_size" and "world_size" in self.patterns:
            before, after = self.then.get("world_size"), self.now.get("world_size")
            return replace(change, note=f"processes: {before} then, {after} now")
        if name == "recipe":
            return replace(change, note="the recipe's")
        return change

    def _kind(self, found: Differing, rule: Rule) -> Kind:
        name = found.pattern.removeprefix("stages[].")
        if name.startswith("model.sizes."):
            # Known as soon as a part has another config, and by itself where a folder has another content.
            parts = {each for each in self.patterns if each.startswith("model.") and "sizes" not in each}
            return "follows" if any(rule_of(each).kind == "structural" for each in parts) else rule.kind
        if name.startswith("deepspeed."):
            return self._of_deepspeed(found, rule)
        special = _SPECIAL.get(name)
        return rule.kind if special is None else special(self, found, rule.kind)

    def _of_deepspeed(self, found: Differing, rule: Rule) -> Kind:
        """`auto` is the recipe's own value, as is the clipping of a config that has none."""
        values = [found.then, found.now]
        if found.path[-2:] == ("zero_optimization", "stage"):
            # Elsewhere DeepSpeed gives the optimizer other pieces of the weights.
            is_same = is_elementwise(self._argument(self.now, "optim"))
            return rule.kind if is_same else "structural"
        if found.path[-1] == "gradient_clipping":
            norms = [self._argument(side, "max_grad_norm") for side in (self.then, self.now)]
            values = [
                norm if each in (None, "auto") else each for each, norm in zip(values, norms, strict=True)
            ]
            return "follows" if values[0] == values[1] or norms[0] != norms[1] else rule.kind
        if "fp16" in found.path:
            both = all(value_at(side, (*_STAGE, "deepspeed")) is not None for side in (self.then, self.now))
            return rule.kind if both and self._train(self.now, "precision") == "fp16" else "follows"
        is_auto = all(each in (None, "auto") for each in values)
        return "follows" if rule.kind == "learned" and is_auto else rule.kind

    def _of_length(self, found: Differing, kind: Kind) -> Kind:
        """Steps are compared where both plans count them: epochs may be the same number."""
        steps = [self._train(side, "max_steps") for side in (self.then, self.now)]
        epochs = [self._train(side, "num_train_epochs") for side in (self.then, self.now)]
        if found.path[-1] == "num_train_epochs":
            if None in steps:
                return kind
            return "follows"
        return "follows" if None in steps or (epochs[0] == epochs[1] and epochs[0] is not None) else kind

    def _of_warmup(self, found: Differing, kind: Kind) -> Kind:
        train = None if self.recipe is None else self.recipe.stages[self.index].train
        steps = self._train(self.then, "max_steps")
        if train is None or train.warmup_steps is not None or not isinstance(steps, int):
            return kind
        # The same share of another number of steps.
        return "follows" if found.then == math.ceil(steps * (train.warmup_ratio or 0)) else kind

    def _of_group(self, found: Differing, kind: Kind) -> Kind:
        """A group without a value of its own has that of `train`."""
        number, name = found.path[-2:]
        groups = () if self.recipe is None else self.recipe.stages[self.index].param_groups
        mine = groups[number] if isinstance(number, int) and number < len(groups) else None
        inherits = mine is not None and getattr(mine, str(name)) is None
        get = self._train if name == "learning_rate" else self._argument
        return "follows" if inherits and get(self.then, str(name)) == found.then else kind

    def _of_device_batch(self, found: Differing, kind: Kind) -> Kind:
        """Part of a change of the whole step, if that has changed."""
        return "follows" if "stages[].train.global_batch_size" in self.patterns else kind

    def _of_trainable(self, found: Differing, kind: Kind) -> Kind:
        """Globs may be spelled otherwise, where the modules that they match are known."""
        knows = self._on_both_sides((*_STAGE, "trainable_modules"))
        if found.path[-1] == "trainable_modules":
            return kind if knows else "follows"
        return "follows" if knows else "structural"

    def _of_count(self, found: Differing, kind: Kind) -> Kind:
        is_other_file = "stages[].data.sources[].annotations" in self.patterns
        return "follows" if is_other_file or None in (found.then, found.now) else kind

    def _of_pinpoints(self, found: Differing, kind: Kind) -> Kind:
        """Those that follow from the tower's size are not known where that isn't, as before a download."""
        sizes = (value_at(side, ("model", "sizes")) for side in (self.then, self.now))
        is_own = self._writes("data.image_grid_pinpoints")
        unknown = None in (found.then, found.now) and any(each is None for each in sizes)
        same = "stages[].data.image_aspect_ratio" not in self.patterns
        return "follows" if unknown and same and not is_own else kind

    def _of_starts(self, found: Differing, kind: Kind) -> Kind:
        """A plan leaves out earlier runs that are gone, where a later one has trained all of them again."""
        then, now = found.then, found.now
        if not (isinstance(then, list) and isinstance(now, list) and now == then[-len(now) :]):
            return kind
        gone = (os.path.expanduser(str(each)) for each in then[: -len(now)])
        return kind if any(map(os.path.exists, gone)) else "follows"

    def _of_validation(self, found: Differing, kind: Kind) -> Kind:
        """What is held out of the training data is that of its sources."""
        splits = (value_at(side, (*_STAGE, "data", "validation", "split")) for side in (self.then, self.now))
        return kind if all(split is None for split in splits) else "follows"

    def _moved(self, found: Differing) -> str | None:
        """What to say of a path that changed while what lies there is the same; None for any other change."""
        if found.path[-1] == "images":
            is_same = isinstance(found.then, str) and isinstance(found.now, str)
            is_same = is_same and not _find_other_image(str(found.then), str(found.now))
            return "moved; its images are taken to be the same" if is_same else None
        if found.path[-1] not in _PLACES:
            return None
        then, now = ([each] if isinstance(each, str) else each for each in (found.then, found.now))
        if not isinstance(then, list) or not isinstance(now, list) or len(then) != len(now):
            return None
        place = ".".join(map(str, found.path))
        places = [place] if isinstance(found.now, str) else [f"{place}.{n}" for n in range(len(now))]
        is_same = all(
            each in self.moved or is_same_content(str(one), str(other))
            for each, one, other in zip(places, then, now, strict=True)
        )
        return _MOVED if is_same else None

    def _named_first(self, keys: tuple[str, ...], found: Differing) -> tuple[str, ...]:
        """The keys, first the one to change in the recipe: that which it writes, or which differs."""
        if found.path[-1] == "global_batch_size" and not self._writes(keys[0]):
            for key in keys[1:]:
                if f"stages[].{key}" in self.patterns and "world_size" not in self.patterns:
                    return (key, *(each for each in keys if each != key))
            return keys
        return tuple(sorted(keys, key=lambda key: not self._writes(key)))

    def _writes(self, key: str) -> bool:
        if self.recipe is None:
            return False
        at: object = self.recipe if key.startswith("model.") else self.recipe.stages[self.index]
        for segment in key.split("."):
            if segment not in getattr(at, "model_fields_set", ()):
                return False
            at = getattr(at, segment)
        return at is not None

    def _on_both_sides(self, path: tuple[str | int, ...]) -> bool:
        return all(value_at(side, path) is not None for side in (self.then, self.now))

    def _train(self, side: Values, name: str) -> JsonValue:
        return value_at(side, (*_STAGE, "train", name))

    def _argument(self, side: Values, name: str) -> JsonValue:
        return value_at(side, (*_STAGE, "train", "training_arguments", name))


_SPECIAL: Mapping[str, Callable[[_Judge, Differing, Kind], Kind]] = {
    "train.max_steps": _Judge._of_length,
    "train.num_train_epochs": _Judge._of_length,
    "train.warmup_steps": _Judge._of_warmup,
    "param_groups[].learning_rate": _Judge._of_group,
    "param_groups[].weight_decay": _Judge._of_group,
    "train.per_device_train_batch_size": _Judge._of_device_batch,
    "data.sources[].num_samples": _Judge._of_count,
    "data.image_grid_pinpoints": _Judge._of_pinpoints,
    "data.validation.sources": _Judge._of_validation,
    "starts_from": _Judge._of_starts,
    "trainable_modules": _Judge._of_trainable,
    "trainable": _Judge._of_trainable,
    "freeze": _Judge._of_trainable,
}
"""What a value means depends on others at these places of a stage."""


def is_same_content(then: str, now: str) -> bool:
    """Whether two files, folders or patterns of files have the same names and bytes."""
    if os.path.exists(then) and os.path.exists(now) and os.path.samefile(then, now):
        return True
    left, right = _files(then), _files(now)
    if not left or left.keys() != right.keys():
        return False
    pairs = [(left[name], right[name]) for name in left]
    if any(one.stat().st_size != other.stat().st_size for one, other in pairs):
        return False
    return all(os.path.samefile(*pair) or known_seal(pair[0]) == known_seal(pair[1]) for pair in pairs)


def _files(place: str) -> dict[str, Path]:
    """The files of a folder or a pattern by name, or a file itself."""
    path = Path(os.path.expanduser(place))
    if path.is_file():
        return {"": path}
    if path.is_dir():
        return {each.relative_to(path).as_posix(): each for each in sorted(path.rglob("*")) if each.is_file()}
    found = sorted(glob.glob(str(path))) if glob.has_magic(place) else []
    return {os.path.basename(each): Path(each) for each in found if os.path.isfile(each)}


def _find_other_image(then: str, now: str) -> str | None:
    """A file that has another size in the other folder, among the first ones; None where one is gone."""
    if not (os.path.isdir(then) and os.path.isdir(now)) or os.path.samefile(then, now):
        return None
    files = (Path(folder) / name for folder, _, names in os.walk(then) for name in sorted(names))
    for file in islice(files, _NUM_COMPARED):
        name = file.relative_to(then)
        other = Path(now) / name
        if not other.is_file() or other.stat().st_size != file.stat().st_size:
            return str(name)
    return None
