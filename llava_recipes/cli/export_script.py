"""`llava-recipe export-script FILE`: a recipe as the original's shell command."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from llava_recipes.files import write_text
from llava_recipes.recipe.errors import Mark, Problem, RecipeError
from llava_recipes.screen import say_document


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the recipe")
    parser.add_argument(
        "--stage", metavar="NAME", help="write this stage alone; default: all, in their order"
    )
    parser.add_argument("-o", "--output", metavar="SCRIPT", help="write here; default: standard output")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    parser.add_argument(
        "--world-size",
        type=int,
        metavar="N",
        help="processes, where the recipe gives `global_batch_size`",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one value of the recipe"
    )


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.migrate.export import export_script
    from llava_recipes.recipe.load import load_recipe
    from llava_recipes.runner.facts import read_deepspeed_files

    loaded = load_recipe(arguments.file, arguments.set)
    names = [stage.name for stage in loaded.recipe.stages]
    if arguments.stage is not None and arguments.stage not in names:
        mark = Mark(f"--stage {arguments.stage}", 0, 0)
        raise RecipeError(
            Problem(
                "the recipe has no such stage",
                code="unknown-stage",
                mark=mark,
                hint=f"stages: {', '.join(names)}",
            )
        )
    wanted = range(len(names)) if arguments.stage is None else [names.index(arguments.stage)]
    if arguments.world_size is not None and arguments.world_size < 1:
        raise RecipeError(
            Problem("--world-size is 1 or more", code="option-out-of-range", found=str(arguments.world_size))
        )
    problems: list[Problem] = []
    files = read_deepspeed_files(loaded, problems)
    try:
        if problems:
            raise RecipeError(*problems)
        text = export_script(
            loaded.recipe,
            file=arguments.file,
            stages=wanted,
            world_size=arguments.world_size,
            deepspeed_files=files,
        )
    except RecipeError as error:
        raise loaded.fail(*error.problems) from None
    if arguments.output is None:
        say_document(text)
        return 0
    if os.path.exists(arguments.output) and not arguments.force:
        hint = "choose another name, or write over it with --force"
        raise RecipeError(
            Problem(
                "this file is there already", code="file-exists", mark=Mark(arguments.output, 0, 0), hint=hint
            )
        )
    try:
        write_text(Path(arguments.output), text)
    except OSError as error:
        raise RecipeError(
            Problem(
                "cannot be written",
                code="output-cannot-be-written",
                mark=Mark(arguments.output, 0, 0),
                found=error.strerror,
            )
        ) from None
    return 0
