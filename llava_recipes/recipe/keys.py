"""What was meant by a key that the recipe language does not know."""

from __future__ import annotations

from llava_recipes.recipe.errors import Path, Problem
from llava_recipes.recipe.renames import OTHER_NAMES
from llava_recipes.recipe.scalars import Value, spell_value
from llava_recipes.recipe.shape import homes, keys_at, spell_path
from llava_recipes.recipe.spelling import nearest


def unknown_key(path: Path, value: Value) -> Problem:
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


def _hint(key: str, parent: Path, value: Value) -> str:
    known = keys_at(parent)
    near = nearest(key, known)
    if near and _bare(near) == _bare(key):
        return f"write `{near}`"
    if key in OTHER_NAMES:
        return OTHER_NAMES[key]
    places = homes().get(key, ())
    if near and not places:
        return f"did you mean `{near}`?"
    if places:
        belongs = f"it belongs in {_spell_places(places)}"
        return f"{belongs}; or did you mean `{near}`?" if near else belongs
    elsewhere = nearest(key, homes())
    if elsewhere:
        return f"did you mean `{elsewhere}`, which belongs in {_spell_places(homes()[elsewhere])}?"
    if parent[-1:] == ("train",):
        entry = f"{key}: {spell_value(value, limit=40)}"
        return f"another TrainingArguments field is written `extra: {{{entry}}}`"
    return f"keys: {', '.join(known)}"


def _spell_places(places: tuple[str, ...]) -> str:
    spelled = [f"`{place}`" if place else "the top level" for place in places]
    return spelled[0] if len(spelled) == 1 else f"{', '.join(spelled[:-1])} or {spelled[-1]}"


def _place_name(parent: Path) -> str:
    if isinstance(parent[-1], int):
        return spell_path(parent[-2:])
    return str(parent[-1])


def _bare(key: str) -> str:
    return key.replace("-", "").replace("_", "").lower()
