"""Put tensors into a model's parameters, whole or partitioned by ZeRO-3."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.distributed
from torch import Tensor, nn

from llava_recipes.model.quantized import fill_quantized, is_quantized
from llava_recipes.recipe.errors import KeyPath, Problem, RecipeError

MAX_NAMES_SHOWN = 6


def is_partitioned(parameter: Tensor) -> bool:
    """True when ZeRO-3 holds this parameter in pieces."""
    return hasattr(parameter, "ds_id")


def full_shape(parameter: Tensor) -> tuple[int, ...]:
    """The parameter's shape, also while ZeRO-3 holds it in pieces."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def is_first_process() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


@torch.no_grad()
def overwrite(parameter: nn.Parameter, read: Callable[[], Tensor]) -> None:
    """Copy a tensor over a parameter that has its storage.

    Under ZeRO-3 all processes call this, and the first one's tensor counts.
    """
    if not is_partitioned(parameter):
        parameter.copy_(read())
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if is_first_process():
            parameter.copy_(read())


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every floating-point parameter `dtype`; buffers, such as rotary frequencies, keep theirs."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def check_names(
    wanted: Mapping[str, tuple[int, ...]], given: Iterable[str], *, what: str, found: str, path: KeyPath
) -> None:
    """Raise RecipeError unless both hold the same names."""
    names = set(given)
    missing = [name for name in wanted if name not in names]
    unexpected = sorted(names - wanted.keys())
    problems = [
        Problem(
            f"{what}: {len(rest)} weight(s) {word}: {_shortened(rest)}",
            code="weights-do-not-fit",
            path=path,
            found=found,
            hint=hint,
        )
        for rest, word, hint in (
            (missing, "are missing", "the files do not hold the whole model, or hold another one"),
            (
                unexpected,
                "have no place in the model",
                "the config beside the weights does not describe them",
            ),
        )
        if rest
    ]
    if problems:
        raise RecipeError(*problems)


def check_shape(wanted: tuple[int, ...], given: Tensor, *, what: str, found: str, path: KeyPath) -> None:
    """Raise RecipeError unless a tensor has the parameter's shape."""
    if tuple(given.shape) != wanted:
        message = f"{what} has shape {list(given.shape)}, the config says {list(wanted)}"
        raise RecipeError(Problem(message, code="weight-shape-differs-from-config", path=path, found=found))


class Placement:
    """Puts values under the names of a model; a parameter without storage takes the tensor itself."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype
        self._owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                self._owners.setdefault(id(parameter), []).append((module, leaf))

    def place(self, name: str, read: Callable[[], Tensor]) -> None:
        """Give a parameter or buffer its values; a meta one takes the tensor itself, tied ones with it."""
        module_name, _, leaf = name.rpartition(".")
        owner = self._model.get_submodule(module_name)
        parameter = owner._parameters.get(leaf)
        if parameter is None:
            owner.get_buffer(leaf).copy_(read())
        elif is_quantized(owner) and leaf == "weight":
            fill_quantized(owner, read(), self._dtype)
        elif parameter.device.type == "meta":
            tensor = read()
            tensor = tensor.to(self._dtype) if tensor.is_floating_point() else tensor
            filled = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
            for module, attribute in self._owners[id(parameter)]:
                setattr(module, attribute, filled)
        else:
            overwrite(parameter, read)


def _shortened(names: list[str]) -> str:
    shown = ", ".join(names[:MAX_NAMES_SHOWN])
    return shown if len(names) <= MAX_NAMES_SHOWN else f"{shown}, and {len(names) - MAX_NAMES_SHOWN} more"
