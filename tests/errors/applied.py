"""Hints obeyed by the letter: what a person types who does what a hint says."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.recipe.exclusions import displaced
from llava_recipes.recipe.extends import extend
from llava_recipes.recipe.language import is_free, keys_at, shapes_at
from llava_recipes.recipe.load import load_source
from llava_recipes.recipe.source import parse_source, parse_value
from llava_recipes.runner.facts import compile_loaded

Root = dict[str, Any]
Apply = Callable[[Root, Problem, KeyPath, "re.Match[str]"], KeyPath | None]


def problems_of(root: Root, file: str) -> tuple[Problem, ...]:
    """Every error of a recipe; where it has none, every warning."""
    try:
        # JSON is YAML, and spells every number and text so that it is read as it was.
        return compile_loaded(load_source(json.dumps(root), file), world_size=1).warnings
    except RecipeError as error:
        return error.problems


def values_of(file: Path) -> Root | None:
    """What a recipe file says, its parents under it; None where it cannot be read as a mapping."""
    try:
        root = extend(parse_source(file.read_bytes(), str(file))).root
    except RecipeError:
        return None
    return root if isinstance(root, dict) else None


def obeyed(root: Root, problem: Problem) -> tuple[Root, KeyPath] | None:
    """The recipe after the first thing that a hint proposes, and the path of what changed.

    None where the hint asks for something that only the person knows.
    """
    if problem.path is None or problem.hint is None:
        return None
    for form, apply in _FORMS:
        found = re.search(form, problem.hint)
        if found is not None:
            changed = copy.deepcopy(root)
            where = apply(changed, problem, problem.path, found)
            if where is not None:
                return changed, where
    return None


def is_still_wrong(before: Problem, after: Sequence[Problem], where: KeyPath) -> list[Problem]:
    """What is reported of the key that a hint was about, after it was obeyed."""
    # With an entry of a list gone, the next one has its number.
    same = [problem for problem in after if (problem.message, problem.path) == (before.message, before.path)]
    if where and isinstance(where[-1], int):
        return same
    return same + [problem for problem in after if problem.path and problem.path[: len(where)] == where]


def _at(root: Any, path: KeyPath) -> Any:
    for segment in path:
        try:
            root = root[segment]
        except (KeyError, IndexError, TypeError):
            return None
    return root


def _put(root: Root, path: KeyPath, value: Any) -> KeyPath:
    """Write a value, and take what it excludes away."""
    for depth in range(1, len(path)):
        if _at(root, path[:depth]) is None:
            _at(root, path[: depth - 1])[path[depth - 1]] = {}
    for other in displaced(path, value, given=(), below=_at(root, path[:-1])):
        _at(root, path[:-1]).pop(other[-1], None)
    _at(root, path[:-1])[path[-1]] = value
    return path


def _remove(root: Root, problem: Problem, path: KeyPath, found: re.Match[str]) -> KeyPath:
    del _at(root, path[:-1])[path[-1]]
    return path


def _is_unknown_key(problem: Problem, path: KeyPath) -> bool:
    return problem.on_key and isinstance(path[-1], str) and path[-1] not in keys_at(path[:-1])


def _word(root: Root, problem: Problem, path: KeyPath, found: re.Match[str]) -> KeyPath | None:
    """`did you mean X?` and `write X`: another name of the key, or another value."""
    if not path or "…" in found["word"]:
        return None
    if _is_unknown_key(problem, path):
        return _put(root, (*path[:-1], found["word"]), _at(root, path[:-1]).pop(path[-1]))
    old = _at(root, path)
    if found["word"].startswith("{") and isinstance(old, str):
        return _put(root, path, re.sub(r"\{[0-9.]*\}", found["word"], old))
    return _put(root, path, parse_value(found["word"], "").root)


def _move(root: Root, problem: Problem, path: KeyPath, found: re.Match[str]) -> KeyPath | None:
    """`it belongs in X`, "write `key:` under X": the same value elsewhere, perhaps by another name."""
    groups = found.groupdict()
    place = _place(found["place"], path)
    if place is None or not _is_unknown_key(problem, path):
        return None
    return _put(root, (*place, groups.get("word") or path[-1]), _at(root, path[:-1]).pop(path[-1]))


def _place(words: str, path: KeyPath) -> KeyPath | None:
    """The mapping that a hint names; of stages and sources, the one at hand or the first."""
    at_hand = iter((*(segment for segment in path if isinstance(segment, int)), 0, 0))
    stage = ("stages", next(at_hand)) if path[:1] == ("stages",) else ("stages", 0)
    known: dict[str, KeyPath] = {
        "the top level": (),
        "the stage": stage,
        "stages[]": stage,
        "an entry of `data.sources`": (*stage, "data", "sources", 0),
        "stages[].data.sources[]": (*stage, "data", "sources", 0),
        "model": ("model",),
        "model:": ("model",),
    }
    for key in ("train", "data", "lora"):
        known |= dict.fromkeys((f"{key}:", f"stages[].{key}", f"`{key}:` of the stage"), (*stage, key))
    for key in ("vision_tower", "projector"):
        known |= dict.fromkeys((f"{key}:", f"model.{key}", f"`{key}:` of `model:`"), ("model", key))
    words = words.removesuffix(" itself")
    return known.get(words.strip("`"), known.get(words))


def _pair(root: Root, problem: Problem, path: KeyPath, found: re.Match[str]) -> KeyPath | None:
    """Write `key: value` in the mapping that the hint names, else in the nearest that may have the key."""
    pair = parse_value(found["pair"], "").root
    if not isinstance(pair, dict) or "…" in found["pair"] or None in pair.values():
        return None
    ((key, value),) = pair.items()
    rest = found.string[found.end() :]
    named = re.match(r" (?:under|in|at) (?P<place>the top level|`[^`]*`)", rest)
    place = _place(named["place"], path) if named is not None else None
    if place is None:
        parents: list[KeyPath] = [*(path[:end] for end in range(len(path), -1, -1))]
        fits = (key in keys_at(each) or _is_free(root, each, path) for each in parents)
        place = next((each for each, is_fit in zip(parents, fits, strict=True) if is_fit), None)
    if place is None:
        return None
    if rest.startswith(" instead") or (path and _is_unknown_key(problem, path)):
        _at(root, path[:-1]).pop(path[-1])
    for other in re.findall(r"with `(?P<pair>[a-z_]+: [^`]+)`", rest):
        for name, inner in parse_value(other, "").root.items():  # type: ignore[union-attr]
            _put(root, (*place, name), inner)
    return _put(root, (*place, key), value)


def _is_free(root: Root, place: KeyPath, path: KeyPath) -> bool:
    """Whether a hint is about the entries of a mapping that takes any."""
    is_any = any("dict" in str(shape) or is_free(shape) for shape in shapes_at(place))
    return place == path and is_any and isinstance(_at(root, place), dict)


def _auto(root: Root, problem: Problem, path: KeyPath, found: re.Match[str]) -> KeyPath:
    return _put(root, path, "auto")


def _json_pair(root: Root, problem: Problem, path: KeyPath, found: re.Match[str]) -> KeyPath | None:
    """`add "key": value`, to a DeepSpeed config."""
    if not isinstance(_at(root, path), dict):
        return None
    return _put(root, (*path, found["key"]), json.loads(found["value"]))


def _extra(root: Root, problem: Problem, path: KeyPath, found: re.Match[str]) -> KeyPath:
    return _put(root, (*path[:-1], "extra", path[-1]), _at(root, path[:-1]).pop(path[-1]))


def _quote(root: Root, problem: Problem, path: KeyPath, found: re.Match[str]) -> KeyPath:
    return _put(root, path, str(_at(root, path)))


def _variable(root: Root, problem: Problem, path: KeyPath, found: re.Match[str]) -> KeyPath:
    """``write `${NAME}` `` in place of what is quoted in the message, with a value under `vars`."""
    written = problem.message.split("`")[1]
    _put(root, ("vars", found["name"]), "filled")
    return _put(root, path, str(_at(root, path)).replace(written, found["word"]))


def _train_it(root: Root, problem: Problem, path: KeyPath, found: re.Match[str]) -> KeyPath:
    stage: KeyPath = path[:2] if path[:1] == ("stages",) else ("stages", 0)
    return _put(root, (*stage, "trainable"), [*(_at(root, (*stage, "trainable")) or []), found["word"]])


_NUMBER = r"(?P<word>[-+]?[0-9][0-9.e+-]*|\[[^`]*\])(?=[,; ]|$)"
_PLACE = (
    r"(?P<place>an entry of `[^`]*`|(?:the )?(?:stage|top level)|`[^`]*` of (?:`[^`]*`|the stage)"
    r"|`[^`]*`(?: itself)?)"
)
_REMOVE = (
    r"^(?:remove it(?! from)|keep one|keep `|remove one of (?:the two|them)"
    r"|remove `(?:init_from|amp)`|remove the block)"
)

_FORMS: Sequence[tuple[str, Apply]] = (
    (_REMOVE, _remove),
    (r"^did you mean `(?P<word>[^`]*)`, which belongs in (?P<place>`[^`]*`)", _move),
    (r"^did you mean [`\"](?P<word>[^`\"]*)[`\"]", _word),
    (rf"^write `(?P<word>[a-z_0-9]+):` (?:under|in) {_PLACE}", _move),
    (rf"^(?:it belongs in|move it to) {_PLACE}", _move),
    (r'^write "auto" there', _auto),
    (r'^add "?(?P<key>[a-z_0-9]+)"?: (?P<value>"auto"|\{.*\})(?=,|$)', _json_pair),
    (r"^write `(?P<word>\$\{(?P<name>\w+)\})`, with", _variable),
    (r"another TrainingArguments field is written", _extra),
    (r"^(?!choose another|write what).*?`(?P<pair>[a-z_0-9]+: [^`]+)`", _pair),
    (r"^write `(?P<word>[^`:…$]+)`", _word),
    (rf"^write {_NUMBER}(?! or more)", _word),
    (r"(?P<word>[0-9]+) is usual", _word),
    (r"such as `?(?P<word>[0-9.]+)`?", _word),
    (r"(?:done|trained) at (?P<word>[0-9.e-]+)", _word),
    (r"^`(?P<word>zero2)` is faster", _word),
    (r"^name an earlier one, or `(?P<word>base)`", _word),
    (r"^put it in quotes", _quote),
    (r"add [`\"](?P<word>[a-z_]+)[`\"](?: to `trainable|, which)", _train_it),
    (r"or remove it", _remove),
)  # fmt: skip
