"""Values that follow from known ones are those of bash: arithmetic, and commands about paths."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.migrate.shell_values import NotComputed, Spent, Variables, answer, compute
from tests.laws import examples
from tests.processes import run_process

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="compares with bash")

VARIABLES = {"A": "7", "B": "-3", "C": "A + 1", "Z": "0", "E": ""}
numbers = st.sampled_from(["0", "1", "8", "128", *VARIABLES])
signs = st.sampled_from(["+", "-", "*", "/", "%"])
expressions = st.recursive(
    numbers,
    lambda inner: (
        st.tuples(inner, signs, inner).map(" ".join)
        | st.tuples(st.just("("), inner, st.just(")")).map("".join)
        | st.tuples(st.sampled_from(["-", "+"]), inner).map(" ".join)
    ),
    max_leaves=6,
)


def variables(values: dict[str, str] = VARIABLES, folder: str | None = None) -> Variables:
    known = values if folder is None else {**values, "PWD": folder}
    return Variables("run.sh", (), dict(known), frozenset(), Spent())


def of_bash(script: str) -> str | None:
    """What bash prints; None where it stops."""
    done = run_process(["bash", "-c", script], cwd=Path(tempfile.gettempdir()))
    return done.stdout.removesuffix("\n") if done.returncode == 0 else None


@needs_bash
@examples(200)
@given(st.lists(expressions, min_size=1, max_size=8))
def test_arithmetic_is_that_of_bash(found: list[str]) -> None:
    values = "; ".join(f"{name}='{value}'" for name, value in VARIABLES.items())
    for expression in found:
        try:
            ours = str(compute(expression, variables()))
        except NotComputed:
            # What bash computes is refused only where a number is too large for it.
            assert of_bash(f"{values}; echo $(({expression}))") is None, expression
            continue
        assert ours == of_bash(f"{values}; echo $(({expression}))"), expression


@pytest.mark.parametrize(
    "expression",
    [
        *("1 / 0", "1 % Z", "RANDOM", "1 +", "(1", "1 2", "08", "a[0]", "A = 2", "A++", "--A", "1.5"),
        *("2 ** 3", "1 << 2", "A < 2", "A == 7", "A && 1", "!A", "A ? 1 : 2", "010", "0x1F"),
        str(2**62) + " * 4",
    ],
)
def test_what_has_no_value_or_is_not_read_says_why(expression: str) -> None:
    with pytest.raises(NotComputed, match=r"\w"):
        compute(expression, variables())


def test_a_variable_that_means_itself_ends() -> None:
    with pytest.raises(NotComputed, match="deeply"):
        compute("X", variables({"X": "X + 1"}))
    with pytest.raises(NotComputed, match="deeply"):
        compute("-(" * 100 + "1" + ")" * 100, variables())


PATHS = ["a", "a/b", "/a/b/", "/", "//", "a//b", "./a", "../a/b.sh", "a b/c d", "", ".", "..", "a/", "b.json"]


@needs_bash
@pytest.mark.parametrize("path", PATHS)
def test_names_of_files_are_those_of_the_shells_commands(path: str) -> None:
    for command in ("basename", "dirname", "realpath -m"):
        name, *options = command.split()
        ours = answer([name, *options, path], variables(folder="/"))
        if path or name != "realpath":
            assert ours == of_bash(f"cd / && {command} -- '{path}'"), command
    assert answer(["basename", path, ".json"], variables()) == of_bash(f"basename -- '{path}' .json")


@pytest.mark.parametrize(
    "words",
    [
        ["date"],
        ["echo", "-e", "a"],
        ["echo", "a\\nb"],
        ["pwd", "-x"],
        ["realpath", "a"],
        ["expr", "a", "+", "1"],
    ],
)
def test_other_commands_have_no_answer(words: list[str]) -> None:
    assert answer(words, variables()) is None
