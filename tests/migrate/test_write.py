"""What is written as YAML reads back as the same values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.migrate.write import write_recipe, write_scalar
from llava_recipes.recipe.errors import KeyPath
from llava_recipes.recipe.scalars import Value
from llava_recipes.recipe.source import parse_value

letters = st.characters(
    codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co"), exclude_characters="\ufeff"
)
texts = st.text(letters, max_size=12) | st.sampled_from(
    ["", "no", "1e3", "0x1F", "null", "a: b", "# a", "- a", "~"]
)
plain = texts.filter(lambda text: "${" not in text)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False, width=64)
scalars = st.none() | st.booleans() | numbers | plain
keys = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda key: key not in ("null", "true", "false", "no", "yes", "on", "off", "y", "n")
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(scalars, max_size=3)
        | st.dictionaries(keys, inner, max_size=3)
        | st.lists(st.dictionaries(keys, inner, max_size=3), min_size=1, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(keys, trees, min_size=1, max_size=4))
def test_values_read_back(values: dict[str, Value]) -> None:
    comments: dict[KeyPath, str] = {(key,): "a: comment" for key in values}
    assert parse_value(write_recipe(values, comments, "one\ntwo"), "x.yaml").root == values


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1e-3, "1e-3"),
        (2e-5, "2e-5"),
        (0.03, "0.03"),
        (0.0, "0.0"),
        (1.5e20, "1.5e20"),
        ("no", '"no"'),
        ("lmsys/vicuna-7b-v1.5", "lmsys/vicuna-7b-v1.5"),
        ("./out/a b", "./out/a b"),
        ("${HOME}", '"$${HOME}"'),
        ("007", '"007"'),
        (True, "true"),
        (None, "null"),
    ],
)
def test_values_are_written_as_a_person_would(value: bool | float | str | None, written: str) -> None:
    assert write_scalar(value) == written
