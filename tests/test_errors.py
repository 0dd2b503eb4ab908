"""A problem is whole wherever it goes, and its kind has a name."""

from __future__ import annotations

import ast
import json
import pathlib
import re

import pytest

import llava_recipes
from llava_recipes.errors import Mark, Problem, SampleError

PACKAGE = pathlib.Path(llava_recipes.__file__).parent
WHOLE = Problem(
    "too large",
    code="value-too-large",
    path=("stages", 0, "train"),
    mark=Mark("a.yaml", 3, 4, 5, text="key: value", row=None),
    found="9",
    hint="write 8",
    on_key=True,
    is_secret=True,
    severity="warning",
)


@pytest.mark.parametrize("problem", [WHOLE, Problem("plain", code="plain")])
def test_json_keeps_all_of_a_problem(problem: Problem) -> None:
    again = Problem.from_json(json.loads(json.dumps(problem.to_json())))
    assert again == problem
    assert (again.mark and again.mark.text) == (problem.mark and problem.mark.text)


def test_a_sample_error_keeps_all_of_its_problems() -> None:
    """torch makes a loader's exception again from the text of its traceback."""
    other = Problem("too large", code="value-too-large", found="10")
    assert SampleError(f"Traceback …\n{SampleError(WHOLE, other)}\n").problems == (WHOLE, other)


def test_every_problem_of_the_package_has_a_code() -> None:
    """A literal in kebab case, or one that was passed on."""
    num_codes, odd = 0, []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            for code in (keyword.value for keyword in node.keywords if keyword.arg == "code"):
                num_codes += 1
                literals = [each for each in ast.walk(code) if isinstance(each, ast.Constant)]
                names = [str(each.value) for each in literals if isinstance(each.value, str)]
                if not isinstance(code, (ast.Name, ast.Attribute, ast.Constant, ast.IfExp)) or not all(
                    re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names
                ):
                    odd.append(f"{file.relative_to(PACKAGE)}:{node.lineno}")
    assert num_codes > 300
    assert odd == []
