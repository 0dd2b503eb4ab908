"""`llava-recipe show FILE`: the recipe with its parents, variables, overrides and defaults written out."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the recipe")
    parser.add_argument(
        "--origin",
        action="store_true",
        help="behind each value, where it comes from: file:line, --set or default, and variables used",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one value of the recipe"
    )


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.recipe.load import load_recipe
    from llava_recipes.recipe.origin import origin
    from llava_recipes.recipe.written import write_resolved, write_with_remarks

    loaded = load_recipe(arguments.file, arguments.set)
    if arguments.origin:
        print(write_with_remarks(loaded.recipe, lambda path: origin(loaded, path)), end="")
    else:
        print(write_resolved(loaded.recipe), end="")
    return 0
