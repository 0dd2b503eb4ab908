"""Recipes with random faults: a recipe or problems that point somewhere, never a traceback or silence."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_recipes.recipe.errors import Path as RecipePath
from llava_recipes.recipe.errors import RecipeError
from llava_recipes.recipe.extends import extend
from llava_recipes.recipe.load import load_source
from llava_recipes.recipe.render import render_problems
from llava_recipes.recipe.scalars import Value
from llava_recipes.recipe.shape import keys_at
from llava_recipes.recipe.source import parse_source

ROOT = Path(__file__).parent.parent.parent
# Each whole, with what it extends: a fault is then in the text that is loaded.
RECIPES = [
    yaml.safe_dump(extend(parse_source(file.read_bytes(), str(file))).root, sort_keys=False)
    for file in sorted((ROOT / "recipes").rglob("*.yaml"))
    if file.parent.name != "base"
]
JUNK: tuple[Value, ...] = (
    None, True, 0, -1, 2**62, 1e308, "", "x", "${x}", "${", "~", "all", "http://a/b", "\u202e", "9" * 300,
    [], [None], [[]], {}, {"x": {}}, {"source": 1}, [{"name": None}], "a" * 5000,
)  # fmt: skip


def _paths(value: Value, path: RecipePath = ()) -> list[RecipePath]:
    """Every path below a value."""
    inner: list[tuple[str | int, Value]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [found for key, child in inner for found in [(*path, key), *_paths(child, (*path, key))]]


def _parent(root: Value, path: RecipePath) -> tuple[dict[str | int, Value], str | int]:
    for segment in path[:-1]:
        root = root[segment]  # type: ignore[index]
    return root, path[-1]  # type: ignore[return-value]


def _check(text: str) -> None:
    try:
        load_source(text, "f.yaml", ())
    except RecipeError as error:
        assert error.problems
        assert all(problem.mark is not None for problem in error.problems)
        printed = render_problems(error.problems)
        assert all(block.startswith("f.yaml:") for block in printed.split("\n\n"))
        assert "Input should" not in printed


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(RECIPES),
    st.lists(st.tuples(st.randoms(use_true_random=False), st.sampled_from(JUNK)), min_size=1, max_size=4),
)
def test_values_exchanged_for_junk(text: str, faults: list[tuple[random.Random, Value]]) -> None:
    root = parse_source(text, "f.yaml").root
    for chance, junk in faults:
        places = _paths(root)
        if not places:
            break
        parent, key = _parent(root, chance.choice(places))
        if chance.random() < 0.3:
            del parent[key]
        else:
            parent[key] = copy.deepcopy(junk)
    _check(yaml.safe_dump(root, allow_unicode=True))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(RECIPES), st.randoms(use_true_random=False), st.text(max_size=3))
def test_text_with_letters_exchanged(text: str, chance: random.Random, junk: str) -> None:
    place = chance.randrange(len(text))
    _check(text[:place] + junk + text[place + chance.randrange(3) :])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(RECIPES), st.randoms(use_true_random=False))
def test_a_misspelt_key_is_never_passed_over(text: str, chance: random.Random) -> None:
    root = parse_source(text, "f.yaml").root
    # Keys of the language; those of inline configs are Hugging Face's, and checked by it.
    path = chance.choice([path for path in _paths(root) if path[-1] in keys_at(path[:-1])])
    key = str(path[-1])
    place = chance.randrange(len(key))
    slip = chance.choice([key[:place] + key[place + 1 :], key[:place] + "q" + key[place:], key + "s"])
    parent, _ = _parent(root, path)
    if slip in keys_at(path[:-1]):
        return
    parent[slip] = parent.pop(key)
    try:
        load_source(yaml.safe_dump(root, allow_unicode=True), "f.yaml", ())
    except RecipeError as error:
        assert any(f"unknown key `{slip}`" in problem.message or not slip for problem in error.problems)
    else:
        raise AssertionError(f"{slip} was passed over")
