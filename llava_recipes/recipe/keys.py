"""What was meant by a key that the recipe language does not know."""

from __future__ import annotations

from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.language import homes, keys_at, spell_path
from llava_recipes.recipe.renames import OTHER_NAMES
from llava_recipes.recipe.scalars import ScalarError, Value, resolve_scalar, spell_value
from llava_recipes.recipe.spelling import bare, did_you_mean, nearest_all, ranked
from llava_recipes.recipe.training_fields import EXTRA_FIELDS, INSTEAD

_LETTERS_A_SLIP = 8
"""A key that belongs elsewhere is suggested for one slip in as many letters: short words are near to much."""
_MOST_NAMED = 2


def unknown_key(path: KeyPath, value: Value) -> Problem:
    """The problem of a key that nobody reads, with where it belongs or what it should be called."""
    key = str(path[-1])
    place = f"`{_place_name(path[:-1])}`" if len(path) > 1 else "the recipe"
    return Problem(
        f"unknown key `{key}` in {place}",
        code="unknown-key",
        path=path,
        hint=_hint(key, path[:-1], value),
        on_key=True,
    )


def _hint(key: str, parent: KeyPath, value: Value) -> str:
    known = keys_at(parent)
    if same := [other for other in known if bare(other) == bare(key)]:
        return f"write `{same[0]}`"
    one_slip = [name for slips, name in ranked(key, known) if slips == 1]
    if (hint := _other_name(key)) is not None and not one_slip:
        return hint
    if _is_number(key) and value is None:
        return "a `,` starts a new entry here: decimals follow a `.`, and thousands take no separator"
    places = homes().get(key, ())
    if places:
        belongs = f"it belongs in {_spell_places(places)}"
        near = did_you_mean(key, known)
        return f"{belongs}; or {near}" if near else belongs
    if parent[-1:] == ("train",):
        entry = f"`extra: {{{key}: {spell_value(value, limit=40)}}}`"
        if key in EXTRA_FIELDS:
            return f"another TrainingArguments field is written {entry}"
        if key in INSTEAD:
            return INSTEAD[key]
    return _near_miss(key, parent, known) or f"keys: {', '.join(known)}"


def _near_miss(key: str, parent: KeyPath, known: tuple[str, ...]) -> str | None:
    """The nearest keys: those of this mapping, of others, and those that other programs have."""
    here, elsewhere = set(known), homes()
    fields = EXTRA_FIELDS if parent[-1:] == ("train",) else {}
    # What is meant here may be farther from what is written than what would have to move as well.
    near = nearest_all(key, known)
    apart = dict.fromkeys((*elsewhere, *OTHER_NAMES, *fields))
    most = len(key) // _LETTERS_A_SLIP
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
            words.append(f"if `{name}` is meant: {OTHER_NAMES[name]}")
    return " Or: ".join(words)


def _other_name(key: str) -> str | None:
    """What to write for a name that another program has for a key."""
    return next((hint for other, hint in OTHER_NAMES.items() if bare(other) == bare(key)), None)


def _is_number(key: str) -> bool:
    try:
        return isinstance(resolve_scalar(key), (int, float))
    except ScalarError:
        return False


def _spell_places(places: tuple[str, ...]) -> str:
    spelled = [f"`{place}`" if place else "the top level" for place in places]
    return spelled[0] if len(spelled) == 1 else f"{', '.join(spelled[:-1])} or {spelled[-1]}"


def _place_name(parent: KeyPath) -> str:
    if isinstance(parent[-1], int):
        return spell_path(parent[-2:])
    return str(parent[-1])
