"""Grids, counts and orders of features against transformers' own functions for LLaVA-NeXT."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches, unpad_image

from llava_recipes.anyres import NEWLINE, AnyRes, MergeType, Size, best_resolution, usual_pinpoints

PX, SIDE = 336, 24
NEXT = usual_pinpoints(PX)
SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
PINPOINTS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=6, unique=True
).map(lambda grids: tuple((columns * PX, rows * PX) for columns, rows in grids))


def _swapped(sizes: tuple[Size, ...]) -> list[list[int]]:
    """As transformers has them: height before width."""
    return [[height, width] for width, height in sizes]


def _spread(merge: MergeType, *, pinpoints: tuple[Size, ...] = NEXT, class_token: bool = False) -> AnyRes:
    return AnyRes(pinpoints, PX, SIDE, class_token, merge)


def test_the_usual_pinpoints_are_those_of_llava_next() -> None:
    assert NEXT == ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


@given(SIZES, PINPOINTS)
def test_the_best_resolution_is_that_of_transformers(size: Size, pinpoints: tuple[Size, ...]) -> None:
    width, height = size
    best = select_best_resolution((height, width), _swapped(pinpoints))
    assert best_resolution(size, pinpoints) == best[::-1]
    crops = image_size_to_num_patches((height, width), _swapped(pinpoints), PX)
    assert _spread("flat", pinpoints=pinpoints).num_crops(size) == crops


def test_the_first_of_equal_resolutions_is_taken() -> None:
    assert best_resolution((100, 100), NEXT) == (336, 672)
    assert best_resolution((100, 100), NEXT[1:]) == (672, 336)


@given(SIZES, st.booleans())
def test_an_unpadded_image_is_read_as_transformers_reads_it(size: Size, unpads: bool) -> None:
    spread = _spread("spatial_unpad" if unpads else "spatial")
    columns, rows = spread.grid(size)
    # Features that are their own place.
    features = torch.arange((1 + columns * rows) * SIDE**2).view(-1, SIDE, SIDE)
    grid = (
        features[1:].view(rows, columns, SIDE, SIDE).transpose(1, 2).reshape(1, rows * SIDE, columns * SIDE)
    )
    if unpads:
        grid = unpad_image(grid, (size[1], size[0]))
        grid = torch.cat([grid, torch.full((1, grid.shape[1], 1), NEWLINE)], dim=2)
    assert spread.order(size) == (*range(SIDE**2), *grid.flatten().tolist())
    assert spread.num_tokens(size) == len(spread.order(size))


@given(SIZES, PINPOINTS, st.sampled_from(["flat", "spatial", "spatial_unpad"]))
def test_no_image_takes_less_than_the_least_or_more_than_the_most(
    size: Size, pinpoints: tuple[Size, ...], merge: MergeType
) -> None:
    spread = _spread(merge, pinpoints=pinpoints)
    tokens, crops = spread.most()
    assert spread.least_tokens() <= spread.num_tokens(size) <= tokens
    assert spread.num_crops(size) <= crops
    assert any(spread.num_tokens(pinpoint) == tokens for pinpoint in pinpoints)


def test_flat_keeps_every_feature_and_class_tokens_too() -> None:
    spread = _spread("flat", class_token=True)
    assert spread.order((100, 900)) == tuple(range(4 * 577))
    assert spread.num_tokens((100, 900)) == 4 * 577


@pytest.mark.parametrize(
    ("size", "grid", "tokens"),
    [
        # Worked out by hand: the whole, and the rows that are left, each with its end.
        ((672, 672), (2, 2), 576 + 48 * 49),
        ((640, 480), (2, 2), 576 + 36 * 49),
        ((1000, 300), (3, 1), 576 + 22 * 73),
        ((5000, 1), (1, 2), 576),
    ],
)
def test_tokens_of_images(size: Size, grid: Size, tokens: int) -> None:
    spread = _spread("spatial_unpad")
    assert (spread.grid(size), spread.num_tokens(size)) == (grid, tokens)
    assert prod(spread.resolution(size)) == prod(grid) * PX**2
