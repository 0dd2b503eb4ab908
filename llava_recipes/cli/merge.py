"""`llava-recipe merge RUN -o DIR`: write a LoRA run as one whole model."""

from __future__ import annotations

import argparse
from pathlib import Path

from llava_recipes.cli.options import add_writing, quiet_libraries, report, writing_of

EPILOG = """\
DIR gets the layout of the original LLaVA, which chat, generate, eval, export and `model.language_model` of \
a recipe read. Adapters are added in float32, and the sum is rounded to the dtype of the weights."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("run", metavar="RUN", help="run folder, or folder of the original LLaVA's adapters")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="new folder to write")
    add_writing(parser)


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.export.export import merge_run

    quiet_libraries()
    report(merge_run(arguments.run, Path(arguments.output), **writing_of(arguments)))
    return 0
