"""Options that several commands share, the functions that read them, and a progress bar."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypedDict

from llava_recipes.screen import console, guard_redirected, say

if TYPE_CHECKING:
    import torch

    from llava_recipes.export.export import Exported
    from llava_recipes.model.generate import Decoding

SHARD_SIZE = "5GB"
_DTYPES = ("fp32", "bf16", "fp16")


class Writing(TypedDict):
    """How a model is written: dtype (None for its own), bytes of a file of weights, base language model."""

    dtype: torch.dtype | None
    max_bytes: int
    base: str | None


_CLOCK = re.compile(r"(?:(?:(?P<d>\d+)-)?(?P<h>\d+):)?(?P<m>\d+):(?P<s>[0-5]?\d)")
_DAYS = re.compile(r"(?P<d>\d+)-(?P<h>\d+)(?::(?P<m>[0-5]?\d))?")
"""As Slurm writes a limit of days and hours."""
_UNITS = re.compile(r"(?:(?P<d>\d+)d)?(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+)s)?")
_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_LONGEST_S = 3e9
"""About a century: the system's timers take no more, and a longer time means "never"."""


def positive(text: str) -> int:
    """Parse a whole number of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def duration(text: str) -> float:
    """Parse a time such as 3:55:00, 55:00, 90m or 4h, in seconds."""
    match = _CLOCK.fullmatch(text) or _DAYS.fullmatch(text) or _UNITS.fullmatch(text)
    parts = {unit: float(number) for unit, number in match.groupdict().items() if number} if match else {}
    seconds = sum(number * _SECONDS[unit] for unit, number in parts.items())
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 3:55:00, 90m or 4h")
    return min(seconds, _LONGEST_S)


def spell_duration(seconds: float) -> str:
    """A time as `duration` reads it, in whole seconds."""
    minutes, rest_s = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest_s:02}"


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """The recipe that a command reads, `arguments.file`, and `--set`."""
    parser.add_argument("file", metavar="FILE", help="recipe file")
    add_set(parser)


def add_set(parser: argparse.ArgumentParser, *, what: str = "override a value; may be repeated") -> None:
    """`--set`, which may be repeated: `arguments.set` is a list."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=what)


def add_world_size(
    parser: argparse.ArgumentParser,
    *,
    help: str = "number of processes, one per GPU (default: the GPUs of this machine)",
) -> None:
    """For how many processes to plan; `world_size_of` reads it."""
    parser.add_argument("--world-size", type=positive, metavar="N", help=help)


def world_size_of(arguments: argparse.Namespace) -> int:
    """The number of processes that was given, or else of this machine's GPUs."""
    from llava_recipes.runner.launch import count_local_devices

    given: int | None = arguments.world_size
    return given or count_local_devices()


def add_new_file(parser: argparse.ArgumentParser, *, metavar: str = "FILE", default: str) -> None:
    """The file that a command writes, `arguments.output`, and whether to replace one, `arguments.force`."""
    parser.add_argument("-o", "--output", metavar=metavar, help=f"file to write (default: {default})")
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def add_run(parser: argparse.ArgumentParser) -> None:
    """The trained model that a command opens."""
    parser.add_argument("run", metavar="RUN", help="run folder, exported folder or original LLaVA checkpoint")


def add_opening(parser: argparse.ArgumentParser) -> None:
    """How a trained model is opened."""
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="dtype of the weights (default: the run's; fp32 on a CPU)",
    )
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1, … (default: a GPU if available, else cpu)"
    )
    add_base(parser)


def add_base(parser: argparse.ArgumentParser) -> None:
    """Where to find the base language model, for runs that contain only a part of it."""
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="hub id or folder of the language model (default: the run's)",
    )


def add_answer_length(parser: argparse.ArgumentParser, *, usual: int, goes_with: str = "") -> None:
    """Limit on the length of an answer; `length_of` reads it."""
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        metavar="N",
        help=f"{goes_with}limit an answer to N tokens (default: {usual}, or what the context leaves)",
    )
    parser.set_defaults(usual_new_tokens=usual)


def length_of(arguments: argparse.Namespace) -> tuple[int, bool]:
    """Tokens of the longest answer, and whether the user asked for room for all of them."""
    given: int | None = arguments.max_new_tokens
    usual: int = arguments.usual_new_tokens
    return (usual, False) if given is None else (given, True)


def add_decoding(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """How the tokens of an answer are chosen; `decoding_of` reads it."""
    add_answer_length(parser, usual=max_new_tokens)
    parser.add_argument(
        "--temperature",
        type=_temperature,
        default=0.0,
        metavar="T",
        help="take the most likely token at 0, sample more freely above (default: 0)",
    )
    parser.add_argument(
        "--top-p",
        type=_share,
        default=1.0,
        metavar="P",
        help="with --temperature: sample from the most likely tokens whose sum reaches P (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sampling (default: 0)")


def decoding_of(arguments: argparse.Namespace) -> Decoding:
    """The options of `add_decoding` as one value. Raises RecipeError when --top-p has no effect."""
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
    """How weights are written, and where the language model is; `writing_of` reads it."""
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="weights' dtype (default: what the run computes in, or the checkpoint has)",
    )
    parser.add_argument(
        "--max-shard-size",
        default=SHARD_SIZE,
        metavar="SIZE",
        help="limit on a file of weights: 5GB, 500MB, … (default: %(default)s)",
    )
    add_base(parser)


def writing_of(arguments: argparse.Namespace, *, shard_size: str | None = None) -> Writing:
    """The options of `add_writing` as keywords of what writes a model. Raises RecipeError for a bad size."""
    from llava_recipes.export.target import parse_size
    from llava_recipes.model.placing import TORCH_DTYPES

    return {
        "dtype": None if arguments.dtype is None else TORCH_DTYPES[arguments.dtype],
        "max_bytes": parse_size(shard_size or arguments.max_shard_size),
        "base": arguments.base,
    }


def report(done: Exported) -> None:
    """Print what was written, and that it was checked."""
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
    """Keep off standard error the warnings of libraries that the user can't act on."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _temperature(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


@contextlib.contextmanager
def progress(name: str, *, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar of `total` steps, `done` of them already, on a terminal; gives what advances it by a number."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    screen = console(to_stderr=True)
    words = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("ETA")
    with Progress(*words, TimeRemainingColumn(), console=screen, disable=not screen.is_terminal) as shown:
        guard_redirected()
        task = shown.add_task(name, total=total, completed=done)
        yield lambda number: shown.advance(task, number)
