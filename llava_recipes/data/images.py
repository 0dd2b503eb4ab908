"""From an image, in a file or in a record, to the pixel values that the vision tower takes."""

from __future__ import annotations

import io
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import BinaryIO, Final, Literal, TypeVar, cast

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import JsonValue
from transformers import (
    BaseImageProcessor,
    CLIPImageProcessorPil,
    SiglipImageProcessorPil,
)

from llava_recipes.anyres import Size
from llava_recipes.data.conversation import Record
from llava_recipes.data.hub import check_available
from llava_recipes.data.image_sizes import MAX_PIXELS, CannotPrepare, can_shrink, steps_of
from llava_recipes.data.records import Records
from llava_recipes.errors import Problem, RecipeError
from llava_recipes.files import NotOrdinary, expanded, open_ordinary
from llava_recipes.plan.families import tower_of
from llava_recipes.recipe.foreign import check_model_folder, check_settings, read_by_library
from llava_recipes.recipe.schema import VisionTower
from llava_recipes.versions import auto_image_processor

MAX_DECODE_S: Final = 5.0
"""Processor time that decoding an image may take; the largest allowed one takes about one second."""
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_FILE_BYTES: Final = 2**30
"""Largest file that is opened: twice what MAX_PIXELS take without compression, at 8 bytes each."""
SETTINGS_FILES: Final = ("preprocessor_config.json", "processor_config.json")
"""Where a model folder has its image processor's settings; whole models have the latter."""
_MAX_SIDE: Final = 8192
"""Longest side of what a processor makes, in pixels."""
_TOWER: Final = ("model", "vision_tower")
_WHOLE_SQUARE_PX: Final = 4096
"""Up to this side the square around a padded image is made as a whole."""
_STRIP_PIXELS: Final = 2**22
_BLOCK_BYTES: Final = 2**12
Result = TypeVar("Result")
Taken = TypeVar("Taken")


class BadImage(Exception):
    """An image that cannot be used: which file, and why."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file, self.reason = file, reason


def open_images(
    records: Records,
    record: Record,
    prepare: Callable[[Image.Image], Result],
    *,
    numbers: Iterable[int] | None = None,
) -> list[Result]:
    """What `prepare` makes of every image of a record in RGB, in reading order, or of those with `numbers`.

    The one way from a record to its images, for training and for all that looks at data. Raises BadImage as
    `read_prepared`, and when an image has neither bytes in the annotation file nor an image folder.
    """
    chosen = range(len(record.images)) if numbers is None else numbers
    return [_prepared(image, shown, prepare) for image, shown in _each(records, record, chosen, _rgb)]


def read_prepared(folder: str, name: str, prepare: Callable[[Image.Image], Result]) -> Result:
    """What `prepare` makes of an image file in RGB, as stored.

    EXIF rotation is ignored and transparency dropped, as in the original. Raises BadImage when the path
    leaves the folder (also through a link), when the file is missing, truncated or not an image of a known
    format, when it has more than MAX_PIXELS pixels, when decoding takes too long or more memory than is
    available, and for CannotPrepare.
    """
    return _prepared(*_from_folder(folder, name, _rgb), prepare)


def check_record_image(records: Records, record: Record, number: int) -> Size:
    """Width and height of a record's image, as `check_image`."""
    ((size, _),) = _each(records, record, (number,), _size)
    return size


def check_image(folder: str, name: str) -> Size:
    """Width and height as stored, from an image's first bytes: it is not decoded.

    Raises BadImage as `read_prepared`, for what the first bytes show.
    """
    return _from_folder(folder, name, _size)[0]


def _rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _size(image: Image.Image) -> Size:
    return image.size


def _each(
    records: Records, record: Record, numbers: Iterable[int], take: Callable[[Image.Image], Taken]
) -> Iterator[tuple[Taken, str]]:
    """What `take` takes from each image as it is opened, and the image's name in errors."""
    embedded = records.images(record.index) if record.embedded and record.images else ()
    for number in numbers:
        name = record.images[number]
        data = embedded[number] if number < len(embedded) else None
        if data is not None:
            yield _taken(io.BytesIO(data), len(data), name, take), name
        elif record.folder is not None:
            yield _from_folder(record.folder, name, take)
        else:
            raise BadImage(name, "its bytes are not in the file, and the source has no image folder")


def _from_folder(folder: str, name: str, take: Callable[[Image.Image], Taken]) -> tuple[Taken, str]:
    path = _path_inside(folder, name)
    with _open(path) as file:
        return _taken(file, os.fstat(file.fileno()).st_size, path, take), path


def _path_inside(folder: str, name: str) -> str:
    path = os.path.join(folder, name)
    if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
        raise BadImage(path, f'image paths are relative to the image folder, without `..`; found "{name}"')
    root = os.path.realpath(folder)
    try:
        real = os.path.realpath(path)
    except ValueError as error:
        raise BadImage(path, str(error)) from None
    if os.path.commonpath([root, real]) != root:
        raise BadImage(path, f"it is a link out of the image folder, to {real}")
    return path


def _open(path: str) -> BinaryIO:
    try:
        return open_ordinary(path)
    except FileNotFoundError:
        raise BadImage(path, "the file does not exist") from None
    except NotOrdinary as error:
        raise BadImage(path, str(error.strerror)) from None
    except (OSError, ValueError) as error:
        raise BadImage(path, str(error)) from None


def _taken(file: BinaryIO, num_bytes: int, shown: str, take: Callable[[Image.Image], Taken]) -> Taken:
    if not num_bytes:
        raise BadImage(shown, "the image is empty (0 bytes)")
    if num_bytes > MAX_FILE_BYTES:
        raise BadImage(shown, f"its {num_bytes:,} bytes are more than the {MAX_FILE_BYTES:,} allowed")
    try:
        # Pillow may warn about each of a file's thousand tags.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(cast(BinaryIO, WatchedFile(file)), formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    found = f"{width} x {height} pixels are more than the {MAX_PIXELS:,} allowed"
                    raise BadImage(shown, found)
                if image.format in ("JPEG", "MPO"):
                    # A few bytes can mean a pass over the whole image, so the time is checked often.
                    image.decodermaxblock = _BLOCK_BYTES
                return take(image)
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(shown, f"it has more than the {MAX_PIXELS:,} pixels allowed") from None
    except UnidentifiedImageError:
        raise BadImage(shown, f"not an image of a known format ({', '.join(FORMATS)})") from None
    except MemoryError:
        raise BadImage(shown, "decoding it takes more memory than is available") from None
    except Exception as error:
        # A decoder may fail in any way over what somebody else wrote.
        raise BadImage(shown, str(error) or type(error).__name__) from None


def _prepared(taken: Taken, shown: str, use: Callable[[Taken], Result]) -> Result:
    try:
        return use(taken)
    except CannotPrepare as error:
        raise BadImage(shown, str(error)) from None
    except MemoryError:
        raise BadImage(shown, "preparing it takes more memory than is available") from None


class TooSlow(Exception):
    """A decoder has used up its time."""


class WatchedFile:
    """What Pillow needs of a file; every read checks how long the decoder has computed.

    Pillow's decoders read a file in pieces, so one that a small file keeps busy (a JPEG of thousands of
    passes, a PNG of millions of chunks) ends at its next piece. Only processor time of this thread counts,
    since a busy machine makes no image worse.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._ends_s = time.thread_time() + MAX_DECODE_S
        self.seek, self.tell, self.close = file.seek, file.tell, file.close
        # With it libtiff reads a file on disk by itself, instead of taking all of it into memory.
        self.fileno = file.fileno

    def read(self, size: int = -1) -> bytes:
        if time.thread_time() > self._ends_s:
            raise TooSlow(f"decoding it takes more than {MAX_DECODE_S:g} s of processor time")
        return self._file.read(size)


def load_image_processor(plan: VisionTower) -> BaseImageProcessor:
    """The tower's own image processor, or the usual one of its family for an inline config.

    The recipe's `image_processor` settings override both. No weights are read. Raises RecipeError when the
    processor cannot be loaded, has no such setting, or cannot prepare an image.
    """
    processor = _own_processor(plan) if plan.source is not None else _usual_processor(dict(plan.config or {}))
    settings = processor.to_dict()
    given = plan.image_processor or {}
    where = (*_TOWER, "image_processor")
    unknown = [
        Problem(
            f'the image processor has no setting "{key}"',
            code="unknown-image-processor-setting",
            path=(*where, key),
            on_key=True,
        )
        for key in given
        if key not in settings
    ]
    if unknown:
        raise RecipeError(*unknown)
    with read_by_library(
        "the image processor cannot take these settings",
        code="image-processor-not-usable",
        place=", ".join(given) or str(plan.source),
        path=where,
    ):
        changed: BaseImageProcessor = type(processor).from_dict({**settings, **given})
        _try_out(changed)
    return changed


def _own_processor(plan: VisionTower) -> BaseImageProcessor:
    folder = expanded(str(plan.source))
    files = [folder / name for name in SETTINGS_FILES if (folder / name).exists()]
    if folder.is_dir() and not files:
        raise RecipeError.of(
            "the vision tower's folder has no preprocessor_config.json",
            code="image-processor-missing",
            path=(*_TOWER, "source"),
            found=str(folder),
            hint="copy it into the folder: it says how images are resized and normalized",
        )
    path = (*_TOWER, "source")
    check_model_folder(folder, path)
    message, code = f'the image processor of "{plan.source}" cannot be loaded', "image-processor-not-usable"
    check_available(
        str(plan.source), plan.revision, files=SETTINGS_FILES, message=message, code=code, path=path
    )
    with read_by_library(
        message,
        code=code,
        files=files,
        place="" if files else str(plan.source),
        path=path,
        hint="write a hub id, or a folder that contains a preprocessor_config.json",
    ):
        settings, _ = BaseImageProcessor.get_image_processor_dict(str(plan.source), revision=plan.revision)
        check_settings(settings, path, file=f"preprocessor_config.json of {plan.source}")
        processor: BaseImageProcessor = auto_image_processor().from_pretrained(
            plan.source, revision=plan.revision, backend="pil", trust_remote_code=False
        )
        _try_out(processor)
    return processor


def _usual_processor(config: dict[str, JsonValue]) -> BaseImageProcessor:
    kind = tower_of(config.get("model_type"))
    inner = config.get("vision_config", config)
    image_px = inner.get("image_size", 224) if isinstance(inner, dict) else 224
    if kind is None or kind not in _PROCESSORS:
        raise RecipeError.of(
            f'no image processor is known for the vision model type "{config.get("model_type")}"',
            code="unknown-vision-tower",
            path=(*_TOWER, "config"),
            hint=f"use {' or '.join(_PROCESSORS)}",
        )
    made_by, settings = _PROCESSORS[kind]
    processor: BaseImageProcessor = made_by.from_dict(settings(image_px))
    return processor


def _square(image_px: JsonValue) -> JsonValue:
    return {"height": image_px, "width": image_px}


_PROCESSORS: Mapping[str, tuple[type[BaseImageProcessor], Callable[[JsonValue], dict[str, JsonValue]]]] = {
    "clip_vision_model": (
        CLIPImageProcessorPil,
        lambda px: {"size": {"shortest_edge": px}, "crop_size": _square(px)},
    ),
    "siglip_vision_model": (SiglipImageProcessorPil, lambda px: {"size": _square(px)}),
}
"""The usual image processor of each family of towers, and its settings for a tower of this many pixels."""


def _try_out(processor: BaseImageProcessor) -> None:
    """Prepare a small image: settings of a wrong type fail only when they are used.

    Raises what transformers does, and ValueError unless the result has three channels and finite values.
    """
    settings = processor.to_dict()
    for name in ("size", "crop_size", "pad_size"):
        sides = settings.get(name)
        for side in sides.values() if isinstance(sides, dict) else [sides]:
            if side is not None and not (isinstance(side, int) and 1 <= side <= _MAX_SIDE):
                raise ValueError(f"`{name}` is {sides}: a side has 1 to {_MAX_SIDE:,} pixels")
    means = settings.get("image_mean")
    # One number means all channels; only `pad` needs three, and reports it.
    is_each = isinstance(means, list | tuple)
    if settings.get("do_rescale") and not all(
        0 <= mean <= 1 for mean in (means if is_each else [means or 0])
    ):
        raise ValueError(f"`image_mean` is {means}: its values must be from 0 to 1")
    pixels = _of_gray(processor)
    if pixels.dim() != 3 or pixels.shape[0] != 3 or not pixels.isfinite().all():
        raise ValueError(f"a gray image becomes {list(pixels.shape)}, not three channels of finite values")
    if is_each:
        _on_square(Image.new("RGB", (8, 4)), mean_color(processor))


def prepared_px(processor: BaseImageProcessor) -> tuple[int, int]:
    """Height and width of what a processor makes of a square image."""
    height, width = _of_gray(processor).shape[1:]
    return height, width


def _of_gray(processor: BaseImageProcessor) -> torch.Tensor:
    gray = Image.new("RGB", (8, 8), (128, 128, 128))
    pixels = pixel_values(gray, processor, image_aspect_ratio="square")
    # LLaVA-NeXT's own processor makes several images of the tower's size from one.
    return pixels[0] if pixels.dim() == 4 else pixels


def pixel_values(
    image: Image.Image,
    processor: BaseImageProcessor,
    *,
    image_aspect_ratio: Literal["square", "pad"],
) -> torch.Tensor:
    """float32[C, H, W] of an RGB image.

    `square` leaves resizing and cropping to the image processor, `pad` first centers the image on a square
    of the processor's mean color. The image is always given as height, width, channel: the original reads
    images 3 px high as channel first under `square`.
    """
    settings = {}
    if image_aspect_ratio == "pad":
        steps, side, color = steps_of(processor), max(image.size), mean_color(processor)
        if side > _WHOLE_SQUARE_PX and can_shrink(steps):
            image = _on_shrunk_square(image, color, steps.resized((side, side)), steps.resample)
            settings["do_resize"] = False
        else:
            image = _on_square(image, color)
    features = processor(
        np.asarray(image),
        input_data_format="channels_last",
        do_convert_rgb=False,
        return_tensors="np",
        **settings,
    )
    return torch.from_numpy(np.ascontiguousarray(features["pixel_values"][0], dtype=np.float32))


def mean_color(processor: BaseImageProcessor) -> tuple[int, int, int]:
    """The color around a padded image, 0 to 255 per channel, rounded down as in the original."""
    means = processor.to_dict().get("image_mean")
    try:
        red, green, blue = (int(mean * 255) for mean in cast(list[float], means))
    except (TypeError, ValueError, OverflowError):
        raise RecipeError.of(
            "`pad` fills with the image processor's mean color, which its settings do not define",
            code="image-processor-no-mean-colour",
            path=_TOWER,
            found=f"image_mean: {means}",
        ) from None
    return red, green, blue


def _on_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _on_shrunk_square(
    image: Image.Image, color: tuple[int, int, int], size: tuple[int, int], resample: int | None
) -> Image.Image:
    """`_on_square`, then a resize to `size`, without the memory that the square takes.

    Equal to resizing the square, since Pillow resizes in two steps too: each row, then each column.
    """
    width, height = image.size
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    narrow = Image.new("RGB", (size[0], side))
    strip_px = _STRIP_PIXELS // side
    for y in range(0, side, strip_px):
        strip = Image.new("RGB", (side, min(strip_px, side - y)), color)
        strip.paste(image, (left, top - y))
        narrow.paste(strip.resize((size[0], strip.height), resample), (0, y))
    return narrow.resize(size, resample)
