"""What the commands that write a model have in common: options, and what is told at the end."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from llava_recipes.cli.asking import add_base
from llava_recipes.screen import say

if TYPE_CHECKING:
    import torch

    from llava_recipes.runs.export import Exported


def add_writing(parser: argparse.ArgumentParser) -> None:
    """How weights are written, and where the language model is."""
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        help="of the weights (default: what the run computed in, or the checkpoint is stored in)",
    )
    parser.add_argument(
        "--max-shard-size",
        default="5GB",
        metavar="SIZE",
        help="largest file of weights: 5GB, 500MB, … (default %(default)s)",
    )
    add_base(parser)


def dtype_of(name: str | None) -> torch.dtype | None:
    """The dtype that an option names."""
    from llava_recipes.model.precision import DTYPES

    return None if name is None else DTYPES[name]


def report(done: Exported) -> None:
    """Say what was written, and that it was checked."""
    dtype = str(done.dtype).removeprefix("torch.")
    rounded = "" if dtype == "float32" else f", both with weights rounded to {dtype}"
    say(
        f"wrote    {done.folder}: {_size(done.num_bytes)} of weights in {dtype}",
        f"checked  opened again, it gives the run's logits: largest difference {done.difference:.1e} "
        f"in float32{rounded}",
    )
    for note in done.notes:
        say(f"note     {note}")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"
