"""`llava-recipe import CHECKPOINT -o DIR`: convert a checkpoint into one that recipes start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from llava_recipes.cli.options import add_writing, quiet_libraries, report, writing_of
from llava_recipes.screen import say

EPILOG = """\
CHECKPOINT has the layout of llava-hf or of the original LLaVA: a whole model, a projector alone, or \
adapters (the last two need --base). DIR gets the original's layout, as safetensors, with the vision tower \
unless the checkpoint names its source. A recipe starts from it with `model.language_model: DIR`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder of the checkpoint")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="new folder to write")
    add_writing(parser)


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.export.export import import_checkpoint

    quiet_libraries()
    done, tower = import_checkpoint(arguments.checkpoint, Path(arguments.output), **writing_of(arguments))
    report(done)
    say(f"next     in a recipe: model.language_model: {done.folder}, model.vision_tower.source: {tower}")
    return 0
