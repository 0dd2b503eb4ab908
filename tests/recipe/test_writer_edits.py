"""An edit changes its value and nothing else."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.authoring.new_recipe import TEMPLATES, template_text
from llava_recipes.errors import KeyPath
from llava_recipes.recipe.scalars import Value
from llava_recipes.recipe.source import parse_source
from llava_recipes.recipe.writer import remove_key, set_value, value_text
from tests.laws import examples

TEXTS = {name: template_text(name) for name in TEMPLATES}


def _root(text: str) -> dict[str, Value]:
    root = parse_source(text, "").root
    assert isinstance(root, dict)
    return root


def _paths(value: Value, path: KeyPath = ()) -> list[KeyPath]:
    inner: list[KeyPath] = []
    if isinstance(value, dict):
        inner = [found for key, entry in value.items() for found in _paths(entry, (*path, key))]
    elif isinstance(value, list):
        inner = [found for index, entry in enumerate(value) for found in _paths(entry, (*path, index))]
    return [path, *inner] if path else inner


def _with(root: dict[str, Value], path: KeyPath, value: Value) -> dict[str, Value]:
    """The same edit on plain values."""
    changed = copy.deepcopy(root)
    place: Value = changed
    for segment in path[:-1]:
        assert isinstance(place, (dict, list))
        place = place[segment]  # type: ignore[index]
    assert isinstance(place, (dict, list))
    place[path[-1]] = value  # type: ignore[index]
    return changed


def _comments(text: str) -> list[str]:
    return [line.partition("#")[2] for line in text.splitlines() if line.lstrip().startswith("#")]


VALUES: st.SearchStrategy[Value] = st.sampled_from(
    [
        "./a folder/x",
        "no",
        5,
        1e-3,
        True,
        ["a", "b.{1..2}"],
        {"source": "x"},
        {"a": {"b": [1]}},
        [{"a": 1, "b": 2}],
    ]
)


@examples(200)
@given(name=st.sampled_from(sorted(TEXTS)), value=VALUES, data=st.data())
def test_a_value_is_replaced_and_nothing_else(name: str, value: Value, data: st.DataObject) -> None:
    before = _root(TEXTS[name])
    path = data.draw(st.sampled_from(_paths(before)))
    after = set_value(TEXTS[name], path, value)
    assert _root(after) == _with(before, path, value)
    assert _comments(after) == _comments(TEXTS[name])


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_a_new_key_is_added_with_its_parents(name: str) -> None:
    before = _root(TEXTS[name])
    text = set_value(TEXTS[name], ("stages", 0, "train", "extra", "ddp_timeout"), 60)
    text = set_value(text, ("stages", 0, "train", "extra", "debug"), "x")
    train = before["stages"][0]["train"]  # type: ignore[index,call-overload]
    train["extra"] = {"ddp_timeout": 60, "debug": "x"}  # type: ignore[index,call-overload]
    assert _root(text) == before


def test_a_key_is_added_in_brackets() -> None:
    assert set_value("a: {b: 1}  # c\n", ("a", "d"), 2) == "a: {b: 1, d: 2}  # c\n"
    assert set_value("a: {}\n", ("a", "d"), "x, y") == 'a: {d: "x, y"}\n'


def test_comments_stay_in_their_column() -> None:
    text = "rate: 1e-3    # peak\nlong: abcdef  # word\n"
    text = set_value(text, ("rate",), 1.5e-4)
    assert text == "rate: 1.5e-4  # peak\nlong: abcdef  # word\n"
    assert set_value(text, ("long",), "much longer than before").endswith("before # word\n")


def test_a_key_is_removed_with_its_lines() -> None:
    text = "a:\n  b: 1\n  c:\n    d: 2  # remark\n  # comment\ne: 3\n"
    assert remove_key(text, ("a", "c")) == "a:\n  b: 1\n  # comment\ne: 3\n"
    assert remove_key(text, ("a", "x")) == text


def test_an_entry_that_is_not_there() -> None:
    with pytest.raises(LookupError):
        set_value("a: [1]\n", ("a", 4), 2)


def test_scalars_are_read_as_they_are_written() -> None:
    assert value_text("a: {b: 1e-3}\n", ("a", "b")) == "1e-3"
    assert value_text("a: {b: 1e-3}\n", ("a",)) is None
    assert value_text("a: {b: 1e-3}\n", ("c",)) is None
