"""Images cut into crops, against LLaVA-NeXT's way with Pillow, and the places of their features."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import JsonValue
from torch import Tensor
from transformers import BaseImageProcessor

from llava_recipes.anyres import NEWLINE, AnyRes, MergeType, Size, best_resolution, usual_pinpoints
from llava_recipes.data.crops import ImageLayout, PreparedImage, check_crops, crop_px, prepare_image
from llava_recipes.data.dataset import Sample
from llava_recipes.data.images import load_image_processor, pixel_values
from llava_recipes.data.prompts import IGNORED, IMAGE_ID
from llava_recipes.errors import RecipeError
from llava_recipes.plan.types import DataPlan, SourcePlan
from llava_recipes.recipe.schema import VisionTower
from tests.images import read_image
from tests.lenient import LenientCollator
from tests.tiny import FIXTURES, GOLDEN

IMAGES = str(FIXTURES / "images")


def data_plan(**changes: Any) -> DataPlan:
    values: dict[str, Any] = {
        "template": "plain",
        "sources": (SourcePlan(annotations="a.json", images="i", num_samples=None),),
        "num_samples": None,
        "image_aspect_ratio": "anyres",
        "max_length": 2048,
        "shuffle": False,
        "group_by": "none",
        "on_bad_image": "error",
        "lazy_preprocess": True,
    }
    return DataPlan(**(values | changes))


def processor_of(config: dict[str, JsonValue] | None) -> BaseImageProcessor:
    source = {"config": config} if config else {"source": str(FIXTURES / "tiny_clip")}
    return load_image_processor(VisionTower.model_validate(source))


def by_pillow(
    image: Image.Image, processor: BaseImageProcessor, pinpoints: tuple[Size, ...], px: int
) -> Tensor:
    """As the original: the whole squeezed to a square, then the crops of the image on a black page."""
    across, down = best_resolution(image.size, pinpoints)
    width, height = image.size
    if across / width < down / height:
        shown = across, min(math.ceil(height * (across / width)), down)
    else:
        shown = min(math.ceil(width * (down / height)), across), down
    page = Image.new("RGB", (across, down))
    page.paste(image.resize(shown), ((across - shown[0]) // 2, (down - shown[1]) // 2))
    corners = [(x, y) for y in range(0, down, px) for x in range(0, across, px)]
    parts = [image.resize((px, px)), *(page.crop((x, y, x + px, y + px)) for x, y in corners)]
    return torch.stack([pixel_values(part, processor, image_aspect_ratio="square") for part in parts])


def samples_of_golden() -> list[dict[str, Any]]:
    samples: list[dict[str, Any]] = json.loads((GOLDEN / "02_images/anyres.json").read_text())["samples"]
    assert len(samples) >= 24
    return samples


@pytest.mark.parametrize(
    "config",
    [
        None,
        {"model_type": "siglip_vision_model", "image_size": 48},
        {"model_type": "clip_vision_model", "image_size": 112},
    ],
    ids=["clip56", "siglip48", "clip112"],
)
def test_crops_are_the_originals(config: dict[str, JsonValue] | None) -> None:
    processor, data = processor_of(config), data_plan()
    px = crop_px(processor)
    names = sorted({sample["image"] for sample in samples_of_golden()})
    grids = set()
    for name in names:
        image = read_image(IMAGES, name)
        found = prepare_image(image, processor, data)
        assert found.size == image.size and found.crops.dtype == torch.float32
        torch.testing.assert_close(
            found.crops, by_pillow(image, processor, usual_pinpoints(px), px), rtol=0, atol=1e-6
        )
        grids.add(best_resolution(image.size, usual_pinpoints(px)))
    assert len(grids) >= 3


def test_the_whole_of_a_square_image_has_the_golden_pixels() -> None:
    """The recorded code takes `anyres` for `square`: for a square image that is the whole, squeezed."""
    processor, squares = processor_of(None), 0
    for sample in samples_of_golden():
        width, height = sample["size_wh"]
        if width != height:
            continue
        squares += 1
        crops = prepare_image(read_image(IMAGES, sample["image"]), processor, data_plan()).crops
        assert crops[0].double().sum().item() == pytest.approx(sample["sum"], abs=1e-2)
        assert crops[0].flatten()[:5].tolist() == pytest.approx(sample["first5"], abs=1e-5)
    assert squares >= 2


def test_pinpoints_of_the_recipe_decide() -> None:
    processor, image = processor_of(None), Image.new("RGB", (60, 60), "white")
    crops = prepare_image(image, processor, data_plan(image_grid_pinpoints=((168, 112),))).crops
    assert list(crops.shape) == [7, 3, 56, 56]
    square = prepare_image(image, processor, data_plan(image_aspect_ratio="square"))
    assert list(square.crops.shape) == [1, 3, 56, 56]


def test_grids_and_processors_of_another_size_are_refused() -> None:
    processor = processor_of(None)
    check_crops(data_plan(image_grid_pinpoints=((112, 56),)), processor, 56)
    with pytest.raises(RecipeError) as caught:
        check_crops(data_plan(image_grid_pinpoints=((112, 56), (100, 56))), processor, 56)
    (problem,) = caught.value.problems
    assert (problem.found, problem.hint) == (
        "[100, 56], but the tower takes 56 × 56 pixels",
        "write [112, 56]",
    )
    with pytest.raises(RecipeError, match="makes images of the tower's size"):
        check_crops(data_plan(), processor, 28)


SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))
TEXT = st.lists(st.integers(1, 9), max_size=4)


@given(
    samples=st.lists(st.lists(st.tuples(TEXT, SIZES), max_size=3), min_size=1, max_size=3),
    merge=st.sampled_from(["flat", "spatial", "spatial_unpad"]),
    max_length=st.integers(1, 90),
    left=st.booleans(),
)
def test_a_batch_holds_each_images_own_tokens_cut_where_the_text_is(
    samples: list[list[tuple[list[int], Size]]], merge: MergeType, max_length: int, left: bool
) -> None:
    """By hand: every position of a sample, written out with its image's order, then cut."""
    px, side = 8, 2
    spread = AnyRes(usual_pinpoints(px), px, side, False, merge)
    layout = ImageLayout(side**2, spread)
    rows, expected, start = [], [], 0
    for index, parts in enumerate(samples):
        ids: list[int] = [1]
        spelled: list[tuple[int, int | None]] = [(1, None)]
        images = []
        for text, size in parts:
            ids += [*text, IMAGE_ID]
            spelled += [(token, None) for token in text]
            order = spread.order(size)
            spelled += [(0, place if place == NEWLINE else place + start) for place in order]
            images.append(PreparedImage(torch.zeros(spread.num_crops(size), 3, 1, 1), size))
            start += spread.num_crops(size) * side**2
        labels = torch.tensor([IGNORED if token == IMAGE_ID else token for token in ids])
        rows.append(Sample(index, "", torch.tensor(ids), labels, tuple(images)))
        expected.append(spelled[:max_length])
    batch = LenientCollator(
        layout=layout, max_length=max_length, pad_token_id=0, padding_side="left" if left else "right"
    )(rows)
    for number, spelled in enumerate(expected):
        real = batch["attention_mask"][number]
        assert batch["input_ids"][number][real].tolist() == [token for token, _ in spelled]
        assert batch["is_image"][number][real].tolist() == [place is not None for _, place in spelled]
    places = [place for spelled in expected for _, place in spelled if place is not None]
    assert batch.get("feature_places", torch.tensor([], dtype=torch.int64)).tolist() == places
    if "pixel_values" in batch:
        assert len(batch["pixel_values"]) * side**2 == start


def test_crops_that_do_not_fit_the_layout_are_a_bug() -> None:
    layout = ImageLayout(4, AnyRes(usual_pinpoints(8), 8, 2, False, "flat"))
    with pytest.raises(AssertionError, match="1 crops, the layout has 3"):
        layout.num_tokens(PreparedImage(torch.zeros(1, 3, 8, 8), (8, 16)))
