"""Put tensors into a model's parameters: whole, quantized, or partitioned by ZeRO-3."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
import torch.distributed
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.estimate.assignment import DTYPE_NAMES
from llava_recipes.recipe.schema import Quantization

TORCH_DTYPES: Mapping[str, torch.dtype] = {word: getattr(torch, name) for word, name in DTYPE_NAMES.items()}
"""By their names in recipes and commands: `fp32`, `bf16`, `fp16`."""
_ROOT = "model.language_model."
_MAX_NAMES_SHOWN = 6


def usual_device() -> torch.device:
    """The GPU if available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Placement:
    """Puts values into a model by name; a parameter without storage takes the tensor itself."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype
        self._owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                self._owners.setdefault(id(parameter), []).append((module, leaf))

    def place(self, name: str, read: Callable[[], Tensor]) -> None:
        """Fill a parameter or buffer; one on the meta device takes the tensor itself, and so do tied ones."""
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


@torch.no_grad()
def overwrite(parameter: nn.Parameter, read: Callable[[], Tensor]) -> None:
    """Copy a tensor over a parameter that already has storage.

    Under ZeRO-3 all processes call this, and the first one's tensor is used.
    """
    if not is_partitioned(parameter):
        parameter.copy_(read())
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if is_first_process():
            parameter.copy_(read())


def is_partitioned(parameter: Tensor) -> bool:
    """Whether ZeRO-3 keeps this parameter in pieces."""
    return hasattr(parameter, "ds_id")


def full_shape(parameter: Tensor) -> tuple[int, ...]:
    """The parameter's whole shape, also while ZeRO-3 keeps it in pieces."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def is_first_process() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every floating-point parameter `dtype`; buffers, such as rotary frequencies, keep theirs."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def check_names(
    wanted: Mapping[str, tuple[int, ...]], given: Iterable[str], *, what: str, found: str, path: KeyPath
) -> None:
    """Raise RecipeError unless both have the same names."""
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
            (missing, "are missing", "the files do not contain the whole model, or contain another one"),
            (
                unexpected,
                "have no place in the model",
                "the config next to the weights does not describe them",
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
        raise RecipeError.of(message, code="weight-shape-differs-from-config", path=path, found=found)


def _shortened(names: list[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMES_SHOWN])
    return shown if len(names) <= _MAX_NAMES_SHOWN else f"{shown}, and {len(names) - _MAX_NAMES_SHOWN} more"


def quantize_layers(
    model: LlavaForConditionalGeneration, quantization: Quantization, dtype: torch.dtype
) -> None:
    """Replace the language model's linear layers by quantized ones, still empty.

    They compute in `dtype`. Head, tower and projector stay as they are.
    """
    import bitsandbytes as bnb

    linear = {
        name: module
        for name, module in model.named_modules()
        if name.startswith(_ROOT) and type(module) is nn.Linear
    }
    for name, layer in linear.items():
        shape, has_bias = (layer.in_features, layer.out_features), layer.bias is not None
        with torch.device("meta"):
            small = (
                bnb.nn.Linear4bit(
                    *shape,
                    bias=has_bias,
                    compute_dtype=dtype,
                    compress_statistics=quantization.double_quant,
                    quant_type=quantization.type,
                )
                if quantization.bits == 4
                # Above a threshold of 0 large inputs are computed separately, which training does not need.
                else bnb.nn.Linear8bitLt(*shape, bias=has_bias, has_fp16_weights=False, threshold=0.0)
            )
        # On some CPUs it packs the weights again at the first evaluation, even where their sizes do not fit.
        small.support_avx512bf16_for_cpu = False
        small.requires_grad_(False)
        model.set_submodule(name, small)


def fill_quantized(layer: nn.Module, tensor: Tensor, dtype: torch.dtype) -> None:
    """Quantize one weight from its values in `dtype`, on the GPU if available, and put it in place."""
    old = layer.weight
    assert isinstance(old, nn.Parameter)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
    settings = {
        key: value for key, value in vars(old).items() if key not in ("data", "CB", "SCB", "quant_state")
    }
    # A copy: the tensor may be mapped from a file.
    whole = tensor.to(dtype).clone()
    layer.weight = type(old)(whole, requires_grad=False, **settings).to(device)


def is_quantized(module: nn.Module) -> bool:
    """Whether this is a quantized layer."""
    library = sys.modules.get("bitsandbytes")
    return library is not None and isinstance(module, library.nn.Linear4bit | library.nn.Linear8bitLt)


@contextlib.contextmanager
def marked_quantized(model: nn.Module) -> Iterator[None]:
    """Mark a model as quantized, as peft looks for it, while the block runs."""
    library = sys.modules.get("bitsandbytes")
    kinds = {type(module) for module in model.modules() if is_quantized(module)}
    marks = [
        mark
        for mark, kind in (("is_loaded_in_4bit", "Linear4bit"), ("is_loaded_in_8bit", "Linear8bitLt"))
        if library is not None and getattr(library.nn, kind) in kinds
    ]
    for mark in marks:
        setattr(model, mark, True)
    try:
        yield
    finally:
        for mark in marks:
            delattr(model, mark)


def find_obstacle(quantization: Quantization) -> str | None:
    """Why bitsandbytes cannot quantize here, or None: tried on one small layer, on the GPU if available."""
    try:
        import bitsandbytes as bnb

        layer = bnb.nn.Linear4bit(128, 64) if quantization.bits == 4 else bnb.nn.Linear8bitLt(128, 64)
        fill_quantized(layer, torch.ones(64, 128), torch.float32)
    except (ImportError, OSError, RuntimeError, NotImplementedError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None
