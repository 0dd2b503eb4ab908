"""A JSON file of somebody else's: what is wrong with it is said with its name, in a short line."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_recipes.errors import RecipeError
from llava_recipes.recipe.foreign import MOST_CHARACTERS, read_by_library, read_object


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", ":1:1: Expecting value"),
        (b'{"a": 1,', ":1:9: Expecting property name"),
        (b"\xff\xfe{}", "byte 0 is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": "\\ud800"}', "an unpaired surrogate"),
        (b'{"a": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
        (b"[]", "contains a list"),
        (b"null", "contains nothing"),
    ],
)
def test_a_damaged_file_is_named_with_the_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=r"^config\.json ") as error:
        read_object(file, path=("model",))
    (problem,) = error.value.problems
    assert problem.path == ("model",)
    assert problem.found is not None
    assert problem.found.startswith(str(file)) and reason in problem.found
    assert len(problem.found) < len(str(file)) + MOST_CHARACTERS + 10


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to("nowhere")
    for place in (tmp_path, tmp_path / "link.json"):
        with pytest.raises(RecipeError) as error:
            read_object(place)
        assert str(error.value.problems[0].found).startswith(f"{place}: ")


def test_whatever_a_library_raises_names_the_damaged_file(tmp_path: Path) -> None:
    sound, damaged = tmp_path / "sound.json", tmp_path / "damaged.json"
    sound.write_text("{}")
    damaged.write_text("{")
    for error in (Exception("x" * 10_000), AttributeError(), KeyError("type")):
        for files, expected in (([sound, damaged], str(damaged)), ([sound], str(sound))):
            with (
                pytest.raises(RecipeError, match="cannot be loaded") as caught,
                read_by_library("it cannot be loaded", code="test", files=files),
            ):
                raise error
            found = str(caught.value.problems[0].found)
            assert found.startswith(expected) and len(found) < len(expected) + MOST_CHARACTERS + 10


def test_our_own_problems_pass_through(tmp_path: Path) -> None:
    with (
        pytest.raises(RecipeError, match=r"must contain a mapping"),
        read_by_library("it failed", code="test"),
    ):
        (tmp_path / "a.json").write_text("1")
        read_object(tmp_path / "a.json")
