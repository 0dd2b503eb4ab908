"""`llava-recipe export RUN --to LAYOUT`: a trained model in a layout that others read."""

from __future__ import annotations

import argparse
from pathlib import Path

from llava_recipes.cli.options import add_writing, dtype_of, quiet_libraries, report

EPILOG = """\
hf          llava-hf's layout: LlavaForConditionalGeneration and its processor, for transformers and vLLM
llava       the original's: its config keys and weight names
gguf-ready  the pair of folders that llama.cpp's converters take, with the commands in its README.md

Nothing is written over. Before it says done, an export is opened again and its logits on a fixed prompt and
image are compared with the run's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("run", metavar="RUN", help="run folder, or a checkpoint in another layout")
    parser.add_argument("--to", required=True, choices=("hf", "llava", "gguf-ready"), help="the layout")
    parser.add_argument("-o", "--output", metavar="DIR", help="new folder (default: RUN/export-LAYOUT)")
    add_writing(parser)
    tower = parser.add_mutually_exclusive_group()
    tower.add_argument(
        "--with-tower",
        dest="with_tower",
        action="store_true",
        default=None,
        help="with --to llava: write the vision tower's weights too (default: where it was trained)",
    )
    tower.add_argument(
        "--without-tower", dest="with_tower", action="store_false", default=None, help="leave them out"
    )


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.errors import RecipeError

    if arguments.with_tower is not None and arguments.to != "llava":
        word = "--with-tower" if arguments.with_tower else "--without-tower"
        raise RecipeError.of(
            f"{word} goes with `--to llava`; `{arguments.to}` always has the tower",
            code="option-has-no-effect",
        )
    from llava_recipes.export.export import export_run
    from llava_recipes.export.target import parse_size

    quiet_libraries()
    target = Path(arguments.output or Path(arguments.run) / f"export-{arguments.to}")
    report(
        export_run(
            arguments.run,
            target,
            to=arguments.to,
            dtype=dtype_of(arguments.dtype),
            max_bytes=parse_size(arguments.max_shard_size),
            with_tower=arguments.with_tower,
            base=arguments.base,
        )
    )
    return 0
