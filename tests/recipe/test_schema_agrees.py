"""The JSON Schema, as another validator reads it, against the code: editors see the errors that we see."""

from __future__ import annotations

import copy
import functools
import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.validators import extend as extend_validator
from pydantic import ValidationError

from llava_recipes.errors import RecipeError
from llava_recipes.recipe.extends import extend
from llava_recipes.recipe.json_schema import recipe_schema
from llava_recipes.recipe.override import resolve
from llava_recipes.recipe.rules import check_rules
from llava_recipes.recipe.scalars import Value
from llava_recipes.recipe.schema import Recipe
from llava_recipes.recipe.source import parse_source
from tests.laws import examples
from tests.recipe.test_fuzz import JUNK, NUMBERS, ROOTS, _parent, _paths

ROOT = Path(__file__).parent.parent.parent
# An editor lets `${name}` stand anywhere, since it does not know what the variable holds.
PLAIN_JUNK = [junk for junk in (*JUNK, *NUMBERS) if "${" not in json.dumps(junk)]
BAD_RECIPES = sorted((ROOT / "tests" / "errors").glob("*.yaml"))


@functools.cache
def _validator() -> Draft202012Validator:
    # JSON has one kind of number: for JSON Schema 1.0 is a whole one. YAML distinguishes them, and so do we.
    whole = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    strict = extend_validator(Draft202012Validator, type_checker=whole)
    validator: Draft202012Validator = strict(recipe_schema())
    return validator


def _refused_by_the_code(values: Value) -> str | None:
    try:
        Recipe.model_validate_json(json.dumps(values))
    except ValidationError as error:
        return str(error)
    # Pydantic takes `true` for 1, and a rule does not.
    versions = [problem.message for problem in check_rules(values) if problem.path == ("version",)]
    return versions[0] if versions else None


def _agree(values: Value) -> bool:
    """Both refuse, or both accept; true where they refuse."""
    reason = _refused_by_the_code(values)
    faults = [fault.message for fault in _validator().iter_errors(values)]
    assert bool(faults) == (reason is not None), (reason, faults)
    return bool(faults)


def _resolved(file: Path) -> Value | None:
    """The recipe's values with its variables filled in; None where YAML or a variable stops it before."""
    try:
        return resolve(extend(parse_source(file.read_bytes(), str(file))), ()).root
    except RecipeError:
        return None


@pytest.mark.parametrize("file", BAD_RECIPES, ids=lambda file: file.stem)
def test_bad_recipes(file: Path) -> None:
    values = _resolved(file)
    if values is not None:
        refused = _agree(values)
        # These are named for errors of shape; the others are rules between keys, or of YAML.
        if file.stem.startswith(("key_", "value_")):
            assert refused


def test_most_bad_recipes_get_so_far() -> None:
    assert sum(_resolved(file) is not None for file in BAD_RECIPES) > 80


@examples(400, but=(HealthCheck.too_slow,))
@given(
    st.sampled_from(ROOTS),
    st.lists(
        st.tuples(st.randoms(use_true_random=False), st.sampled_from(PLAIN_JUNK)),
        min_size=1,
        max_size=3,
    ),
)
def test_recipes_with_junk(root: Value, faults: list[tuple[random.Random, Value]]) -> None:
    root = copy.deepcopy(root)
    for chance, junk in faults:
        places = _paths(root)
        if places:
            parent, key = _parent(root, chance.choice(places))
            if chance.random() < 0.2:
                parent[f"{key}s" if isinstance(parent, dict) else key] = copy.deepcopy(junk)
            else:
                parent[key] = copy.deepcopy(junk)
    _agree(root)
