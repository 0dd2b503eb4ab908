"""`llava-recipe explain KEY`: type, default, meaning, source and an example of a key."""

from __future__ import annotations

import argparse

from llava_recipes.screen import say, say_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "keys",
        nargs="*",
        metavar="KEY",
        help="such as train.learning_rate, learning_rate or stages (default: the top level)",
    )


def run(arguments: argparse.Namespace) -> int:
    import shutil

    from llava_recipes.authoring.explanation import explain_key, find_keys, overview
    from llava_recipes.recipe.keys import all_keys

    width = max(60, min(110, shutil.get_terminal_size().columns))
    if not arguments.keys:
        say("A recipe is one YAML file. Its keys:", "")
        say_lines("\n".join(overview([key for key in all_keys() if "." not in key.path], width=width)))
        say("", "`llava-recipe explain KEY` explains one, such as `train`.")
        return 0
    found = [key for query in arguments.keys for key in find_keys(query)]
    say_lines(f"\n\n{'-' * 40}\n\n".join(explain_key(key, width=width) for key in found))
    return 0
