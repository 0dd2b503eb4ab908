"""What is spelled reads back as the same value."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.errors import KeyPath
from llava_recipes.recipe.scalars import Value, say_number, spell, spell_number, spell_value
from llava_recipes.recipe.source import parse_value
from llava_recipes.recipe.writer import block_lines, write_recipe, write_values

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
    if isinstance(value, str):
        assert yaml.safe_load(spell(value)) == value


@given(value=VALUES, short_lists=st.booleans())
def test_a_block_reads_back(value: Value, short_lists: bool) -> None:
    text = "\n".join(block_lines({"key": value}, short_lists=short_lists))
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
        (-5e-4, "-5e-4"),
        (1.0, "1.0"),
        (1e-323, "1e-323"),
    ],
)
def test_numbers_are_spelled_as_people_do(number: float, spelled: str) -> None:
    assert spell_number(number) == spelled
    assert spell_value({"lr": number}) == f"{{lr: {spelled}}}"
    assert write_recipe({"lr": number}, {}, "")[2:] == f"lr: {spelled}\n"


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_no_digit_of_a_number_is_lost(number: float) -> None:
    assert float(spell_number(number)) == number


def test_a_sentence_has_six_digits_of_a_number() -> None:
    said = {say_number(number) for number in (1.0, 2e-5, 7.1 / 100, 1 / 3)}
    assert said == {"1", "2e-5", "0.071", "0.333333"}


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("no", '"no"'),
        ("Yes", '"Yes"'),
        ("lmsys/vicuna-7b-v1.5", "lmsys/vicuna-7b-v1.5"),
        ("./out/a b", "./out/a b"),
        ("007", '"007"'),
        ("2020-01-01", '"2020-01-01"'),
        ("12:30:45", '"12:30:45"'),
    ],
)
def test_texts_are_quoted_where_a_reader_of_yaml_would_read_something_else(text: str, written: str) -> None:
    assert spell(text) == written
    assert parse_value(written, "").root == yaml.safe_load(written) == text


def test_a_variable_needs_no_quotes_outside_brackets() -> None:
    assert spell("${data}/images") == "${data}/images"
    assert spell(["${data}/images"]) == '["${data}/images"]'


@given(value=VALUES)
def test_a_recipe_reads_back_with_nothing_read_as_a_variable(value: Value) -> None:
    values: dict[str, Value] = {"name": value, "model": {"source": value}, "stages": [{"train": value}]}
    comments: dict[KeyPath, str] = {(key,): "a: comment" for key in values}
    text = write_recipe(values, comments, "one\ntwo")
    assert text.startswith("# one\n# two\n")
    assert text.count("  # a: comment\n") == 3
    assert parse_value(text, "").root == _escaped(values)


def _escaped(value: Value) -> Value:
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    return [_escaped(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("number", [2e-5, 1e-3, 1.5e-7, 1e16, 0.03, 3.0])
def test_what_programs_read_is_a_number_in_yaml_1_1_too(number: float) -> None:
    """PyYAML and others read `2e-5` as a string: a script over a run folder would break quietly."""
    assert yaml.safe_load(write_values({"rate": number, "rates": [number]})) == {
        "rate": number,
        "rates": [number],
    }
