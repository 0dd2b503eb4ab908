"""Whether an export computes the logits of its run, for the same prompt and image, in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from llava_recipes.data.crops import prepare_image
from llava_recipes.data.prompts import IMAGE_ID, Prompts
from llava_recipes.errors import RecipeError
from llava_recipes.layouts import IMAGE
from llava_recipes.recipe.scalars import say_number
from llava_recipes.templates import Turn
from llava_recipes.use.opened import OpenedRun

QUESTION = "What is in this image?"
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Expected:
    """The run's inputs and logits for the prompt and the image.

    input_ids     int64[T]  -200 at every position of the image
    pixel_values  float32[M, C, H, W]  the image; with `anyres` its crops too
    places        int64[K]  the feature at each position of the image, -1 for the newline
    logits        float32[T, V]
    """

    input_ids: Tensor
    pixel_values: Tensor
    places: Tensor
    logits: Tensor


def drawn_image() -> Image.Image:
    """An image with smooth and sharp parts, wider than high, always the same."""
    rows, columns = np.mgrid[0:160, 0:240]
    pixels = np.stack([rows, columns, (rows * columns) // 40], axis=-1) % 256
    pixels[40:90, 60:140] = (230, 40, 60)
    return Image.fromarray(pixels.astype(np.uint8))


def expected_of(run: OpenedRun) -> Expected:
    """What the run computes, in float32 for weights of any dtype. Raises RecipeError unless it is finite."""
    assembled = run.assembled
    prompts = Prompts(run.data, assembled.tokenizer, start_end=run.plan.image_tokens.start_end)
    question = IMAGE if run.data.template == "plain" else f"{IMAGE}\n{QUESTION}"
    prompt_ids = prompts.encode_prompt([Turn("human", question)], has_image=True)
    layout = assembled.image_layout(run.data)
    prepared = prepare_image(drawn_image(), assembled.image_processor, run.data)
    input_ids = expanded(prompt_ids, layout.num_tokens(prepared))
    places = layout.places(prepared)
    logits = own_logits(assembled.model, input_ids, prepared.crops, places)
    if not logits.isfinite().all():
        raise RecipeError.of(
            "the model's logits aren't finite, so an export cannot be checked",
            code="logits-not-finite",
            found=f"{run.path}: NaN or infinity in the logits of a test prompt",
            hint="its weights, or those of its base, are damaged: download or train them again",
        )
    return Expected(input_ids, prepared.crops, places, logits)


def expanded(prompt_ids: Sequence[int], num_image_tokens: int) -> Tensor:
    """int64[T]: a prompt with every -200 repeated for each position of the image."""
    return torch.tensor(
        [token for id in prompt_ids for token in [id] * (num_image_tokens if id == IMAGE_ID else 1)]
    )


@torch.no_grad()
def own_logits(
    model: LlavaForConditionalGeneration,
    input_ids: Tensor,
    pixel_values: Tensor,
    feature_places: Tensor | None = None,
) -> Tensor:
    """float32[T, V]: logits by the forward of training."""
    is_image = (input_ids == IMAGE_ID)[None]
    with in_float32(model):
        output = model(
            input_ids=input_ids[None].masked_fill(is_image, 0),
            is_image=is_image,
            pixel_values=pixel_values,
            feature_places=feature_places,
        )
    logits: Tensor = output.logits[0]
    return logits


def largest_difference(expected: Expected, logits: Tensor) -> float:
    """The largest difference of two models' logits, relative to the largest logit if that is above 1.

    Rows that an export added to the vocabulary are ignored.
    """
    ours, theirs = expected.logits, logits[:, : expected.logits.shape[1]]
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
    scale = max(1.0, float(ours.abs().max()))
    return float((ours - theirs).abs().max()) / scale


def check_logits(expected: Expected, logits: Tensor) -> float:
    """The largest difference; raises RecipeError if it is too large."""
    difference = largest_difference(expected, logits)
    # `not <=` is also true of NaN.
    if not difference <= TOLERANCE:
        raise RecipeError.of(
            "the exported model computes other logits than the run, so the export was removed",
            code="export-answers-otherwise",
            found=f"they differ by {say_number(difference, digits=2)}; {say_number(TOLERANCE)} is allowed",
        )
    return difference


@contextlib.contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Compute in float32 with narrower weights: each layer's weights are widened only while it runs."""
    handles = []
    # The forward reads the projector's dtype before it calls it.
    projector = [
        parameter
        for name, parameter in model.named_parameters()
        if name.startswith("model.multi_modal_projector.")
    ]
    kept = [parameter.data for parameter in projector]
    for parameter in projector:
        parameter.data = parameter.data.float()
    for unit in _units(model):
        narrow = [parameter for parameter in unit.parameters() if parameter.dtype != torch.float32]
        if not narrow:
            continue
        stored = [parameter.data for parameter in narrow]

        def widen(*_: object, narrow: list[nn.Parameter] = narrow) -> None:
            for parameter in narrow:
                parameter.data = parameter.data.float()

        def restore(*_: object, narrow: list[nn.Parameter] = narrow, stored: list[Tensor] = stored) -> None:
            for parameter, data in zip(narrow, stored, strict=True):
                parameter.data = data

        handles += [
            unit.register_forward_pre_hook(widen),
            unit.register_forward_hook(restore, always_call=True),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, data in zip(projector, kept, strict=True):
            parameter.data = data


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """The parts of a model that run one after another: the layers of its stacks, and the rest."""
    if not any(isinstance(each, nn.ModuleList) for each in module.modules()):
        yield module
        return
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _units(child)
