"""Single embeddings that train while all others stay: the image tokens' rows and the image newline."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.model.checkpoint import open_checkpoint
from llava_recipes.model.placing import full_shape, is_first_process, is_partitioned, overwrite
from llava_recipes.model.weight_names import canonical_parameters
from llava_recipes.plan.trainable import NUM_TOKENS
from llava_recipes.templates import IMAGE_END, IMAGE_START

ORIGINAL_KEY = "model.embed_tokens.weight"
"""The original's name for the image tokens in a projector's file; elsewhere, for all embeddings."""
IMAGE_NEWLINE = "image_newline"
"""The canonical name of the image newline."""
_NEWLINE_NAMES = ("model.image_newline", "image_newline")
"""Its name in the original's whole checkpoints, and in Hugging Face's."""
_APART = int.from_bytes(b"newline", "big")


class ImageTokenRows(nn.Module):
    """Embeddings of a few tokens, which replace the model's own for these tokens."""

    def __init__(self, weight_ND: Tensor, token_ids: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_ND)
        self.token_ids = token_ids

    def forward(self, input_ids_BT: Tensor, embeds_BTD: Tensor) -> Tensor:
        """float[B, T, D], in the dtype of `embeds_BTD` and equal to it for every other token."""
        is_token_NBT = torch.stack([input_ids_BT == token for token in self.token_ids])
        row_BT = is_token_NBT.int().argmax(dim=0)
        # Looked up for every token: the graph is the same for every batch.
        rows_BTD = embedding(row_BT, self.weight).to(embeds_BTD.dtype)
        return torch.where(is_token_NBT.any(dim=0)[..., None], rows_BTD, embeds_BTD)


def remember_image_tokens(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
    """Note on the model which rows of its embeddings belong to `<im_start>` and `<im_end>`."""
    known = tokenizer.get_vocab()
    model.image_token_ids = tuple(known[token] for token in (IMAGE_START, IMAGE_END) if token in known)


def free_image_tokens(model: LlavaForConditionalGeneration) -> None:
    """Make the rows of `<im_start>` and `<im_end>` a parameter of their own, with their current values.

    Under ZeRO-3 all processes call this.
    """
    embeddings = model.get_input_embeddings()
    rows = ImageTokenRows(read_image_tokens(model), model.image_token_ids)
    model.model.image_tokens = rows

    def put(module: nn.Module, given: tuple[Tensor, ...], embeds_BTD: Tensor) -> Tensor:
        placed: Tensor = rows(given[0], embeds_BTD)
        return placed

    embeddings.register_forward_hook(put)


def read_image_tokens(model: LlavaForConditionalGeneration) -> Tensor:
    """float[2, D]: the embeddings of `<im_start>` and `<im_end>`, a copy on the CPU.

    Under ZeRO-3 all processes call this.
    """
    free = getattr(model.model, "image_tokens", None)
    weight = model.get_input_embeddings().weight if free is None else free.weight
    with _whole(weight):
        rows: Tensor = weight.detach()
        return (rows if free is not None else rows[list(model.image_token_ids)]).to("cpu", copy=True)


@torch.no_grad()
def write_image_tokens(
    model: LlavaForConditionalGeneration, rows: Tensor, *, path: KeyPath, found: str
) -> None:
    """Overwrite the embeddings of the image tokens with those of a finished stage or of the original.

    rows  float[2, D], or float[V, D] of the whole vocabulary: the original accepts both.
    Under ZeRO-3 all processes call this. Raises RecipeError when the model has no such tokens, or `rows` has
    another shape.
    """
    weight = model.get_input_embeddings().weight
    problem = rows_problem(
        tuple(rows.shape),
        embeddings=full_shape(weight),
        has_tokens=bool(model.image_token_ids),
        path=path,
        found=found,
    )
    if problem is not None:
        raise RecipeError(problem)
    with _whole(weight, written=True):
        if is_first_process() or not is_partitioned(weight):
            ids = list(model.image_token_ids)
            weight[ids] = (rows if len(rows) == NUM_TOKENS else rows[ids]).to(weight)


def rows_problem(
    rows: tuple[int, ...], *, embeddings: tuple[int, ...], has_tokens: bool, path: KeyPath, found: str
) -> Problem | None:
    """Why a file's embeddings of image tokens, of shape `rows`, do not fit the model's; None when they do."""
    if not has_tokens:
        return Problem(
            "these weights contain embeddings of `<im_start>` and `<im_end>`, which the model does not have",
            code="image-tokens-do-not-fit",
            path=path,
            found=found,
            hint="write `image_tokens: {start_end: true}` in `model:`",
        )
    few = (NUM_TOKENS, embeddings[1])
    if rows not in (few, embeddings):
        return Problem(
            "these embeddings of image tokens do not fit the model",
            code="image-tokens-do-not-fit",
            path=path,
            found=f"{found} contains {list(rows)}",
            hint=f"the shape must be {list(few)}, or {list(embeddings)} for the whole vocabulary",
        )
    return None


@contextlib.contextmanager
def _whole(parameter: nn.Parameter, *, written: bool = False) -> Iterator[None]:
    if not is_partitioned(parameter):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if written else None):
        yield


class ImageNewline(nn.Module):
    """The embedding that ends a row of crops. A module of its own, so that ZeRO-3 fetches it when called."""

    def __init__(self, hidden_size: int, *, seed: int) -> None:
        """float32, normal with LLaVA-NeXT's deviation of 1 / sqrt(hidden size), drawn from `seed` only."""
        super().__init__()
        # Other numbers than the projector's, which are drawn from the same seed.
        generator = torch.Generator().manual_seed(seed ^ _APART)
        values = torch.randn(hidden_size, generator=generator, device="cpu", dtype=torch.float32)
        self.weight = nn.Parameter(values / hidden_size**0.5)

    def forward(self, features_RD: Tensor) -> Tensor:
        """float[R + 1, D]: the features and, last, the newline in their dtype."""
        return torch.cat([features_RD, self.weight[None].to(features_RD.dtype)])


def image_newline(model: LlavaForConditionalGeneration) -> ImageNewline | None:
    """The model's newline, or None."""
    found: ImageNewline | None = getattr(model.model, "image_newline", None)
    return found


def load_newline(model: LlavaForConditionalGeneration, folder: pathlib.Path) -> None:
    """Fill the model's newline from a whole checkpoint that contains one; else it keeps its values.

    Under ZeRO-3 all processes call this. Raises RecipeError when the checkpoint's has another size.
    """
    if image_newline(model) is None:
        return
    path = ("model", "language_model")
    source = open_checkpoint(folder, path)
    name = next((name for name in _NEWLINE_NAMES if name in source.names()), None)
    if name is None:
        return
    parameter, given = canonical_parameters(model)[IMAGE_NEWLINE], source.read(name)
    wanted = full_shape(parameter)
    if tuple(given.shape) != wanted:
        found = f"{name} in {folder} has shape {list(given.shape)}, the model's has {list(wanted)}"
        message = "the image newline of a checkpoint does not fit the model"
        raise RecipeError.of(message, code="weights-do-not-fit", path=path, found=found)
    overwrite(parameter, lambda: given)
