"""Reading YAML: YAML 1.2 values, marks that point at the text, and limits that hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.errors import RecipeError
from llava_recipes.recipe.load import load_recipe
from llava_recipes.recipe.source import MAX_BYTES, MAX_DEPTH, decode, parse_source, parse_value, read_file


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1e-3", 0.001), ("2E5", 200000.0), (".5", 0.5), ("5.", 5.0), ("-1.5e+3", -1500.0),
        ("012", 12), ("+7", 7), ("-0", 0), ("0o14", 12), ("0x1F", 31),
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("Off", "Off"), ("y", "y"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("Null", None),
        ("2024-01-31", "2024-01-31"), ("1_000", "1_000"), ("0b11", "0b11"), ("1:30", "1:30"), ("-", "-x"),
        ("0x", "0x"), ("1e", "1e"), (".", "."), ("'12'", "12"), ('"true"', "true"), ("=", "="),
    ],
)  # fmt: skip
def test_words_mean_what_yaml_1_2_says(word: str, value: object) -> None:
    word = "-x" if word == "-" else word
    read = parse_value(f"key: {word}\n", "f").root
    assert isinstance(read, dict)
    assert read["key"] == value
    assert type(read["key"]) is type(value)


@pytest.mark.parametrize(
    "word", [".inf", "-.INF", ".nan", "1e999", "9" * 20, "1" * 10_000, "0x" + "F" * 17, "1e-" + "9" * 200]
)
def test_numbers_that_cannot_be_meant_are_problems(word: str) -> None:
    document = parse_value(f"key: {word}\n", "f")
    (problem,) = document.problems
    assert problem.mark is not None
    assert (problem.mark.line, problem.mark.column) == (1, 6)


def test_a_control_character_in_text_is_a_problem() -> None:
    assert "U+0000" in parse_value('key: "a\\0b"', "f").problems[0].message


def test_marks_point_at_keys_and_values() -> None:
    text = (
        "# top\nplain: one\nüñí: {in: [1, 'two', 🦙🦙]}\nlist:\n  - a: 1\n    b:\n  - c\r\nlong: |\n  text\n"
    )
    document = parse_value(text, "f")
    lines = text.replace("\r", "").split("\n")

    def shown(path: tuple[str | int, ...], *, on_key: bool = False) -> str:
        mark = document.locate(path, on_key=on_key)
        assert mark is not None
        assert mark.text == lines[mark.line - 1]
        return mark.text[mark.column - 1 : mark.column - 1 + mark.width]

    assert shown(("plain",), on_key=True) == "plain"
    assert shown(("plain",)) == "one"
    assert shown(("üñí",), on_key=True) == "üñí"
    assert shown(("üñí", "in", 1)) == "'two'"
    assert shown(("üñí", "in", 2)) == "🦙🦙"
    assert shown(("üñí", "in")) == "[1, 'two', 🦙🦙]"
    assert shown(("list",)) == "list"
    assert shown(("list", 0)) == "a"
    assert shown(("list", 0, "b")) == "b"
    assert shown(("list", 1)) == "c"
    assert shown(("long",)) == "|"
    # A path that is not there is shown at its nearest parent.
    assert shown(("üñí", "in", 7, "x")) == "[1, 'two', 🦙🦙]"


def test_an_alias_repeats_a_value_and_its_inner_marks() -> None:
    document = parse_value("a: &x {b: 1}\nc: *x\n", "f")
    assert document.root == {"a": {"b": 1}, "c": {"b": 1}}
    outer, inner = document.locate(("c",)), document.locate(("c", "b"))
    assert outer is not None and inner is not None
    assert (outer.line, inner.line) == (2, 1)


def test_all_duplicate_keys_are_reported_and_the_first_one_stays() -> None:
    document = parse_value("a: 1\nb: {c: 1, c: 2}\na: 3\n", "f")
    assert document.root == {"a": 1, "b": {"c": 1}}
    assert [problem.mark.line for problem in document.problems if problem.mark] == [2, 3]
    assert "first on line 1" in str(document.problems[1].found)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        "[" * 300_000,
        "{a: " * 100_000,
        "- " * 200_000,
        "? " * 200_000,
        "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 100)),
        "a0: &a0 x\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
        "a: [" + "1," * 60_000 + "]",
        "a: [" + "[1]," * 30_000 + "]",
        "a: &a [*a]",
    ],
    ids=lambda text: text[:12],
)
def test_limits_hold(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_source(text, "f")
    assert len(caught.value.problems) == 1


@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_an_error_of_the_user(data: bytes) -> None:
    try:
        parse_source(data, "f")
    except RecipeError as error:
        assert error.problems[0].mark is not None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**62), 2**62)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"])),
        lambda inner: st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abcdef_ é", min_size=1, max_size=8), inner, max_size=4),
        max_leaves=12,
    )
)  # fmt: skip
def test_what_is_written_is_read(value: object) -> None:
    """Values written as JSON, which YAML 1.2 contains."""
    text = json.dumps({"key": value}, ensure_ascii=False)
    assert parse_source(text, "f").root == {"key": value}


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_line_ends_and_a_byte_order_mark_change_nothing(ending: str) -> None:
    text = "a: 1\nb:\n  - c\n  - bad: .inf\n"
    document = parse_source(b"\xef\xbb\xbf" + text.replace("\n", ending).encode(), "f")
    assert isinstance(document.root, dict)
    assert document.root["a"] == 1
    mark = document.problems[0].mark
    assert mark is not None
    assert (mark.line, mark.column) == (4, 10)


@pytest.mark.parametrize(
    ("data", "place", "found"),
    [
        ("a: 1\n".encode("utf-16"), (0, 0), "UTF-16"),
        ("a: 1\n".encode("utf-32"), (0, 0), "UTF-32"),
        ("a: 1\nb: caf\xe9\n".encode("latin-1"), (2, 7), "byte 0xE9"),
        (b"a: 1\nb: \x00\n", (2, 4), "U+0000"),
        (b"a: \x1b[31mred\n", (1, 4), "U+001B"),
    ],
)
def test_other_encodings_are_reported(data: bytes, place: tuple[int, int], found: str) -> None:
    with pytest.raises(RecipeError) as caught:
        decode(data, "f")
    (problem,) = caught.value.problems
    assert problem.mark is not None
    assert (problem.mark.line, problem.mark.column) == place
    assert problem.found == found


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    for file in (str(tmp_path), str(tmp_path / "larg.yaml"), str(large), "nul\0.yaml", "x" * 5000):
        with pytest.raises(RecipeError) as caught:
            load_recipe(file)
        assert caught.value.problems[0].mark is not None
    with pytest.raises(RecipeError) as caught:
        read_file(str(tmp_path / "larg.yaml"))
    assert caught.value.problems[0].hint == f'did you mean "{large}"?'


def test_libyaml_is_there() -> None:
    """Messages of the gallery come from libyaml's errors; the wheels of PyYAML contain it."""
    assert hasattr(yaml, "CSafeLoader")
