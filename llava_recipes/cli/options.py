"""Options that several commands have, what reads them, and what such commands show."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llava_recipes.screen import console, guard_redirected, say

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress, TaskID

    from llava_recipes.export.export import Exported
    from llava_recipes.model.generate import Decoding


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """The recipe that a command is about, and values in place of its own."""
    parser.add_argument("file", metavar="FILE", help="the recipe")
    add_set(parser)


def add_set(parser: argparse.ArgumentParser, *, what: str = "override one value of the recipe") -> None:
    """`--set`, as often as wanted: `arguments.set` is a list."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=what)


def add_world_size(parser: argparse.ArgumentParser) -> None:
    """On how many processes a plan is; `world_size_of` reads it."""
    parser.add_argument(
        "--world-size",
        type=positive,
        metavar="N",
        help="processes, one per GPU; default: this machine's GPUs",
    )


def world_size_of(arguments: argparse.Namespace) -> int:
    """The processes that were asked for, or one for each GPU of this machine."""
    from llava_recipes.runner.launch import count_local_devices

    given: int | None = arguments.world_size
    return given or count_local_devices()


def add_new_file(parser: argparse.ArgumentParser, *, metavar: str = "FILE", default: str) -> None:
    """The file that a command writes, `arguments.output`, and whether over another, `arguments.force`."""
    parser.add_argument("-o", "--output", metavar=metavar, help=f"default: {default}")
    parser.add_argument("--force", action="store_true", help="replace a file that is there already")


def add_run(parser: argparse.ArgumentParser) -> None:
    """The trained model that a command is about."""
    parser.add_argument("run", metavar="RUN", help="run folder, exported folder or original checkpoint")


def add_opening(parser: argparse.ArgumentParser) -> None:
    """How a run is opened."""
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), help="of the weights (default: the run's; fp32 on a CPU)"
    )
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)"
    )
    add_base(parser)


def add_base(parser: argparse.ArgumentParser) -> None:
    """Where the language model is that a run completes itself from."""
    parser.add_argument(
        "--base", metavar="MODEL", help="hub id or folder of the language model, if not where the run had it"
    )


def add_answer_length(parser: argparse.ArgumentParser, *, usual: int, goes_with: str = "") -> None:
    """How long an answer may be; `length_of` reads it."""
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        metavar="N",
        help=f"{goes_with}longest answer, in tokens (default {usual}, or what the context leaves)",
    )
    parser.set_defaults(usual_new_tokens=usual)


def length_of(arguments: argparse.Namespace) -> tuple[int, bool]:
    """Tokens of the longest answer, and whether the person asked for room for all of them."""
    given: int | None = arguments.max_new_tokens
    usual: int = arguments.usual_new_tokens
    return (usual, False) if given is None else (given, True)


def add_decoding(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """How tokens are chosen."""
    add_answer_length(parser, usual=max_new_tokens)
    parser.add_argument(
        "--temperature",
        type=_temperature,
        default=0.0,
        metavar="T",
        help="0 takes the most likely token, more draws more freely (default 0)",
    )
    parser.add_argument(
        "--top-p",
        type=_share,
        default=1.0,
        metavar="P",
        help="draw among the most likely tokens that come to this share; goes with --temperature (default 1)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (default 0)")


def decoding_of(arguments: argparse.Namespace) -> Decoding:
    """The options as one value. Raises RecipeError when --top-p could have no effect."""
    from llava_recipes.errors import RecipeError
    from llava_recipes.model.generate import Decoding

    if arguments.top_p < 1 and arguments.temperature == 0:
        hint = "add --temperature, for example 0.2"
        raise RecipeError.of(
            "--top-p has no effect with temperature 0", code="option-has-no-effect", hint=hint
        )
    max_new_tokens, must_fit = length_of(arguments)
    return Decoding(max_new_tokens, arguments.temperature, arguments.top_p, must_fit)


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
    from llava_recipes.model.placing import DTYPES

    return None if name is None else DTYPES[name]


def report(done: Exported) -> None:
    """Say what was written, and that it was checked."""
    from llava_recipes.recipe.scalars import say_number

    difference = say_number(done.difference, digits=2)
    dtype = str(done.dtype).removeprefix("torch.")
    rounded = "" if dtype == "float32" else f", both with weights rounded to {dtype}"
    say(
        f"wrote    {done.folder}: {_size(done.num_bytes)} of weights in {dtype}",
        f"checked  opened again, it gives the run's logits: largest difference {difference} "
        f"in float32{rounded}",
    )
    for note in done.notes:
        say(f"note     {note}")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"


def quiet_libraries() -> None:
    """Leave standard error to what the user can change."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _temperature(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return number


class Bar:
    """What is to be done, and how much of it is."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, number: int) -> None:
        self._progress.advance(self._task, number)


@contextlib.contextmanager
def progress(name: str, *, total: int, done: int = 0) -> Iterator[Bar]:
    """A bar of `total` things, `done` of them already."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    screen = console(to_stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as shown:
        guard_redirected()
        yield Bar(shown, shown.add_task(name, total=total, completed=done))
