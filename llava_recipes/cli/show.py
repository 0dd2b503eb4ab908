"""`llava-recipe show FILE`: the recipe with its parents, variables, overrides and defaults written out."""

from __future__ import annotations

import argparse

from llava_recipes.cli.options import add_recipe
from llava_recipes.screen import say_document


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument(
        "--origin",
        action="store_true",
        help="add the origin of each value: file:line, --set or default, and the variables used",
    )


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.recipe.load import load_recipe
    from llava_recipes.recipe.writer import write_resolved, write_with_remarks

    loaded = load_recipe(arguments.file, arguments.set)
    if arguments.origin:
        say_document(write_with_remarks(loaded.recipe, loaded.origin))
    else:
        say_document(write_resolved(loaded.recipe))
    return 0
