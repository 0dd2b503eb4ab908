"""`llava-recipe list`: the recipes of the gallery, with what each needs and what to expect of it."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="everything that the heads of the recipes say")


def run(arguments: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from llava_recipes.authoring.gallery import gallery

    entries = gallery()
    if arguments.json:
        print(json.dumps([asdict(entry) for entry in entries], indent=2, ensure_ascii=False, default=str))
        return 0
    print("\n\n".join(_shown(entry.name, entry.purpose, _rows(entry)) for entry in entries))
    print("\n`llava-recipe copy NAME` writes one into this folder.")
    return 0


def _rows(entry: object) -> list[tuple[str, str]]:
    labels = ("hardware", "time", "loss")
    return [(label, str(getattr(entry, label)) or "not stated") for label in labels]


def _shown(name: str, purpose: str, rows: list[tuple[str, str]]) -> str:
    import shutil
    import textwrap

    width = max(60, min(110, shutil.get_terminal_size().columns))
    lines = [name, *textwrap.wrap(purpose, width, initial_indent="  ", subsequent_indent="  ")]
    for label, text in rows:
        lines += textwrap.wrap(text, width, initial_indent=f"  {label:<10}", subsequent_indent=" " * 12)
    return "\n".join(lines)
