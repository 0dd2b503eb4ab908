"""Tokens that a model plan adds for images, and their first embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from llava_recipes.data.tokenizer import load_tokenizer
from llava_recipes.plan.types import ModelPlan
from llava_recipes.recipe.schema import ImageTokens

IMAGE_TOKEN = "<image>"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and how far it outgrows the language model: ids `first_new` up to `end_new` are new."""

    tokenizer: PreTrainedTokenizerBase
    first_new: int
    end_new: int

    def vocab_size(self, config: PreTrainedConfig) -> int:
        """Rows that the embeddings need: the config's, or more where the new tokens do not fit."""
        size: int = config.vocab_size
        return max(size, self.end_new) if self.end_new > self.first_new else size

    def image_token_id(self) -> int:
        """An id that stands for images in configs: that of `<image>`, of unknown, or of padding."""
        known = self.tokenizer.get_vocab().get(IMAGE_TOKEN)
        for candidate in (known, self.tokenizer.unk_token_id, self.tokenizer.pad_token_id):
            if isinstance(candidate, int):
                return candidate
        return 0


def plan_vocabulary(plan: ModelPlan) -> Vocabulary:
    """The plan's tokenizer with its image tokens."""
    tokenizer = load_tokenizer(plan.language_model, plan.image_tokens)
    if not (plan.image_tokens.start_end or plan.image_tokens.patch):
        return Vocabulary(tokenizer, len(tokenizer), len(tokenizer))
    without = load_tokenizer(plan.language_model, ImageTokens.model_construct(start_end=False, patch=False))
    return Vocabulary(tokenizer, len(without), len(tokenizer))


def with_new_rows(rows: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Embedding rows (or head biases) with each new token's row set to the mean of the rows before it.

    rows  float[V, ...], V the size before the new tokens; returns float[max(V, end_new), ...]
    """
    if vocabulary.first_new == vocabulary.end_new:
        return rows
    known = rows[: vocabulary.first_new]
    mean = known.to(torch.float32).mean(dim=0).to(rows.dtype)
    num_new = vocabulary.end_new - vocabulary.first_new
    return torch.cat([known, mean.expand(num_new, *rows.shape[1:]), rows[vocabulary.end_new :]])


def with_mean_rows(rows: Tensor, num_rows: int) -> Tensor:
    """Embedding or head rows, with their mean in as many more as make `num_rows`.

    The logit of a mean row is the mean of the logits, so that no such token is ever the likeliest.
    """
    if rows.shape[0] >= num_rows:
        return rows
    mean = rows.detach().to(torch.float32).mean(dim=0).to(rows.dtype)
    return torch.cat([rows, mean.expand(num_rows - rows.shape[0], *rows.shape[1:])])
