"""From samples to a batch: images expanded, then cut at the longest length, then padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava_recipes.data.crops import ImageLayout
from llava_recipes.data.dataset import Sample
from llava_recipes.data.prompts import IGNORED, IMAGE_ID
from llava_recipes.errors import Mark, Problem, SampleError, sample_problem

SAMPLE_INDEX = "sample_index"


@dataclass(frozen=True)
class Expanded:
    """One sample with positions for its images, cut at the longest length.

    input_ids        int64[T]  0 on image positions
    is_image         bool[T]
    labels           int64[T]
    num_kept_tokens  int64[N]  how many of each image's tokens are left
    num_tokens, num_image_tokens  before the cut: all, and those of the images
    """

    input_ids: Tensor
    is_image: Tensor
    labels: Tensor
    num_kept_tokens: Tensor
    num_tokens: int
    num_images: int
    num_image_tokens: int

    @property
    def learns(self) -> bool:
        """Whether a loss can be computed: nothing predicts the first token."""
        return bool((self.labels[1:] != IGNORED).any())


def expand(
    input_ids: Tensor,
    labels: Tensor,
    *,
    num_image_tokens: Sequence[int],
    max_length: int,
    dropped_token_id: int | None = None,
) -> Expanded:
    """Replace each image by as many positions as it has tokens, then keep the first `max_length`.

    Tokens equal to `dropped_token_id` are left out first: the original pads with the unknown token and takes
    every such token for padding, those of the text too.
    """
    if dropped_token_id is not None:
        is_kept = input_ids != dropped_token_id
        input_ids, labels = input_ids[is_kept], labels[is_kept]
    is_tag = input_ids == IMAGE_ID
    of_images = torch.tensor(num_image_tokens, dtype=torch.int64)
    widths = torch.ones_like(input_ids).masked_scatter(is_tag, of_images)
    starts = widths.cumsum(0) - widths
    kept = torch.minimum((max_length - starts[is_tag]).clamp(min=0), of_images)
    is_image = is_tag.repeat_interleave(widths)[:max_length]
    ids = input_ids.repeat_interleave(widths)[:max_length]
    return Expanded(
        input_ids=ids.masked_fill(is_image, 0),
        is_image=is_image,
        labels=labels.repeat_interleave(widths)[:max_length],
        num_kept_tokens=kept,
        num_tokens=int(widths.sum()),
        num_images=int(is_tag.sum()),
        num_image_tokens=int(widths[is_tag].sum()),
    )


@dataclass(frozen=True)
class Collator:
    """Makes a batch of samples: B of them, T positions in the longest, M crops of images in reading order.

    input_ids        int64[B, T]  0 on image positions, `pad_token_id` on padding
    is_image         bool[B, T]   true where an image's features go
    labels           int64[B, T]  not shifted; -100 where nothing is learned
    attention_mask   bool[B, T]   false on padding only
    position_ids     int64[B, T]  0, 1, 2, … on real tokens, 0 on padding
    pixel_values     float32[M, C, H, W]  only if there are images
    feature_places   int64[K]     which feature of the M crops each image position takes, in reading order;
                                  -1 for the image newline; likewise

    Raises SampleError, naming each sample, when its images fill `max_length`, or nothing of it is left to
    learn after the cut: the loss of such a batch would not be a number. `mark_of` says where a sample is.
    """

    layout: ImageLayout
    max_length: int
    pad_token_id: int
    padding_side: Literal["left", "right"] = "right"
    dropped_token_id: int | None = None
    mark_of: Callable[[int], Mark] | None = None

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        expanded = [self._expanded(sample) for sample in samples]
        self.check(samples, expanded)

        def padded(rows: list[Tensor], value: float) -> Tensor:
            return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=self.padding_side)

        batch = {
            "input_ids": padded([row.input_ids for row in expanded], self.pad_token_id),
            "is_image": padded([row.is_image for row in expanded], False),
            "labels": padded([row.labels for row in expanded], IGNORED),
            "attention_mask": padded([torch.ones_like(row.is_image) for row in expanded], False),
            "position_ids": padded([torch.arange(len(row.input_ids)) for row in expanded], 0),
        }
        images = [image for sample in samples for image in sample.images]
        if images:
            kept = torch.cat([row.num_kept_tokens for row in expanded]).tolist()
            batch["pixel_values"] = torch.cat([image.crops for image in images])
            batch["feature_places"] = self.layout.feature_places(images, kept)
        return batch

    def check(self, samples: Sequence[Sample], expanded: Sequence[Expanded]) -> None:
        """Raise SampleError when nothing of a sample can be learned."""
        pairs = zip(samples, expanded, strict=True)
        problems = [self._problem(sample, row) for sample, row in pairs if not row.learns]
        if problems:
            raise SampleError(*problems)

    def _expanded(self, sample: Sample) -> Expanded:
        return expand(
            sample.input_ids,
            sample.labels,
            num_image_tokens=[self.layout.num_tokens(image) for image in sample.images],
            max_length=self.max_length,
            dropped_token_id=self.dropped_token_id,
        )

    def _problem(self, sample: Sample, expanded: Expanded) -> Problem:
        code, message = "nothing-is-learned", "nothing of it is learned after the cut at `max_length`"
        taken, hint = f"{expanded.num_tokens:,} tokens", "raise `max_length`, or shorten or remove the sample"
        if expanded.num_image_tokens >= self.max_length:
            code, message = "images-leave-no-room", "its images leave no room for text"
            taken = images_take(expanded.num_images, expanded.num_image_tokens)
            hint = "raise `max_length`, or use fewer images"
        mark = None if self.mark_of is None else self.mark_of(sample.index)
        found = f"{taken}, max_length is {self.max_length:,}"
        return sample_problem(sample.index, sample.id, message, code=code, mark=mark, found=found, hint=hint)


@dataclass(frozen=True)
class IndexedCollator:
    """A batch and, as `sample_index` int64[B], which samples it has; that entry is not for the model."""

    collator: Callable[[Sequence[Sample]], dict[str, Tensor]]

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        return {**self.collator(samples), SAMPLE_INDEX: torch.tensor([sample.index for sample in samples])}


def images_take(num_images: int, num_tokens: int) -> str:
    """`3 images take 1,728 tokens`."""
    images = "1 image takes" if num_images == 1 else f"{num_images:,} images take"
    return f"{images} {num_tokens:,} tokens"
