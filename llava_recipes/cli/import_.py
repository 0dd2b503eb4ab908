"""`llava-recipe import CHECKPOINT -o DIR`: a checkpoint of others as one that recipes start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from llava_recipes.cli.options import add_writing, dtype_of, quiet_libraries, report
from llava_recipes.screen import say

EPILOG = """\
CHECKPOINT is a folder in llava-hf's layout, or the original's: a whole model, a projector alone, or adapters
(the last two with --base). DIR is in the original's layout, as safetensors, with the vision tower inside
where nothing else names it. A recipe starts from it with `model.language_model: DIR`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder of the checkpoint")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="new folder")
    add_writing(parser)


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.export.export import import_checkpoint
    from llava_recipes.export.target import parse_size

    quiet_libraries()
    done, tower = import_checkpoint(
        arguments.checkpoint,
        Path(arguments.output),
        dtype=dtype_of(arguments.dtype),
        max_bytes=parse_size(arguments.max_shard_size),
        base=arguments.base,
    )
    report(done)
    say(f"next     in a recipe: model.language_model: {done.folder}, model.vision_tower.source: {tower}")
    return 0
