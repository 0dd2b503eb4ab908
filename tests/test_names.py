"""One name, one meaning: no public class twice in the package, no file name for two subjects."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from pathlib import Path

import llava_recipes

PACKAGE = Path(llava_recipes.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

IN_EVERY_ROOM = {"__init__.py", "__main__.py"}
COMMANDS = PACKAGE / "cli"
"""A command's file has the command's name, whatever else is called so."""


def test_there_is_something_to_look_at() -> None:
    assert len(MODULES) > 100


def test_no_public_class_name_stands_for_two_classes() -> None:
    places = defaultdict(list)
    for module in MODULES:
        for node in ast.parse(module.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(module.relative_to(PACKAGE)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_no_file_name_stands_for_two_subjects() -> None:
    names = Counter(
        module.name for module in MODULES if module.parent != COMMANDS and module.name not in IN_EVERY_ROOM
    )
    assert [name for name, number in names.items() if number > 1] == []
