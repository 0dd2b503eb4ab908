"""`llava-recipe export-script FILE`: write a recipe as a shell command of the original LLaVA."""

from __future__ import annotations

import argparse
from pathlib import Path

from llava_recipes.cli.options import add_new_file, add_recipe, add_world_size
from llava_recipes.errors import Problem, RecipeError
from llava_recipes.files import write_new
from llava_recipes.screen import say_document


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument("--stage", metavar="NAME", help="write only this stage (default: all, in order)")
    add_new_file(parser, metavar="SCRIPT", default="standard output")
    add_world_size(parser, help="number of processes, needed if the recipe sets `global_batch_size`")


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.migrate.export_script import export_script
    from llava_recipes.recipe.load import load_recipe
    from llava_recipes.runner.facts import choose_stages, read_deepspeed_files

    loaded = load_recipe(arguments.file, arguments.set)
    stages = choose_stages(loaded, names=() if arguments.stage is None else (arguments.stage,))
    problems: list[Problem] = []
    files = read_deepspeed_files(loaded, problems)
    try:
        if problems:
            raise RecipeError(*problems)
        text = export_script(
            loaded.recipe,
            file=arguments.file,
            stages=stages,
            world_size=arguments.world_size,
            deepspeed_files=files,
        )
    except RecipeError as error:
        raise loaded.fail(*error.problems) from None
    if arguments.output is None:
        say_document(text)
    else:
        write_new(Path(arguments.output), text, force=arguments.force)
    return 0
