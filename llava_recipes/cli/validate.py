"""`llava-recipe validate FILE…`: tell every problem of every file, without loading anything heavy."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Iterator, Sequence

from llava_recipes.recipe.errors import Problem, RecipeError
from llava_recipes.recipe.load import load_recipe
from llava_recipes.recipe.render import render_problems


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="recipe file, or a glob of recipe files")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one value, for example stages.pretrain.train.max_steps=5",
    )


def run(arguments: argparse.Namespace) -> int:
    num_bad = 0
    for file in _expand(arguments.files):
        problems = check_file(file, arguments.set)
        if problems:
            print("\n" * bool(num_bad) + render_problems(problems), file=sys.stderr, flush=True)
            num_bad += 1
        else:
            print(f"ok  {file}", flush=True)
    return 1 if num_bad else 0


def _expand(patterns: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        if glob.has_magic(pattern) and not os.path.exists(pattern):
            # A glob that finds nothing is passed on as it is, to be told as a file that does not exist.
            yield from sorted(glob.glob(pattern, recursive=True)) or [pattern]
        else:
            yield pattern


def check_file(file: str, overrides: Sequence[str]) -> Sequence[Problem]:
    """Every problem of one recipe file; empty when it is good."""
    try:
        loaded = load_recipe(file, overrides)
        # A recipe that is already found wrong need not wait for the plan to be imported.
        from llava_recipes.runner.facts import plan_recipe

        plan_recipe(loaded, world_size=1)
    except RecipeError as error:
        return error.problems
    return ()
