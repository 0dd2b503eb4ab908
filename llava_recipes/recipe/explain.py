"""What the schema refuses, in plain words: Pydantic's errors become problems with recipe paths."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llava_recipes.errors import KeyPath, Problem
from llava_recipes.projectors import MOST_LAYERS, PROJECTOR_TYPES
from llava_recipes.recipe.language import choices_at, homes, is_list, is_model, keys_at, shapes_at, wanted_at
from llava_recipes.recipe.names import EXTRA_FIELDS, INSTEAD
from llava_recipes.recipe.renames import OTHER_NAMES, bare, did_you_mean, nearest, nearest_all, ranked
from llava_recipes.recipe.scalars import (
    ScalarError,
    Value,
    kind_of,
    numbers_meant,
    resolve_scalar,
    say_number,
    spell_value,
    value_at,
    whole,
)
from llava_recipes.recipe.value_hints import (
    choice_hint,
    deepspeed_hint,
    empty_hint,
    missing_hint,
    number_hint,
)

MAX_REPORTED = 200
_CHARACTERS_PER_SLIP = 8
"""A key that belongs elsewhere is suggested for one slip in as many characters: short words resemble many."""
_MOST_NAMED = 2
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}
_NAME_RULE = "letters, digits, `.`, `_` and `-`, starting with a letter or digit"
_SOURCES = {"vision_tower": "source", "projector": "type"}


def explain_validation(error: ValidationError, root: Value, *, is_part: bool = False) -> list[Problem]:
    """One problem for each place that the schema refuses, MAX_REPORTED at most.

    A part of a recipe may lack keys, and its variables are not filled in.
    """
    errors = error.errors(include_url=False)
    located = [(_path(details["loc"], root, details["type"]), details) for details in errors]
    if is_part:
        located = [(path, details) for path, details in located if not _may_be_elsewhere(path, details, root)]
    grouped: dict[KeyPath, list[ErrorDetails]] = {}
    for path, details in located:
        grouped.setdefault(path, []).append(details)
    # A file with thousands of faults is not a recipe, and each of them is searched for what was meant.
    not_shown = list(grouped)[MAX_REPORTED:]
    for path in not_shown:
        del grouped[path]
    misspelled = {_meant(path) for path, known in grouped.items() if known[0]["type"] == "extra_forbidden"}
    problems = []
    for path, alternatives in grouped.items():
        kind = alternatives[0]["type"]
        # A union reports every alternative; one that got further inside is the one that was meant.
        inside = any(len(other) > len(path) and other[: len(path)] == path for other in grouped)
        # A list with wrong entries counts as too short as well.
        repeats = kind == "too_short" and not _is_too_short(root, path, alternatives[0])
        # A key under a misspelled name is not reported as missing too.
        repeats = repeats or (kind == "missing" and path in misspelled)
        if not repeats and not (inside and len(alternatives[0]["loc"]) > len(path)):
            problems.append(_explain(path, alternatives, root))
    if not_shown:
        more, hint = f"{len(not_shown):,} more problems are not shown", "fix those above first"
        problems.append(Problem(more, code="more-problems", path=not_shown[0], hint=hint, on_key=True))
    return problems


def _is_too_short(root: Value, path: KeyPath, details: ErrorDetails) -> bool:
    value = value_at(root, path)
    return not isinstance(value, list) or len(value) < details["ctx"]["min_length"]


def _may_be_elsewhere(path: KeyPath, details: ErrorDetails, root: Value) -> bool:
    value = value_at(root, path) if details["type"] != "missing" else None
    return details["type"] == "missing" or (isinstance(value, str) and "${" in value)


def _meant(path: KeyPath) -> KeyPath:
    """The path that a misspelled key probably stands for."""
    return (*path[:-1], nearest(str(path[-1]), keys_at(path[:-1])) or path[-1])


def _path(loc: tuple[int | str, ...], root: Value, kind: str) -> KeyPath:
    """The recipe path of Pydantic's `loc`, without the tags of unions in it."""
    path: KeyPath = ()
    value = root
    for position, segment in enumerate(loc):
        inner = _entry(value, segment)
        if inner is not None:
            path, value = (*path, segment), inner[0]
        elif kind == "missing" and position == len(loc) - 1:
            path = (*path, segment)
    return path


def _entry(value: Value, segment: int | str) -> tuple[Value] | None:
    """The value there in a mapping or list, in a tuple of one; None where it has none."""
    if isinstance(value, dict) and isinstance(segment, str) and segment in value:
        return (value[segment],)
    if isinstance(value, list) and isinstance(segment, int) and segment < len(value):
        return (value[segment],)
    return None


def _explain(path: KeyPath, alternatives: list[ErrorDetails], root: Value) -> Problem:
    details = alternatives[0]
    kind, value = details["type"], value_at(root, path)
    name = _name(path)
    if kind == "missing":
        return _missing(path, root)
    if kind == "extra_forbidden":
        return unknown_key(path, value)
    found = spell_value(value)
    if details["loc"][-1] == "[key]":
        hint = f"use only {_NAME_RULE}"
        return Problem(f"{name} is not a valid name", code="invalid-name", path=path, hint=hint, on_key=True)
    if value is None:
        hint = empty_hint(path, root)
        return Problem(f"{name} has no value", code="value-is-missing", path=path, hint=hint, on_key=True)
    if choices_at(path) and any(details["type"] == "literal_error" for details in alternatives):
        return _choice(path, value)
    if kind in _BOUNDS:
        limit, word = _BOUNDS[kind]
        bound = details.get("ctx", {}).get(limit, 0)
        shown = f"{bound:,}" if isinstance(bound, int) else say_number(bound)
        return Problem(f"{name} must be {word} {shown}", code="value-not-allowed", path=path, found=found)
    if kind == "string_pattern_mismatch":
        return _pattern(path, value)
    if kind == "string_too_short":
        hint = empty_hint(path, root)
        return Problem(f"{name} is an empty string", code="text-is-empty", path=path, hint=hint)
    if kind == "string_too_long":
        message = f"{name} is longer than {details['ctx']['max_length']} characters"
        return Problem(message, code="text-is-too-long", path=path, found=found)
    if kind in ("too_short", "too_long") and isinstance(value, list) and value:
        bound = details["ctx"]["min_length" if kind == "too_short" else "max_length"]
        message = f"{name} needs {bound} {'entry' if bound == 1 else 'entries'}"
        return Problem(message, code="list-has-too-few-entries", path=path, found=found)
    if kind == "too_short":
        hint = "write at least one entry"
        return Problem(f"{name} is an empty list", code="list-is-empty", path=path, hint=hint)
    return _wrong_kind(path, value)


def _name(path: KeyPath) -> str:
    if not path:
        return "the recipe"
    key = max(place for place, segment in enumerate(path) if isinstance(segment, str))
    return f"`{path[key]}{''.join(f'[{index}]' for index in path[key + 1 :])}`"


def _missing(path: KeyPath, root: Value) -> Problem:
    message, hint = f"{_name(path[:-1])} needs the key `{path[-1]}`", missing_hint(path, root)
    return Problem(message, code="key-is-missing", path=path[:-1], hint=hint, on_key=True)


def _choice(path: KeyPath, value: Value) -> Problem:
    choices = choices_at(path)
    words = ", ".join(f"`{choice}`" for choice in choices)
    name = f"entries of `{path[-2]}`" if isinstance(path[-1], int) else _name(path)
    hint = choice_hint(path, value, choices)
    if path[-1] == "freeze" and hint is None:
        hint = f"write `[{value}]` for a glob" if isinstance(value, str) else "write globs as a list"
    only = "must be" if len(choices) == 1 else "must be one of"
    other = ", or a list" if any(map(is_list, shapes_at(path))) else ""
    message = f"{name} {only} {words}{other}"
    return Problem(message, code="value-not-allowed", path=path, found=spell_value(value), hint=hint)


def _pattern(path: KeyPath, value: Value) -> Problem:
    if path[-1] == "type" and isinstance(value, str):
        names = {kind.numbered(number): None for kind in PROJECTOR_TYPES for number in (1, 2, 3)}
        near = nearest(value, names)
        hint = f"did you mean `{near}`?" if near else "for example `mlp2x_gelu`: two linear layers"
        *first, last = (
            f"`{kind.name}`" + f" (N from 1 to {MOST_LAYERS})" * ("N" in kind.name)
            for kind in PROJECTOR_TYPES
        )
        message = f"`type` must be {', '.join(first)} or {last}"
        return Problem(message, code="unknown-projector-type", path=path, found=spell_value(value), hint=hint)
    if path[-1] == "sampling_strategy" and isinstance(value, str):
        return _sampling(path, value)
    message = f"{_name(path)} must consist of {_NAME_RULE}"
    return Problem(message, code="number-out-of-range", path=path, found=spell_value(value))


def _sampling(path: KeyPath, value: str) -> Problem:
    word, _, amount = (part.strip() for part in value.partition(":"))
    words = ("all", "first", "end", "random")
    near = word if word in words else nearest(word, words)
    is_share = amount.endswith("%")
    readings = numbers_meant(amount.removesuffix("%"))
    hint = "for example `first:1000`, `end:5%` or `random:10%`"
    if near == "all" and not amount:
        hint = "write `all`"
    elif near not in (None, "all"):
        possible = [number for number in readings if is_share or whole(number) is not None]
        meant = [f"`{near}:{_amount(number, is_share)}`" for number in possible if float(number) > 0]
        if is_share and any(float(number) > 100 for number in possible):
            weight = say_number(float(possible[0]) / 100)
            hint = f"write `weight: {weight}` instead, to use records more than once"
        elif meant:
            hint = f"did you mean {' or '.join(meant)}?"
    message = "`sampling_strategy` must be `all`, or `first`, `end` or `random` with a number or a percentage"
    found = spell_value(value)
    return Problem(message, code="invalid-sampling-strategy", path=path, found=found, hint=hint)


def _amount(number: str, is_share: bool) -> str:
    return f"{say_number(float(number))}%" if is_share else str(whole(number))


def _wrong_kind(path: KeyPath, value: Value) -> Problem:
    wanted, given = wanted_at(path), kind_of(value)
    if isinstance(value, bool):
        given = spell_value(value)
    elif isinstance(value, float) and wanted == "a whole number":
        given = "a decimal number"
    message, hint = f"{_name(path)} needs {wanted}, not {given}", _kind_hint(path, value, wanted)
    return Problem(message, code="value-of-wrong-kind", path=path, found=spell_value(value), hint=hint)


def _kind_hint(path: KeyPath, value: Value, wanted: str) -> str | None:
    if path[-2:-1] == ("image_grid_pinpoints",):
        return "a pinpoint is `[width, height]` in pixels"
    if isinstance(value, str):
        return _string_hint(path, value, wanted)
    if wanted == "a whole number" and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}; a `.` is a decimal point, and thousands have no separator"
    if wanted == "true or false" and value in (0, 1) and isinstance(value, int):
        return f"write `{'true' if value else 'false'}`"
    if path[:1] == ("env",) and len(path) == 2:
        return "write the name of a variable: letters, digits and `_`, not starting with a digit"
    if path[-1:] == ("deepspeed",) and isinstance(value, int):
        return deepspeed_hint(spell_value(value))
    if wanted.startswith("a string") and isinstance(value, (int, float)):
        return "put it in quotes, exactly as it should be read"
    if wanted == "a list" and isinstance(value, Mapping):
        return "start the entry with `- `"
    if wanted == "a mapping" and isinstance(value, list):
        return "remove the `- ` before its keys"
    return None


def _string_hint(path: KeyPath, value: str, wanted: str) -> str | None:
    if "number" in wanted:
        return number_hint(path, value, wanted)
    if wanted == "true or false" and value.lower() in ("yes", "on", "y", "true", "no", "off", "n", "false"):
        return f"write `{'true' if value.lower() in ('yes', 'on', 'y', 'true') else 'false'}`, without quotes"
    if path[-1:] == ("trainable",) and value == "all":
        return "write `freeze: none` to train the whole model, without `trainable`"
    if wanted == "a list":
        is_list = value.strip().startswith("[")
        return f"write {value.strip()}, without quotes" if is_list else f"write `[{value}]`"
    if any(map(is_model, shapes_at(path))) and path[-1] in _SOURCES:
        return f"write `{path[-1]}: {{{_SOURCES[str(path[-1])]}: {value}}}`"
    return None


def unknown_key(path: KeyPath, value: Value) -> Problem:
    """The problem of a key that is not in the language, with where it belongs or what was probably meant."""
    key = str(path[-1])
    message, hint = f"unknown key `{key}` in {_name(path[:-1])}", _unknown_key_hint(key, path[:-1], value)
    return Problem(message, code="unknown-key", path=path, hint=hint, on_key=True)


def _unknown_key_hint(key: str, parent: KeyPath, value: Value) -> str:
    known = keys_at(parent)
    if same := [other for other in known if bare(other) == bare(key)]:
        return f"write `{same[0]}`"
    one_slip = [name for slips, name in ranked(key, known) if slips == 1]
    of_others = [hint for other, hint in OTHER_NAMES.items() if bare(other) == bare(key)]
    if of_others and not one_slip:
        return of_others[0]
    if _is_number(key) and value is None:
        return "a `,` starts a new entry here: write decimals after a `.`, and thousands without a separator"
    places = homes().get(key, ())
    if places:
        belongs = f"it belongs in {_spell_places(places)}"
        near = did_you_mean(key, known)
        return f"{belongs}; or {near}" if near else belongs
    if parent[-1:] == ("train",):
        entry = f"`extra: {{{key}: {spell_value(value, limit=40)}}}`"
        if key in EXTRA_FIELDS:
            return f"write {entry}: it is a field of TrainingArguments"
        if key in INSTEAD:
            return INSTEAD[key]
    return _near_miss(key, parent, known) or f"keys: {', '.join(known)}"


def _near_miss(key: str, parent: KeyPath, known: tuple[str, ...]) -> str | None:
    """The nearest keys: of this mapping, of other mappings, and of other programs."""
    here, elsewhere = set(known), homes()
    fields = EXTRA_FIELDS if parent[-1:] == ("train",) else {}
    # What is meant here may be farther from what is written than what would have to move as well.
    near = nearest_all(key, known)
    apart = dict.fromkeys((*elsewhere, *OTHER_NAMES, *fields))
    most = len(key) // _CHARACTERS_PER_SLIP
    far = [(slips, name) for slips, name in ranked(key, apart) if slips <= most and name not in here]
    least_here = min((slips for slips, name in ranked(key, known)), default=len(key))
    if far and far[0][0] < least_here:
        near = [*(name for slips, name in far if slips == far[0][0]), *near]
    if not near:
        return None
    if all(name in here for name in near):
        return f"did you mean {' or '.join(f'`{name}`' for name in near)}?"
    words = []
    for name in near[:_MOST_NAMED]:
        if name in here:
            words.append(f"did you mean `{name}`?")
        elif name in elsewhere:
            words.append(f"did you mean `{name}`, which belongs in {_spell_places(elsewhere[name])}?")
        elif name in fields:
            words.append(f"did you mean `extra: {{{name}: …}}`?")
        else:
            words.append(f"if you mean `{name}`: {OTHER_NAMES[name]}")
    return " Or: ".join(words)


def _is_number(key: str) -> bool:
    try:
        return isinstance(resolve_scalar(key), (int, float))
    except ScalarError:
        return False


def _spell_places(places: tuple[str, ...]) -> str:
    spelled = [f"`{place}`" if place else "the top level" for place in places]
    return spelled[0] if len(spelled) == 1 else f"{', '.join(spelled[:-1])} or {spelled[-1]}"
