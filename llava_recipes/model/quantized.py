"""Linear layers of the language model in 4 or 8 bits, through bitsandbytes, filled one weight at a time."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from llava_recipes.recipe.schema import Quantization

ROOT = "model.language_model."


def quantize_layers(
    model: LlavaForConditionalGeneration, quantization: Quantization, dtype: torch.dtype
) -> None:
    """Put layers of few bits, still empty, in the place of the language model's linear ones.

    They compute in `dtype`. Head, tower and projector stay as they are.
    """
    import bitsandbytes as bnb

    linear = {
        name: module
        for name, module in model.named_modules()
        if name.startswith(ROOT) and type(module) is nn.Linear
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
                # At a threshold above 0 large inputs take another way, which has no use in training.
                else bnb.nn.Linear8bitLt(*shape, bias=has_bias, has_fp16_weights=False, threshold=0.0)
            )
        # On some CPUs it packs the weights anew at the first evaluation, also those of sizes that do not fit.
        small.support_avx512bf16_for_cpu = False
        small.requires_grad_(False)
        model.set_submodule(name, small)


def fill_quantized(layer: nn.Module, tensor: Tensor, dtype: torch.dtype) -> None:
    """Quantize one weight, by `dtype`'s values of it, on the GPU where there is one, and put it in place."""
    old = layer.weight
    assert isinstance(old, nn.Parameter)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
    settings = {
        key: value for key, value in vars(old).items() if key not in ("data", "CB", "SCB", "quant_state")
    }
    # A copy: the tensor may lie in a file that is mapped.
    whole = tensor.to(dtype).clone()
    layer.weight = type(old)(whole, requires_grad=False, **settings).to(device)


def is_quantized(module: nn.Module) -> bool:
    """Whether this is a layer of few bits."""
    library = sys.modules.get("bitsandbytes")
    return library is not None and isinstance(module, library.nn.Linear4bit | library.nn.Linear8bitLt)


@contextlib.contextmanager
def marked_quantized(model: nn.Module) -> Iterator[None]:
    """Show a model's few bits in the way that peft looks for, as long as this lasts."""
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
    """Why bitsandbytes cannot quantize here, or None: tried on one small layer, on the GPU or without."""
    try:
        import bitsandbytes as bnb

        layer = bnb.nn.Linear4bit(128, 64) if quantization.bits == 4 else bnb.nn.Linear8bitLt(128, 64)
        fill_quantized(layer, torch.ones(64, 128), torch.float32)
    except (ImportError, OSError, RuntimeError, NotImplementedError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None
