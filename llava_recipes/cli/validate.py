"""`llava-recipe validate FILE…`: tell every problem of every file, without loading anything heavy."""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llava_recipes.cli.options import add_set
from llava_recipes.recipe.errors import Problem, RecipeError
from llava_recipes.recipe.load import load_recipe
from llava_recipes.recipe.render import render_problems
from llava_recipes.screen import say, say_lines

if TYPE_CHECKING:
    from llava_recipes.cli.validate_formats import FileReport
    from llava_recipes.runner.deep import StageFindings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="recipe file, or a glob of recipe files")
    add_set(parser, what="override one value, for example stages.pretrain.train.max_steps=5")
    parser.add_argument(
        "--format",
        choices=("text", "json", "github", "sarif"),
        default="text",
        help="text for people (default); the others go to standard output, for machines",
    )
    parser.add_argument("--strict", action="store_true", help="let a warning count as an error")
    parser.add_argument(
        "--deep",
        action="store_true",
        help="build the model without weights, try every glob on it, read the data and some of its pictures",
    )
    parser.add_argument(
        "--all", action="store_true", help="with --deep: decode every picture, not a sample of them"
    )


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.cli.validate_formats import MACHINE_FORMATS

    if arguments.all and not arguments.deep:
        say("llava-recipe validate: --all goes with --deep", to_stderr=True)
        return 2
    if arguments.deep:
        from llava_recipes.versions import check_versions

        check_versions()
    reports: list[FileReport] = []
    for file in _expand(arguments.files):
        report = _examine(file, arguments)
        if arguments.format == "text":
            _print(report, is_first=all(not earlier.problems for earlier in reports))
        reports.append(report)
    if arguments.format != "text":
        MACHINE_FORMATS[arguments.format](reports)
    return 0 if all(report.is_valid for report in reports) else 1


def _print(report: FileReport, *, is_first: bool) -> None:
    if report.is_valid:
        say(f"ok  {report.file}", *(f"    {stage.summary()}" for stage in report.stages))
    if report.problems:
        say_lines("\n" * (not is_first) + render_problems(report.problems), to_stderr=True)


def _expand(patterns: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        if glob.has_magic(pattern) and not os.path.exists(pattern):
            # A glob that finds nothing is passed on as it is, to be told as a file that does not exist.
            yield from sorted(glob.glob(pattern, recursive=True)) or [pattern]
        else:
            yield pattern


def _examine(file: str, arguments: argparse.Namespace) -> FileReport:
    """Every problem of one recipe file, and what a deep look counted."""
    from llava_recipes.cli.validate_formats import FileReport

    stages: tuple[StageFindings, ...] = ()
    try:
        loaded = load_recipe(file, arguments.set)
        # A recipe that is already found wrong need not wait for the plan to be imported.
        from llava_recipes.runner.facts import compile_loaded

        compiled = compile_loaded(loaded, world_size=1)
        problems = list(compiled.warnings)
        if arguments.deep:
            from llava_recipes.runner.deep import look_deeply

            deep_problems, stages = look_deeply(loaded, compiled.plan, every_image=arguments.all)
            problems += deep_problems
        found: Sequence[Problem] = loaded.fail(*problems).problems
    except RecipeError as error:
        found = error.problems
    if arguments.strict:
        found = [replace(problem, severity="error") for problem in found]
    return FileReport(file, tuple(found), stages)
