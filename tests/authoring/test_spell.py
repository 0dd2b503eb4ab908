"""What is spelled reads back as the same value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.authoring.edit import block_lines
from llava_recipes.authoring.spell import spell, spell_number
from llava_recipes.recipe.scalars import Value
from llava_recipes.recipe.source import parse_value

WORDS = st.text(
    st.characters(
        codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="\x85\ufeff"
    ),
    max_size=20,
) | st.sampled_from(
    ["no", "1e-3", "null", "~", "a: b", "a #b", "- a", "*", "@x", "${data}/x", "x:y", " a", "012", "[a]", "?"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS
)
VALUES: st.SearchStrategy[Value] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(WORDS.filter(lambda key: key != "<<"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=VALUES)
def test_a_spelled_value_reads_back(value: Value) -> None:
    assert parse_value(f"key: {spell(value)}", "").root == {"key": value}


@given(value=VALUES)
def test_a_block_reads_back(value: Value) -> None:
    text = "\n".join(block_lines({"key": value}, ""))
    assert parse_value(text, "").root == {"key": value}


@pytest.mark.parametrize(
    ("number", "spelled"),
    [
        (1e-3, "1e-3"),
        (2e-5, "2e-5"),
        (1.5e-4, "1.5e-4"),
        (0.9, "0.9"),
        (0.03, "0.03"),
        (0.0, "0.0"),
        (1e10, "1e10"),
    ],
)
def test_numbers_are_spelled_as_people_do(number: float, spelled: str) -> None:
    assert spell_number(number) == spelled


def test_a_variable_needs_no_quotes_outside_brackets() -> None:
    assert spell("${data}/images") == "${data}/images"
    assert spell(["${data}/images"]) == '["${data}/images"]'
