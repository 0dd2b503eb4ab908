"""Images of any size: the grid of crops that an image is split into, and the order of their features.

An image becomes one crop of the whole and, row by row, the crops of a grid. Sizes are width and height in
pixels, as in the original. Follows `process_anyres_image` and `prepare_inputs_labels_for_multimodal` of
LLaVA-NeXT; padding is counted as in transformers, which rounds where the original truncates.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

Size = tuple[int, int]
MergeType = Literal["flat", "spatial", "spatial_unpad"]

NEWLINE: Final = -1
"""In an order of features: the learned end of a row."""

USUAL_SIZE: Final[Size] = (640, 480)
"""The size that is assumed for images of unknown size: that of COCO's photos."""

_USUAL_GRIDS: Final = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


def usual_pinpoints(image_px: int) -> tuple[Size, ...]:
    """LLaVA-NeXT's five grids for crops of `image_px`."""
    return tuple((columns * image_px, rows * image_px) for columns, rows in _USUAL_GRIDS)


def best_resolution(size: Size, pinpoints: Iterable[Size]) -> Size:
    """The pinpoint that keeps most of an image's pixels; of several, the one with the least padding.

    Of equals, the first: the order of pinpoints matters.
    """
    width, height = size
    best, best_rank = None, (-1, 0)
    for across, down in pinpoints:
        scale = min(across / width, down / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        rank = (kept, kept - across * down)
        if best is None or rank > best_rank:
            best, best_rank = (across, down), rank
    assert best is not None, "there are no pinpoints"
    return best


@dataclass(frozen=True)
class AnyRes:
    """How an image is split into crops, and how their features become a sequence.

    A crop of `image_px` pixels has `side` × `side` features, and one more before them with `class_token`.
    """

    pinpoints: tuple[Size, ...]
    image_px: int
    side: int
    class_token: bool
    merge: MergeType

    def resolution(self, size: Size) -> Size:
        """The size that an image is resized and padded to."""
        return best_resolution(size, self.pinpoints)

    def grid(self, size: Size) -> Size:
        """Crops across and down, without the one of the whole."""
        across, down = self.resolution(size)
        return across // self.image_px, down // self.image_px

    def num_crops(self, size: Size) -> int:
        """Number of crops that the tower sees: the whole image, and those of the grid."""
        columns, rows = self.grid(size)
        return 1 + columns * rows

    def num_tokens(self, size: Size) -> int:
        """Number of tokens of an image in the sequence."""
        if self.merge == "flat":
            return self.num_crops(size) * self._crop_features
        left, top, right, bottom = self._window(size)
        per_row = right - left + (self.merge == "spatial_unpad")
        return self._crop_features + (bottom - top) * per_row

    def order(self, size: Size) -> tuple[int, ...]:
        """For each of an image's `num_tokens(size)` tokens, its index in the features of all crops in order.

        NEWLINE at the end of a row.
        """
        columns, rows = self.grid(size)
        if self.merge == "flat":
            return tuple(range((1 + columns * rows) * self._crop_features))
        return _spatial_order(columns, self.side, self._window(size), self.merge == "spatial_unpad")

    def most(self) -> tuple[int, int]:
        """Tokens and crops of the largest possible image, which fills a grid."""
        return max(map(self.num_tokens, self.pinpoints)), max(map(self.num_crops, self.pinpoints))

    def least_tokens(self) -> int:
        """Fewest tokens of any image: of a very thin one only the whole is left."""
        if self.merge == "spatial_unpad":
            return self._crop_features
        return min(map(self.num_tokens, self.pinpoints))

    @property
    def _crop_features(self) -> int:
        return self.side**2 + self.class_token

    def _window(self, size: Size) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the part of the grid's features that the image covers."""
        columns, rows = self.grid(size)
        across, down = columns * self.side, rows * self.side
        if self.merge == "spatial":
            return 0, 0, across, down
        width, height = size
        if width / height > across / down:
            padding = (down - int(round(height * (across / width), 7))) // 2
            return 0, padding, across, down - padding
        padding = (across - int(round(width * (down / height), 7))) // 2
        return padding, 0, across - padding, down


@functools.lru_cache(maxsize=1024)
def _spatial_order(
    columns: int, side: int, window: tuple[int, int, int, int], newline: bool
) -> tuple[int, ...]:
    def places() -> Iterator[int]:
        yield from range(side**2)
        left, top, right, bottom = window
        for y in range(top, bottom):
            for x in range(left, right):
                crop = 1 + y // side * columns + x // side
                yield crop * side**2 + y % side * side + x % side
            if newline:
                yield NEWLINE

    return tuple(places())
