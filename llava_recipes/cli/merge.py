"""`llava-recipe merge RUN -o DIR`: a LoRA run as one whole model, its adapters in its weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from llava_recipes.cli.options import add_writing, dtype_of, quiet_libraries, report

EPILOG = """\
DIR is in the original's layout, which chat, generate, eval, export and `model.language_model` of a recipe
take. Adapters are added in float32 and the sum is rounded to the weights' dtype."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument(
        "run", metavar="RUN", help="run folder, or a folder of adapters in the original's layout"
    )
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="new folder")
    add_writing(parser)


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.export.export import merge_run
    from llava_recipes.export.target import parse_size

    quiet_libraries()
    report(
        merge_run(
            arguments.run,
            Path(arguments.output),
            dtype=dtype_of(arguments.dtype),
            max_bytes=parse_size(arguments.max_shard_size),
            base=arguments.base,
        )
    )
    return 0
