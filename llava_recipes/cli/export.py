"""`llava-recipe export RUN --to LAYOUT`: write a trained model in a layout that other programs read."""

from __future__ import annotations

import argparse
from pathlib import Path

from llava_recipes.cli.options import add_writing, quiet_libraries, report, writing_of

EPILOG = """\
  hf          llava-hf's layout, for transformers (LlavaForConditionalGeneration) and vLLM
  llava       the layout of the original LLaVA code: its config keys and weight names
  gguf-ready  two folders for llama.cpp's converters, with the commands in README.md

The folder must not exist yet. An export is opened again before it counts as done, and its logits on a fixed \
prompt and image are compared with the run's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("run", metavar="RUN", help="run folder, or checkpoint in another layout")
    parser.add_argument("--to", required=True, choices=("hf", "llava", "gguf-ready"), help="layout to write")
    parser.add_argument("-o", "--output", metavar="DIR", help="folder to write (default: RUN/export-LAYOUT)")
    add_writing(parser)
    tower = parser.add_mutually_exclusive_group()
    tower.add_argument(
        "--with-tower",
        action="store_true",
        default=None,
        help="with --to llava: write the vision tower too (default: if it was trained)",
    )
    tower.add_argument(
        "--without-tower",
        dest="with_tower",
        action="store_false",
        help="with --to llava: leave the vision tower out",
    )


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.errors import RecipeError

    if arguments.with_tower is not None and arguments.to != "llava":
        option = "--with-tower" if arguments.with_tower else "--without-tower"
        raise RecipeError.of(
            f"{option} has no effect with `--to {arguments.to}`, which always writes the tower",
            code="option-has-no-effect",
            hint=f"remove {option}, or write `--to llava`",
        )
    from llava_recipes.export.export import export_run

    quiet_libraries()
    target = Path(arguments.output or Path(arguments.run) / f"export-{arguments.to}")
    tower = arguments.with_tower
    report(export_run(arguments.run, target, to=arguments.to, with_tower=tower, **writing_of(arguments)))
    return 0
