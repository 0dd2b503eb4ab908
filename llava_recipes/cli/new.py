"""`llava-recipe new TEMPLATE`: write a commented recipe, filled in from options and data."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llava_recipes.cli.options import add_new_file, add_set
from llava_recipes.exit_codes import USAGE_ERROR
from llava_recipes.screen import is_terminal, say, say_document, say_lines

if TYPE_CHECKING:
    from llava_recipes.authoring.new_recipe import NewRecipe, Wishes

LARGE_FILE_BYTES = 50_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from llava_recipes.authoring.new_recipe import TEMPLATES

    rows = "\n".join(f"  {name:<10} {purpose}" for name, purpose in TEMPLATES.items())
    parser.epilog = (
        f"templates:\n{rows}\n\nOn a terminal it asks for missing values; --yes takes the defaults."
    )
    parser.add_argument(
        "template", nargs="?", metavar="TEMPLATE", choices=tuple(TEMPLATES), help="one of those below"
    )
    add_new_file(parser, default="TEMPLATE.yaml; - for standard output")
    parser.add_argument("--llm", metavar="MODEL", help="language model: hub id or folder")
    parser.add_argument("--tower", metavar="MODEL", help="vision tower: hub id or folder")
    parser.add_argument(
        "--data", action="append", default=[], metavar="FILE", help="annotation file; may be repeated"
    )
    parser.add_argument(
        "--images",
        action="append",
        default=[],
        metavar="DIR",
        help="image folder of a --data file (default: found by its images)",
    )
    parser.add_argument(
        "--output-dir", metavar="DIR", help="output folder of the run (default: ./checkpoints/NAME)"
    )
    add_set(parser, what="set any other value; may be repeated")
    parser.add_argument("--yes", action="store_true", help="ask nothing, take the defaults")


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.authoring.new_recipe import DEFAULT_TEMPLATE, TEMPLATES, draft_recipe

    asking = not arguments.yes and is_terminal(sys.stdin) and is_terminal(sys.stdout)
    if arguments.template is None and arguments.yes:
        arguments.template = DEFAULT_TEMPLATE
        say(f"template {DEFAULT_TEMPLATE}, the default", to_stderr=arguments.output == "-")
    if arguments.template is None and not asking:
        say(f"llava-recipe new: no template; choose {', '.join(TEMPLATES)}", to_stderr=True)
        return USAGE_ERROR
    try:
        wishes, file = _wishes(arguments, asking=asking)
    except EOFError:
        # Ctrl-D at a question is treated as Ctrl-C.
        raise KeyboardInterrupt from None
    output = Path(f"{wishes.template}.yaml" if file == "-" else file)
    _announce_large_files(wishes)
    draft = draft_recipe(wishes, output)
    advice = _check(draft.text, str(output))
    code = _deliver(draft, output, to_stdout=file == "-", force=arguments.force)
    if advice:
        say_lines("\n" + advice, to_stderr=True)
    return code


def _wishes(arguments: argparse.Namespace, *, asking: bool) -> tuple[Wishes, str]:
    """What to write, and into which file; asks for missing values if `asking`."""
    from llava_recipes.authoring.new_recipe import Wishes

    template = arguments.template
    if template is None:
        from llava_recipes.authoring.asking import ask_template

        template = ask_template()
    wishes = Wishes(
        template=template,
        language_model=arguments.llm,
        vision_tower=arguments.tower,
        data=tuple(arguments.data),
        images=tuple(arguments.images),
        output_dir=arguments.output_dir,
        overrides=tuple(arguments.set),
    )
    file: str = arguments.output or f"{template}.yaml"
    if asking:
        from llava_recipes.authoring.asking import ask_output, ask_wishes

        wishes = ask_wishes(wishes)
        file = arguments.output or ask_output(file)
    return wishes, file


def _announce_large_files(wishes: Wishes) -> None:
    for file in wishes.data:
        # Unlike Path's, this answers false for a name that no file can have.
        if os.path.isfile(file) and os.path.getsize(file) > LARGE_FILE_BYTES:
            say(f"reading {file} …", to_stderr=True)


def _check(text: str, file: str) -> str:
    """The warnings about the recipe, as text; raises RecipeError if it can't run."""
    from llava_recipes.recipe.load import load_source
    from llava_recipes.render import render_problems
    from llava_recipes.runner.facts import compile_loaded

    loaded = load_source(text, file)
    compiled = compile_loaded(loaded, world_size=1)
    return render_problems(loaded.fail(*compiled.warnings).problems)


def _deliver(draft: NewRecipe, output: Path, *, to_stdout: bool, force: bool) -> int:
    from llava_recipes.files import write_new

    if to_stdout:
        say_document(draft.text)
    else:
        write_new(output, draft.text, force=force)
    for note in draft.notes:
        say(f"saw      {note}", to_stderr=to_stdout)
    for warning in draft.warnings:
        say(f"warning: {warning}", to_stderr=True)
    if not to_stdout:
        say(f"wrote    {output}", f"next     llava-recipe plan {output}")
    return 0
