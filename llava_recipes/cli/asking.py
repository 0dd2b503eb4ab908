"""Options that the commands which ask a model have in common."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from llava_recipes.cli.options import positive

if TYPE_CHECKING:
    from llava_recipes.model.generate import Decoding


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
    from llava_recipes.model.generate import Decoding
    from llava_recipes.recipe.errors import Problem, RecipeError

    if arguments.top_p < 1 and arguments.temperature == 0:
        hint = "add --temperature, for example 0.2"
        raise RecipeError(
            Problem("--top-p has no effect with temperature 0", code="option-has-no-effect", hint=hint)
        )
    max_new_tokens, must_fit = length_of(arguments)
    return Decoding(max_new_tokens, arguments.temperature, arguments.top_p, must_fit)


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
