"""Pixel values against the original's, and images that must be refused."""

from __future__ import annotations

import io
import json
import os
import struct
import time
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import JsonValue
from transformers import BaseImageProcessor

from llava_recipes.data import images
from llava_recipes.data.image_sizes import MAX_PIXELS
from llava_recipes.data.images import (
    MAX_FILE_BYTES,
    BadImage,
    load_image_processor,
    mean_color,
    pixel_values,
    read_prepared,
)
from llava_recipes.errors import RecipeError
from llava_recipes.recipe.schema import VisionTower
from tests.images import decode_image, read_image
from tests.tiny import FIXTURES, GOLDEN

IMAGES = str(FIXTURES / "images")
TOLERANCE = 1e-6


@cache
def tiny_processor() -> BaseImageProcessor:
    return load_image_processor(VisionTower.model_validate({"source": str(FIXTURES / "tiny_clip")}))


def inline(model_type: str, image_px: int, **settings: JsonValue) -> BaseImageProcessor:
    config: dict[str, JsonValue] = {"model_type": model_type, "image_size": image_px}
    return load_image_processor(
        VisionTower.model_validate({"config": config, "image_processor": settings or None})
    )


def golden(name: str) -> list[dict[str, Any]]:
    samples: list[dict[str, Any]] = json.loads((GOLDEN / f"02_images/{name}.json").read_text())["samples"]
    assert len(samples) >= 24
    return samples


@pytest.mark.parametrize("name", ["square", "pad", "clip336"])
def test_every_image_has_the_originals_pixels(name: str) -> None:
    processor = inline("clip_vision_model", 336) if name == "clip336" else tiny_processor()
    for sample in golden(name):
        ratio = sample.get("image_aspect_ratio", name)
        pixels = pixel_values(read_image(IMAGES, sample["image"]), processor, image_aspect_ratio=ratio)
        assert list(pixels.shape) == sample["shape"]
        assert pixels.dtype == torch.float32
        slack = TOLERANCE * pixels.numel()
        assert pixels.double().sum().item() == pytest.approx(sample["sum"], abs=slack), sample["image"]
        assert pixels.double().abs().sum().item() == pytest.approx(sample["abs_sum"], abs=slack)
        if "first5" in sample:
            assert pixels.flatten()[:5].tolist() == pytest.approx(sample["first5"], abs=TOLERANCE)


@pytest.mark.parametrize(
    ("array", "ratio", "index"),
    [
        ("square_01", "square", 1),
        ("square_15", "square", 15),
        ("pad_01", "pad", 1),
        ("pad_15", "pad", 15),
        ("clip336_square_07", "square", 7),
        ("clip336_pad_07", "pad", 7),
    ],
)
def test_whole_arrays_are_the_originals(array: str, ratio: str, index: int) -> None:
    processor = inline("clip_vision_model", 336) if array.startswith("clip336") else tiny_processor()
    image = read_image(IMAGES, golden("square")[index]["image"])
    pixels = pixel_values(image, processor, image_aspect_ratio="pad" if ratio == "pad" else "square")
    expected = np.load(GOLDEN / f"02_images/{array}.npy")
    assert np.abs(pixels.numpy() - expected).max() <= TOLERANCE


@pytest.mark.parametrize("name", ["h1", "h3", "w1", "w3", "one_pixel", "three"])
@pytest.mark.parametrize("ratio", ["square", "pad"])
def test_tiny_images_are_read_as_rows_and_columns(name: str, ratio: Any) -> None:
    image = read_image(IMAGES, f"edge/{name}.png")
    pixels = pixel_values(image, tiny_processor(), image_aspect_ratio=ratio)
    assert pixels.shape == (3, 56, 56)
    # The same image enlarged has the same proportions, so it gives about the same mean color.
    larger = image.resize((image.width * 8, image.height * 8), Image.Resampling.NEAREST)
    same = pixel_values(larger, tiny_processor(), image_aspect_ratio=ratio)
    assert (pixels.mean(dim=(1, 2)) - same.mean(dim=(1, 2))).abs().max() < 0.6


def test_padding_has_the_mean_color() -> None:
    assert mean_color(tiny_processor()) == (122, 116, 104)
    assert mean_color(inline("siglip_vision_model", 32)) == (127, 127, 127)


def test_siglip_squeezes_the_image_into_its_square() -> None:
    processor = inline("siglip_vision_model", 48)
    image = Image.new("RGB", (90, 30), (255, 0, 0))
    pixels = pixel_values(image, processor, image_aspect_ratio="square")
    assert pixels.shape == (3, 48, 48)
    assert pixels[0].min() == pixels[0].max() == 1.0
    assert pixels[1].min() == pixels[1].max() == -1.0


def test_inline_settings_win() -> None:
    processor = inline("clip_vision_model", 28, image_mean=[0.0, 0.0, 0.0], image_std=[1.0, 1.0, 1.0])
    white = pixel_values(Image.new("RGB", (50, 50), "white"), processor, image_aspect_ratio="square")
    assert white.shape == (3, 28, 28)
    assert torch.equal(white, torch.ones_like(white))


def test_an_unknown_setting_is_reported_at_its_key() -> None:
    with pytest.raises(RecipeError) as caught:
        inline("clip_vision_model", 28, image_meen=[0.0])
    (problem,) = caught.value.problems
    assert problem.path == ("model", "vision_tower", "image_processor", "image_meen")


def test_a_processor_is_reported_that_only_the_hub_has() -> None:
    with pytest.raises(RecipeError, match=r'image processor of "some/tower" cannot be loaded') as caught:
        load_image_processor(VisionTower.model_validate({"source": "some/tower"}))
    (problem,) = caught.value.problems
    assert problem.found == "no such folder, not in the local cache, and the hub cannot be reached"
    assert problem.hint == "check the network, or copy the model and write its folder"


def test_a_tower_without_image_processor_is_reported(tmp_path: Path) -> None:
    tower = VisionTower.model_validate({"source": str(tmp_path)})
    with pytest.raises(RecipeError, match=r"no preprocessor_config\.json"):
        load_image_processor(tower)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(RecipeError, match="cannot be loaded"):
        load_image_processor(tower)
    with pytest.raises(RecipeError, match="no image processor is known"):
        inline("resnet", 28)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("does_not_exist.jpg", "does not exist"),
        ("edge/truncated.jpg", "truncated"),
        ("edge/truncated.png", "truncated"),
        ("edge/empty.jpg", "the image is empty"),
        ("edge/text.jpg", "not an image of a known format"),
        ("edge", "directory"),
        ("../images/rgb_0.jpg", "without `..`"),
        ("sub/../rgb_0.jpg", "without `..`"),
        ("..\\rgb_0.jpg", "without `..`"),
        ("a\0b.jpg", "null"),
    ],
)
def test_bad_images_say_why(name: str, reason: str) -> None:
    with pytest.raises(BadImage, match=reason) as caught:
        read_image(IMAGES, name)
    assert caught.value.file.endswith(name)


def test_absolute_paths_are_refused() -> None:
    with pytest.raises(BadImage, match="relative to the image folder"):
        read_image(IMAGES, str(FIXTURES / "images/rgb_0.jpg"))


def test_links_may_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    Image.new("RGB", (4, 4)).save(outside / "a.png")
    (inside / "link.png").symlink_to(outside / "a.png")
    with pytest.raises(BadImage, match="a link out of the image folder"):
        read_image(str(inside), "link.png")
    (tmp_path / "alias").symlink_to(outside)
    assert read_image(str(tmp_path / "alias"), "a.png").size == (4, 4)


def test_a_format_outside_the_list_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.ppm")
    with pytest.raises(BadImage, match="not an image of a known format"):
        read_image(str(tmp_path), "a.ppm")


@pytest.mark.parametrize("side", [8193, 20000])
def test_a_small_file_with_too_many_pixels_is_refused(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    assert side * side > MAX_PIXELS
    with pytest.raises(BadImage, match="pixels"):
        read_image(str(tmp_path), "bomb.png")


def passes(side: int, num: int) -> bytes:
    """A progressive JPEG of one gray, whose last pass over the image comes `num` times."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * num + data[-2:]


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    ends = ((b"IDAT", zlib.compress(bytes(200))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in ((b"IHDR", header), *chunks, *ends))


def rle_bitmap(side: int, data: bytes) -> bytes:
    start = 14 + 40 + 1024
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + bytes(1024) + data


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: passes(1024, 8000), id="passes"),
        pytest.param(lambda: png(*[(b"tEXt", b"a\0b")] * 400_000), id="chunks"),
        pytest.param(lambda: rle_bitmap(4096, b"\x01\x05" * 2_000_000), id="runs"),
    ],
)
@pytest.mark.parametrize("in_file", [True, False])
def test_decoding_has_an_end(
    make: Callable[[], bytes], in_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_DECODE_S", 0.2)
    data = make()
    begin_s = time.thread_time()
    with pytest.raises(BadImage, match=r"decoding it takes more than 0\.2 s of processor time"):
        if in_file:
            (tmp_path / "bomb").write_bytes(data)
            read_image(str(tmp_path), "bomb")
        else:
            decode_image(data)
    assert time.thread_time() - begin_s < 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fixture", ["rgb_0.jpg", "pal_p_trans.png", "webp.webp", "tiff", "gif", "bmp"])
def test_damaged_bytes_are_a_bad_image_or_one(fixture: str) -> None:
    if "." in fixture:
        whole = (FIXTURES / "images" / fixture).read_bytes()
    else:
        buffer = io.BytesIO()
        Image.new("P", (20, 20)).save(buffer, fixture)
        whole = buffer.getvalue()
    random = np.random.default_rng(0)
    num_bad = 0
    for _ in range(200):
        data = bytearray(whole[: random.integers(1, len(whole) + 1)])
        for place in random.integers(0, min(len(data), 200), 5):
            data[place] = random.integers(256)
        try:
            assert decode_image(bytes(data)).mode == "RGB"
        except BadImage as error:
            num_bad += 1
            assert error.reason
    assert num_bad > 20


def test_a_lack_of_memory_is_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image) -> None:
        raise MemoryError

    with pytest.raises(BadImage, match="preparing it takes more memory than is available"):
        read_prepared(IMAGES, "rgb_0.jpg", fail)
    monkeypatch.setattr(Image.Image, "convert", lambda self, mode: fail(self))
    with pytest.raises(BadImage, match="decoding it takes more memory than is available"):
        read_image(IMAGES, "rgb_0.jpg")


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.tiff").open("wb") as file:
        file.write(b"II*\0")
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(BadImage, match="bytes are more than"):
        read_image(str(tmp_path), "a.tiff")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadImage, match="a named pipe, not an ordinary file"):
        read_image(str(tmp_path), "pipe.png")


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"size": {"shortest_edge": "56"}}, "image-processor-not-usable"),
        ({"size": {"shortest_edge": float("nan")}}, "image-processor-not-usable"),
        ({"size": {"shortest_edge": 1e308}}, "image-processor-not-usable"),
        ({"size": {"height": 10**6, "width": 10**6}}, "image-processor-not-usable"),
        ({"crop_size": {"height": 0, "width": 0}}, "image-processor-not-usable"),
        ({"image_mean": "abc"}, "image-processor-not-usable"),
        ({"image_std": [0, 0, 0]}, "image-processor-not-usable"),
        ({"rescale_factor": float("nan")}, "image-processor-not-usable"),
        ({"resample": 99}, "image-processor-not-usable"),
        ({"image_processor_type": 5}, "image-processor-not-usable"),
    ],
    ids=str,
)
def test_settings_that_prepare_no_image_are_refused(
    settings: dict[str, JsonValue], code: str, tmp_path: Path
) -> None:
    given = json.loads((FIXTURES / "tiny_clip" / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**given, **settings}))
    with pytest.raises(RecipeError) as caught:
        load_image_processor(VisionTower.model_validate({"source": str(tmp_path)}))
    assert [problem.code for problem in caught.value.problems] == [code]


def test_pad_needs_a_color() -> None:
    processor = load_image_processor(
        VisionTower.model_validate(
            {"source": str(FIXTURES / "tiny_clip"), "image_processor": {"image_mean": 0.5}}
        )
    )
    with pytest.raises(RecipeError, match="mean color"):
        pixel_values(Image.new("RGB", (4, 8)), processor, image_aspect_ratio="pad")
