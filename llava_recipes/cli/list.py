"""`llava-recipe list`: the recipes of the gallery, what each needs and what to expect."""

from __future__ import annotations

import argparse

from llava_recipes.screen import say, say_json, say_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="recipe or family to describe (default: all, a line each)",
    )
    parser.add_argument("--json", action="store_true", help="print all about the recipes as JSON")


def run(arguments: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from llava_recipes.authoring.gallery import families, find_all, gallery

    entries = [entry for name in arguments.names for entry in find_all(name)] or list(gallery())
    if arguments.json:
        say_json(json.dumps([asdict(entry) for entry in entries], indent=2, ensure_ascii=False, default=str))
        return 0
    if arguments.names:
        say_lines("\n\n".join(_shown(entry.name, entry.purpose, _rows(entry)) for entry in entries))
        say("")
    else:
        columns = ("name", "title", "machine", "duration")
        table = {
            family: [[str(getattr(entry, column)) or "–" for column in columns] for entry in members]
            for family, members in families().items()
        }
        say_lines(_table(table))
        say("", "`llava-recipe list NAME` describes a recipe or a family.")
    say("`llava-recipe copy NAME` copies one into this folder.")
    return 0


def _table(groups: dict[str, list[list[str]]]) -> str:
    """Rows in columns under the name of their group."""
    rows = [row for group in groups.values() for row in group]
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    blocks = []
    for name, group in groups.items():
        lines = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
            for row in group
        ]
        blocks.append("\n".join([name, *(f"  {line}" for line in lines)]))
    return "\n\n".join(blocks)


def _rows(entry: object) -> list[tuple[str, str]]:
    labels = ("family", "hardware", "expect", "needs", "data", "source")
    rows = [(label, str(getattr(entry, label))) for label in labels]
    return [(label, text) for label, text in rows if text]


def _shown(name: str, purpose: str, rows: list[tuple[str, str]]) -> str:
    import shutil
    import textwrap

    width = max(60, min(110, shutil.get_terminal_size().columns))
    lines = [name, *textwrap.wrap(purpose, width, initial_indent="  ", subsequent_indent="  ")]
    for label, text in rows:
        lines += textwrap.wrap(text, width, initial_indent=f"  {label:<10}", subsequent_indent=" " * 12)
    return "\n".join(lines)
