"""`llava-recipe migrate FILE`: turn another program's script or config into a recipe. Executes nothing."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava_recipes.cli.options import add_new_file
from llava_recipes.errors import Mark, Problem, RecipeError
from llava_recipes.exit_codes import USER_ERROR
from llava_recipes.files import write_new
from llava_recipes.masking import mask_assignment
from llava_recipes.recipe.source import read_file
from llava_recipes.screen import cell, console, is_terminal, say, say_document, say_lines, shown

if TYPE_CHECKING:
    from rich.console import Console

    from llava_recipes.migrate.draft import Migration

MAX_BYTES = 200_000
_ENDINGS = (".sh", ".bash", ".zsh", ".slurm", ".sbatch", ".py", ".yaml", ".yml", ".json", ".txt", ".args")
_STYLES = {"mapped": "green", "default": "yellow", "needless": "dim", "lost": "bold red"}
_FLAG = re.compile(r"(^|\s)--[a-z]+[_-][a-z_-]+[ =]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        help="shell script of LLaVA, LLaVA-NeXT or TinyLLaVA, file of flags, XTuner config (.py), "
        "or axolotl or LLaMA-Factory config (.yaml)",
    )
    add_new_file(parser, metavar="RECIPE", default="standard output")
    for option, metavar, what in (
        ("--arg", "VALUE", "value of the script's $1; may be repeated, for $2, …"),
        ("--var", "NAME=VALUE", "variable that the script expects; may be repeated"),
    ):
        parser.add_argument(option, action="append", default=[], metavar=metavar, help=what)
    parser.add_argument(
        "--command",
        type=int,
        metavar="N",
        help="take only the Nth training command, from 1 (default: all, each as a stage)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 also if a lost setting changes the run"
    )


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.migrate.migration import migrate

    migration = migrate(
        read_script(arguments.file),
        arguments.file,
        positional=arguments.arg,
        variables=_variables(arguments.var),
        only=arguments.command,
        recipe_file=arguments.output or "recipe.yaml",
        read_beside=read_beside,
        is_folder=os.path.isdir,
        working_folder=os.getcwd(),
    )
    if arguments.output is None:
        say_document(migration.text)
    else:
        write_new(Path(arguments.output), migration.text, force=arguments.force)
    _report(migration, arguments.file)
    problems = _check(migration.text, arguments.output or "recipe.yaml")
    if problems:
        from llava_recipes.render import render_problems

        say("The recipe is not complete yet; fix this in it:", "", to_stderr=True)
        say_lines(render_problems(problems), to_stderr=True)
        return USER_ERROR
    lost = sum(entry.kind == "lost" for _, entries in migration.stages for entry in entries)
    say(_closing(lost), to_stderr=True)
    return 1 if lost and arguments.strict else 0


def _report(migration: Migration, file: str) -> None:
    if is_terminal(sys.stderr):
        show_report(migration, file, console(to_stderr=True))
        return
    from llava_recipes.migrate.draft import report_lines

    say(*report_lines(migration, file), to_stderr=True)


def show_report(migration: Migration, file: str, console: Console) -> None:
    """Print what happened to every setting on a terminal, long values folded inside their column."""
    from rich.table import Table

    from llava_recipes.migrate.draft import TITLES, stage_title, value_of

    for (name, entries), program in zip(migration.stages, migration.programs, strict=True):
        console.print(cell(stage_title(file, name, entries), style="bold"))
        if program:
            console.print(cell(f"  program: {program}"))
        for kind, title in TITLES:
            chosen = [entry for entry in entries if entry.kind == kind]
            if not chosen:
                continue
            console.print()
            console.print(cell(f"  {title}", style=_STYLES[kind]))
            table = Table.grid(padding=(0, 2, 0, 0))
            table.add_column(no_wrap=True)
            table.add_column(overflow="fold")
            table.add_column(overflow="fold")
            for entry in chosen:
                says = " – ".join(part for part in (entry.key, entry.remark) if part)
                table.add_row(cell(f"    {shown(entry.name)}", style="cyan"), value_of(entry), shown(says))
            console.print(table)
        console.print()


def _closing(lost: int) -> str:
    if not lost:
        return "The recipe is valid and contains every setting of the script."
    settings = "1 setting is" if lost == 1 else f"{lost} settings are"
    return f"The recipe is valid; {settings} lost, as listed above."


def _variables(assignments: Sequence[str]) -> dict[str, str]:
    variables = {}
    for assignment in assignments:
        name, has_value, value = assignment.partition("=")
        if not has_value or not name.isidentifier():
            mark = Mark(f"--var {mask_assignment(assignment)}", 0, 0)
            raise RecipeError.of("--var needs NAME=VALUE", code="invalid-var-option", mark=mark)
        variables[name] = value
    return variables


def read_script(file: str) -> str:
    """The text of a script or config; raises RecipeError if it isn't a text file."""
    whole = Mark(file, 0, 0)
    data = read_file(file, kind="training script", max_bytes=MAX_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02X} at position {error.start}"
        raise RecipeError.of(
            "the file isn't UTF-8", code="file-not-text", mark=whole, found=found, hint="save it as UTF-8"
        ) from None
    if not _looks_like_script(text, file):
        hint = "`migrate` reads the script or the config of a training run"
        raise RecipeError.of("this isn't a training script", code="no-script", mark=whole, hint=hint)
    if "\0" in text:
        raise RecipeError.of("the file contains NUL bytes: it isn't text", code="file-not-text", mark=whole)
    return text


def _looks_like_script(text: str, file: str) -> bool:
    """Whether errors may quote a file: another one, named by mistake or malice, may contain secrets."""
    is_named_so = file.lower().endswith(_ENDINGS) and not os.path.islink(file)
    return is_named_so or _FLAG.search(text) is not None


def read_beside(path: str, caller: str) -> tuple[str, str] | None:
    """Path and text of a file that a script names, in the working folder or a folder above the script."""
    try:
        folders = [Path(), *Path(os.path.abspath(caller)).parents]
        for folder in folders[:1] if os.path.isabs(path) else folders[:8]:
            file = folder / path
            if file.is_file():
                return str(file), read_script(str(file))
    except (OSError, ValueError, RecipeError):
        return None
    return None


def _check(text: str, file: str) -> Sequence[Problem]:
    """Every problem of the new recipe."""
    from llava_recipes.recipe.load import load_source
    from llava_recipes.runner.facts import plan_recipe

    try:
        plan_recipe(load_source(text, file), world_size=1)
    except RecipeError as error:
        return error.problems
    return ()
