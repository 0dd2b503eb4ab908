"""Whether weights from a file can be trained on: floating point, and every value a finite number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from llava_recipes.recipe.errors import KeyPath, Problem, RecipeError

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST = torch.finfo(torch.float32).max
_NUM_SHOWN = 4


def check_values(tensors: Iterable[tuple[str, Tensor]], *, path: KeyPath, found: str) -> None:
    """Raise RecipeError unless all of these weights can be trained on; `found` names their file.

    Every value is read, mapped ones page by page: a gigabyte takes half a second of one CPU core.
    """
    problems = [*value_problems(tensors, path=path, found=found)]
    if problems:
        raise RecipeError(*problems)


def value_problems(tensors: Iterable[tuple[str, Tensor]], *, path: KeyPath, found: str) -> Iterator[Problem]:
    """One problem for weights of another type, and one for values that are not finite."""
    others, odd = [], []
    for name, tensor in tensors:
        kind = _other_kind(tensor)
        if kind is not None:
            others.append(f"{name} is {kind}")
        elif (trouble := not_finite(tensor)) is not None:
            odd.append(f"{name} has {trouble}")
    if others:
        yield Problem(
            f"{len(others)} weight(s) are not floating point",
            code="weights-not-floating-point",
            path=path,
            found=f"{found}: {_shortened(others)}",
            hint="give the weights in float16, bfloat16 or float32; quantized ones are not read",
        )
    if odd:
        yield Problem(
            f"{len(odd)} weight(s) hold values that are NaN or infinite",
            code="weights-not-finite",
            path=path,
            found=f"{found}: {_shortened(odd)}",
            hint="the run that wrote them went wrong, or the file is damaged; start from other weights",
        )


def _other_kind(tensor: Tensor) -> str | None:
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        return "no plain tensor"
    return None if tensor.dtype in DTYPES else str(tensor.dtype).removeprefix("torch.")


@torch.no_grad()
def not_finite(tensor: Tensor) -> str | None:
    """How many of a tensor's values are NaN or infinite in float32, in words; None where all are finite."""
    if tensor.numel() == 0:
        return None
    # One pass without a copy; NaN in any place makes both ends NaN.
    lowest, highest = torch.aminmax(tensor)
    if lowest.item() >= -_LARGEST and highest.item() <= _LARGEST:
        return None
    num_nan = int(torch.isnan(tensor).sum())
    beyond = tensor.isinf()
    if tensor.dtype == torch.float64:
        beyond |= tensor.abs() > _LARGEST
    num_infinite = int(beyond.sum())
    counts = [f"{num:,} {what}" for num, what in ((num_nan, "NaN"), (num_infinite, "infinite")) if num]
    return f"{' and '.join(counts)} of {tensor.numel():,} values"


def _shortened(words: list[str]) -> str:
    more = len(words) - _NUM_SHOWN
    return "; ".join(islice(words, _NUM_SHOWN)) + (f"; and {more} more" if more > 0 else "")
