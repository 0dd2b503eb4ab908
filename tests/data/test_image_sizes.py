"""What an image becomes on its way to the tower: the sizes that are computed are the sizes that come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import JsonValue
from transformers import BaseImageProcessor, CLIPImageProcessorPil

from llava_recipes.data import images
from llava_recipes.data.image_sizes import (
    MAX_PADDED_PX,
    MAX_PIXELS,
    CannotPrepare,
    check_preparation,
    steps_of,
)
from llava_recipes.data.images import load_image_processor, pixel_values
from llava_recipes.recipe.schema import VisionTower
from tests.laws import examples

SETTINGS: list[dict[str, JsonValue]] = [
    {"size": {"shortest_edge": 20}},
    {"size": {"shortest_edge": 20, "longest_edge": 50}},
    {"size": {"height": 14, "width": 30}},
    {"size": {"max_height": 40, "max_width": 60}},
    {"do_resize": False},
]


def processor(
    model_type: str = "clip_vision_model", px: int = 336, **settings: JsonValue
) -> BaseImageProcessor:
    config: dict[str, JsonValue] = {"model_type": model_type, "image_size": px}
    return load_image_processor(
        VisionTower.model_validate({"config": config, "image_processor": settings or None})
    )


sizes = st.tuples(st.integers(5, 120), st.integers(5, 120))


@examples(100)
@given(size=sizes, settings=st.sampled_from(SETTINGS))
def test_the_computed_size_is_the_one_that_comes(size: tuple[int, int], settings: dict[str, Any]) -> None:
    prepare = processor(do_center_crop=False, **settings)
    made = pixel_values(Image.new("RGB", size), prepare, image_aspect_ratio="square")
    assert steps_of(prepare).resized(size) == (made.shape[2], made.shape[1])


@examples(40)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    settings=st.sampled_from([settings for settings in SETTINGS if "size" in settings]),
    resample=st.integers(0, 5),
    crop=st.booleans(),
    seed=st.integers(0, 9),
)
def test_a_square_in_strips_gives_the_same_pixels(
    size: tuple[int, int], settings: dict[str, Any], resample: int, crop: bool, seed: int
) -> None:
    """What is done with large images, against what is done with the others."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    prepare = processor(resample=resample, do_center_crop=crop, **settings)
    whole = pixel_values(image, prepare, image_aspect_ratio="pad")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_WHOLE_SQUARE_PX", 0)
        patch.setattr(images, "_STRIP_PIXELS", 7 * max(size))
        assert whole.equal(pixel_values(image, prepare, image_aspect_ratio="pad"))


@pytest.mark.parametrize("ratio", ["square", "pad"])
@pytest.mark.parametrize("size", [(640, 480), (8192, 8192), (1080, 20_000), (500, 10_000), (3, 40), (1, 500)])
def test_what_data_holds_passes(size: tuple[int, int], ratio: Any) -> None:
    for prepare in (processor(), processor("siglip_vision_model", 384)):
        check_preparation(size, prepare, image_aspect_ratio=ratio)


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize(
    ("size", "ratio", "message"),
    [
        (
            (1, 3000),
            "square",
            "it is too thin: 1 x 3,000 pixels would be resized to 336 x 1,008,000, 67,108,864",
        ),
        ((1, 60_000), "square", "too thin"),
        (
            (2, 60_000),
            "pad",
            "too thin: 2 x 60,000 pixels would be padded to 60,000 x 60,000, 24,576 x 24,576",
        ),
    ],
)
def test_a_thin_image_is_refused(size: tuple[int, int], ratio: Any, message: str, turn: bool) -> None:
    wide = (size[1], size[0])
    with pytest.raises(CannotPrepare) as caught:
        check_preparation(wide if turn else size, processor(), image_aspect_ratio=ratio)
    if not turn:
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"size": {"shortest_edge": 10_000}},
            "too large: 64 x 64 pixels would be resized to 10,000 x 10,000",
        ),
        ({"size": {"height": 10**9, "width": 1}}, "resized to 1 x 1,000,000,000"),
        ({"crop_size": {"height": 10**5, "width": 10**5}}, "padded to 100,000 x 100,000"),
        ({"size": {"max_height": 1, "max_width": 1}}, None),
    ],
)
def test_settings_that_make_too_much_are_refused(settings: dict[str, Any], message: str | None) -> None:
    # A recipe's and a folder's settings are refused before, in `load_image_processor`.
    prepare: BaseImageProcessor = CLIPImageProcessorPil.from_dict(settings)
    if message is None:
        check_preparation((64, 64), prepare, image_aspect_ratio="square")
        return
    with pytest.raises(CannotPrepare) as caught:
        check_preparation((64, 64), prepare, image_aspect_ratio="square")
    assert message in str(caught.value)


def test_the_bounds_do_not_contradict_one_another() -> None:
    """The largest image that is decoded can be padded, and no image that passes makes a larger one."""
    assert int(MAX_PIXELS**0.5) ** 2 == MAX_PIXELS
    assert MAX_PADDED_PX > MAX_PIXELS**0.5
    with pytest.raises(CannotPrepare):
        check_preparation((1, MAX_PADDED_PX + 1), processor(), image_aspect_ratio="pad")
    check_preparation((1, MAX_PADDED_PX), processor(), image_aspect_ratio="pad")
    # Without a resize the square would have to be made as a whole.
    with pytest.raises(CannotPrepare):
        check_preparation((1, 9000), processor(do_resize=False), image_aspect_ratio="pad")
