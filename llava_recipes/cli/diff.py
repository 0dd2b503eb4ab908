"""`llava-recipe diff A B`: compare two recipes by their plans."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from llava_recipes.cli.options import add_set, add_world_size, world_size_of
from llava_recipes.screen import cell, console, is_terminal, say, say_json

if TYPE_CHECKING:
    from pydantic import JsonValue

    from llava_recipes.plan.compare import Difference

SAME, DIFFERENT = 0, 1

_ABSENT = "–"
_WIDEST_VALUE = 48
_LONGEST_VALUE = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The exit code is 0 if both mean the same, 1 if they differ or one is invalid. Names of recipes and "
        "stages are not compared."
    )
    parser.add_argument("a", metavar="A", help="recipe file")
    parser.add_argument("b", metavar="B", help="recipe file to compare with")
    add_world_size(parser)
    parser.add_argument("--json", action="store_true", help="print the differences as JSON")
    add_set(parser, what="override a value of both recipes; may be repeated")


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.plan.compare import compare
    from llava_recipes.recipe.load import load_recipe
    from llava_recipes.runner.facts import plan_recipe

    world_size = world_size_of(arguments)
    a, b = (
        plan_recipe(load_recipe(file, arguments.set), world_size=world_size)
        for file in (arguments.a, arguments.b)
    )
    differences = compare(a, b)
    if arguments.json:
        say_json(_as_json(differences, a=arguments.a, b=arguments.b, world_size=world_size))
    elif differences:
        _show([("", arguments.a, arguments.b), *_rows(differences)])
    else:
        processes = "1 process" if world_size == 1 else f"{world_size} processes"
        say(f"{arguments.a} and {arguments.b} mean the same on {processes}")
    return DIFFERENT if differences else SAME


def _as_json(differences: Sequence[Difference], *, a: str, b: str, world_size: int) -> str:
    """The differences for a program; a side without the path has no key."""
    entries = [
        {"path": found.path} | ({"a": found.a} if found.in_a else {}) | ({"b": found.b} if found.in_b else {})
        for found in differences
    ]
    report = {"equal": not entries, "a": a, "b": b, "world_size": world_size, "differences": entries}
    return json.dumps(report, indent=2, ensure_ascii=False)


def _rows(differences: Sequence[Difference]) -> Iterator[tuple[str, str, str]]:
    for found in differences:
        yield (
            found.path,
            _spell(found.a) if found.in_a else _ABSENT,
            _spell(found.b) if found.in_b else _ABSENT,
        )


def _spell(value: JsonValue) -> str:
    from llava_recipes.recipe.scalars import spell_value

    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) and value else spell_value(value, limit=_LONGEST_VALUE)


def _show(rows: Sequence[tuple[str, str, str]]) -> None:
    """Print a table that fits the terminal, or plain lines elsewhere."""
    if is_terminal(sys.stdout):
        _show_sections(rows)
        return
    width = max(len(path) for path, _, _ in rows)
    value_width = min(max(len(a) for _, a, _ in rows), _WIDEST_VALUE)
    say(*(f"{path:<{width}}  {a:<{value_width}}  {b}" for path, a, b in rows))


def _show_sections(rows: Sequence[tuple[str, str, str]]) -> None:
    """Print the rows under the paths that they share, long values folded inside their columns."""
    from rich.table import Table

    screen = console()
    widest = max(len(path.rpartition(".")[2]) for path, _, _ in rows)
    title, *differences = rows
    for section, inside in groupby([("", *title), *(_split(row) for row in differences)], key=itemgetter(0)):
        table = Table(box=None, show_header=False, expand=True, padding=(0, 2, 0, 0))
        table.add_column(width=widest + 2, no_wrap=True, style="cyan")
        table.add_column(ratio=1, overflow="fold")
        table.add_column(ratio=1, overflow="fold")
        for _, name, a, b in inside:
            table.add_row(cell(f"  {name}" if name else ""), cell(a), cell(b))
        if section:
            screen.print(cell(section, style="bold"))
        screen.print(table)


def _split(row: tuple[str, str, str]) -> tuple[str, str, str, str]:
    section, _, name = row[0].rpartition(".")
    return (section, name, *row[1:])
