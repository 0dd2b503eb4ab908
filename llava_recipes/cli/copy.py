"""`llava-recipe copy NAME`: copy a recipe of the gallery, with its parents, into one file."""

from __future__ import annotations

import argparse

from llava_recipes.cli.options import add_new_file
from llava_recipes.screen import say, say_document


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="recipe as named by `llava-recipe list`")
    add_new_file(parser, default="NAME.yaml; - for standard output")


def run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from llava_recipes.authoring.copying import copied_text
    from llava_recipes.authoring.gallery import find
    from llava_recipes.files import write_new

    entry = find(arguments.name)
    to_stdout = arguments.output == "-"
    output = Path(f"{entry.file.stem}.yaml" if to_stdout or not arguments.output else arguments.output)
    text = copied_text(entry, output)
    if to_stdout:
        say_document(text)
        return 0
    write_new(output, text, force=arguments.force)
    say(f"wrote    {output}", f"next     llava-recipe plan {output}")
    return 0
