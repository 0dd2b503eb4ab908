"""The demo's dataset: draw colored shapes, write them as training data, caption the held-out ones."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from llava_recipes.data.prompts import IGNORED
from llava_recipes.demo.vocabulary import (
    COLORS,
    COLUMNS,
    QUESTIONS,
    ROWS,
    SHAPES,
    SIZES,
    WHAT,
    answer_to,
    caption_of,
    draw_notes,
    write_tokenizer,
)
from llava_recipes.errors import RecipeError
from llava_recipes.model.assemble import Assembled, open_samples
from llava_recipes.model.forward import image_features
from llava_recipes.model.generate import Decoding, continue_prompts, embed_with_images, evaluating
from llava_recipes.plan.types import DataPlan, SourcePlan

IMAGE_PX = 72
OVERSAMPLING = 4
NOISE_SHARE = 0.1
RGB: dict[str, tuple[int, int, int]] = {
    "red": (208, 32, 40),
    "orange": (240, 140, 20),
    "yellow": (240, 224, 40),
    "green": (40, 160, 60),
    "blue": (36, 70, 208),
    "purple": (124, 40, 160),
    "pink": (244, 140, 190),
    "white": (244, 244, 244),
}
RADIUS_PX = {"small": (7.5, 8.5), "large": (10.5, 11.5)}
SHIFT_PX = 2.0
TURN = 0.12

DATASET, TRAIN, HELD_OUT, NOTES = "dataset.json", "train.json", "held_out.json", "captions.json"
TALKS = "instruct.json"
IMAGES, TOKENIZER = "images", "tokenizer"
DRAWING_VERSION = 2
"""Raised with every change to what is drawn or written, so that folders of an older version are redrawn."""

IMAGES_PER_NOTES = 3
BATCH_SIZE = 32
MAX_CAPTION_TOKENS = 12

Record = dict[str, object]
Combination = tuple[str, str]
"""A color and a shape."""


@dataclass(frozen=True)
class Scene:
    """The content of an image; places and lengths in pixels, the angle in radians."""

    color: str
    shape: str
    size: str
    row: str
    column: str
    center_x_px: float
    center_y_px: float
    radius_px: float
    angle: float
    rgb: tuple[int, int, int]
    ground: int
    noise_seed: str

    @property
    def caption(self) -> str:
        return caption_of(
            size=self.size, color=self.color, shape=self.shape, row=self.row, column=self.column
        )


def all_combinations() -> tuple[Combination, ...]:
    return tuple((color, shape) for color in COLORS for shape in SHAPES)


def unseen_combinations() -> tuple[Combination, ...]:
    """One color of each shape that no training image shows, all of different colors."""
    step = len(COLORS) // len(SHAPES)
    return tuple((COLORS[index * step], shape) for index, shape in enumerate(SHAPES))


def make_scene(combination: Combination, *, seed: str) -> Scene:
    """A scene with this color and shape; everything else is drawn from the seed."""
    draw = random.Random(seed)
    size = draw.choice(SIZES)
    radius = draw.uniform(*RADIUS_PX[size])
    row, column = draw.randrange(len(ROWS)), draw.randrange(len(COLUMNS))
    color, shape = combination
    return Scene(
        color=color,
        shape=shape,
        size=size,
        row=ROWS[row],
        column=COLUMNS[column],
        center_x_px=_center_px(column, len(COLUMNS), draw),
        center_y_px=_center_px(row, len(ROWS), draw),
        radius_px=radius,
        angle=draw.uniform(-TURN, TURN),
        rgb=_tint(RGB[color], draw),
        ground=draw.randint(20, 110),
        noise_seed=f"{seed}/noise",
    )


def draw_scene(scene: Scene) -> Image.Image:
    """The image, IMAGE_PX wide and high, RGB; the same scene always gives the same pixels."""
    edge_px = IMAGE_PX * OVERSAMPLING
    image = Image.new("RGB", (edge_px, edge_px), (scene.ground,) * 3)
    pen = ImageDraw.Draw(image)
    for outline in _outlines(scene):
        pen.polygon([(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in outline], fill=scene.rgb)
    image = image.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BOX)
    noise = random.Random(scene.noise_seed).randbytes(IMAGE_PX * IMAGE_PX * 3)
    return Image.blend(image, Image.frombytes("RGB", image.size, noise), NOISE_SHARE)


def _center_px(index: int, num_places: int, draw: random.Random) -> float:
    """The middle of the index-th of equal parts of the image's edge, shifted a little."""
    return (index + 0.5) * IMAGE_PX / num_places + draw.uniform(-SHIFT_PX, SHIFT_PX)


def _tint(rgb: tuple[int, int, int], draw: random.Random) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, part + draw.randint(-14, 14))) for part in rgb)
    return red, green, blue


def _outlines(scene: Scene) -> list[list[tuple[float, float]]]:
    """Polygons of the shape, turned by its angle, in pixels. Raises ValueError for an unknown shape."""
    arm = 0.34
    unit: list[list[tuple[float, float]]]
    if scene.shape == "circle":
        unit = [[(math.cos(turn * math.tau / 48), math.sin(turn * math.tau / 48)) for turn in range(48)]]
    elif scene.shape == "square":
        unit = [[(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)]]
    elif scene.shape == "triangle":
        unit = [[(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)]]
    elif scene.shape == "cross":
        unit = [
            [(-arm, -1.0), (arm, -1.0), (arm, 1.0), (-arm, 1.0)],
            [(-1.0, -arm), (1.0, -arm), (1.0, arm), (-1.0, arm)],
        ]
    else:
        raise ValueError(f"no drawing for the shape {scene.shape!r}")
    cos, sin = math.cos(scene.angle) * scene.radius_px, math.sin(scene.angle) * scene.radius_px
    return [
        [(scene.center_x_px + x * cos - y * sin, scene.center_y_px + x * sin + y * cos) for x, y in outline]
        for outline in unit
    ]


@dataclass(frozen=True)
class DatasetSettings:
    """How much is drawn, and from which seed.

    `num_held_out` images show combinations of color and shape that training images have, `num_unseen`
    images show others.
    """

    num_train: int
    num_held_out: int
    num_unseen: int
    num_notes: int
    seed: int


@dataclass(frozen=True)
class HeldOut:
    """An image to caption, its true caption, and whether no training image has its combination."""

    image: Path
    caption: str
    is_unseen: bool


def write_dataset(folder: Path, settings: DatasetSettings, *, redraw: bool) -> bool:
    """Draw the dataset unless it exists with the same settings; true if it was drawn.

    The folder appears whole, by one rename. Raises RecipeError if the folder contains anything else; with
    `redraw`, only a dataset of the demo with other settings is replaced.
    """
    wanted = {"drawing_version": DRAWING_VERSION, **asdict(settings)}
    found = _read_settings(folder)
    if found == wanted:
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        _check_replaceable(folder, found, redraw=redraw)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.absolute().parent) as parent:
        fresh = Path(parent) / "fresh"
        _draw_all(fresh, settings)
        (fresh / DATASET).write_text(json.dumps(wanted, indent=2) + "\n", "utf-8")
        if folder.exists():
            folder.replace(Path(parent) / "old")
        fresh.replace(folder)
    return True


def read_held_out(folder: Path) -> tuple[HeldOut, ...]:
    """The held-out images of a dataset, in file order."""
    records = json.loads((folder / HELD_OUT).read_text("utf-8"))
    return tuple(
        HeldOut(
            image=folder / IMAGES / record["image"],
            caption=record["conversations"][1]["value"],
            is_unseen=record["unseen_combination"],
        )
        for record in records
    )


def _read_settings(folder: Path) -> object:
    """The settings of a dataset; None if the folder isn't a dataset of the demo."""
    try:
        return json.loads((folder / DATASET).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _check_replaceable(folder: Path, found: object, *, redraw: bool) -> None:
    if found is None:
        raise RecipeError.of(
            f"{folder}: the folder contains files that the demo didn't draw",
            code="demo-folder-in-use",
            hint="choose an empty or a new folder with `--data`",
        )
    if not redraw:
        raise RecipeError.of(
            f"{folder}: the folder contains images drawn with other settings",
            code="demo-data-of-other-settings",
            found=json.dumps(found),
            hint="replace them with `--redraw`, or choose another folder with `--data`",
        )


def _draw_all(folder: Path, settings: DatasetSettings) -> None:
    seen = tuple(pair for pair in all_combinations() if pair not in unseen_combinations())
    train = _draw_images(folder, "train", seen, settings.num_train, settings.seed)
    held_out = _draw_images(folder, "held_out", seen, settings.num_held_out, settings.seed)
    unseen = _draw_images(folder, "unseen", unseen_combinations(), settings.num_unseen, settings.seed)
    marked = [{**record, "unseen_combination": False} for record in held_out]
    marked += [{**record, "unseen_combination": True} for record in unseen]
    _write_records(folder / TRAIN, train)
    _write_records(folder / HELD_OUT, marked)
    _write_records(folder / NOTES, _write_notes(settings))
    _write_records(folder / TALKS, _write_talks(train, settings))
    write_tokenizer(folder / TOKENIZER)


def _draw_images(
    folder: Path, split: str, combinations: Sequence[Combination], num_images: int, seed: int
) -> list[Record]:
    """Draw a split, every combination equally often; returns its records."""
    place = folder / IMAGES / split
    place.mkdir(parents=True)
    records = []
    for index in range(num_images):
        scene = make_scene(combinations[index % len(combinations)], seed=f"{seed}/{split}/{index}")
        name = f"{split}/{index:05}.png"
        draw_scene(scene).save(folder / IMAGES / name, compress_level=1)
        records.append(_record(f"{split}-{index:05}", f"<image>\n{WHAT}", scene.caption, image=name))
    return records


def _write_notes(settings: DatasetSettings) -> list[Record]:
    """Text-only records: notes and their captions, over all combinations."""
    combinations = all_combinations()
    records = []
    for index in range(settings.num_notes):
        color, shape = combinations[index % len(combinations)]
        draw = random.Random(f"{settings.seed}/notes/{index}")
        notes = draw_notes(color=color, shape=shape, draw=draw)
        records.append(_record(f"notes-{index:05}", "", f"{notes.text} {notes.caption}"))
    return records


def _write_talks(images: Sequence[Record], settings: DatasetSettings) -> list[Record]:
    """Conversations of two questions: one for each training image, and one about notes for every third.

    The latter stand for the text-only conversations of LLaVA's mix, and have every combination.
    """
    records = []
    for index, record in enumerate(images):
        draw = random.Random(f"{settings.seed}/talks/{index}")
        caption = str(_turns(record)[1]["value"])
        talk = _talk(f"talk-{index:05}", "<image>", caption, draw)
        records.append({**talk, "image": record["image"]})
        if index % IMAGES_PER_NOTES == 0:
            color, shape = draw.choice(all_combinations())
            notes = draw_notes(color=color, shape=shape, draw=draw)
            records.append(_talk(f"talk-notes-{index:05}", notes.text, notes.caption, draw))
    return records


def _talk(name: str, shown: str, caption: str, draw: random.Random) -> Record:
    """Two questions about an image or notes, the first below them; one of them asks for the caption."""
    questions = [WHAT, draw.choice([question for question in QUESTIONS if question != WHAT])]
    draw.shuffle(questions)
    turns = []
    for position, question in enumerate(questions):
        said = f"{shown}\n{question}" if position == 0 else question
        turns += [{"from": "human", "value": said}, {"from": "gpt", "value": answer_to(question, caption)}]
    return {"id": name, "conversations": turns}


def _turns(record: Record) -> list[dict[str, str]]:
    turns = record["conversations"]
    assert isinstance(turns, list)
    return turns


def _record(name: str, question: str, answer: str, *, image: str | None = None) -> Record:
    named: Record = {} if image is None else {"image": image}
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, **named, "conversations": turns}


def _write_records(file: Path, records: Sequence[Record]) -> None:
    lines = ",\n".join(json.dumps(record) for record in records)
    file.write_text(f"[\n{lines}\n]\n", "utf-8")


def caption_held_out(assembled: Assembled, data: DataPlan, folder: Path) -> list[str]:
    """The first line of the model's answer to each held-out image of a dataset, in file order.

    The prompt is what the stage's template writes before the answer.
    """
    source = SourcePlan(annotations=str(folder / HELD_OUT), images=str(folder / IMAGES), num_samples=None)
    data = data.model_copy(update={"sources": (source,), "num_samples": None})
    dataset = open_samples(assembled, data, start_end=False)
    model, layout = assembled.model, assembled.image_layout(data)
    decoding = Decoding(MAX_CAPTION_TOKENS)
    said: list[str] = []
    for first in range(0, len(dataset), BATCH_SIZE):
        samples = [dataset[index] for index in range(first, min(first + BATCH_SIZE, len(dataset)))]
        images = [image for sample in samples for image in sample.images]
        with evaluating(model):
            seen = iter(image_features(model, images, layout))
            prompts = [
                embed_with_images(
                    model,
                    sample.input_ids[sample.labels == IGNORED].tolist(),
                    [next(seen) for _ in sample.images],
                )
                for sample in samples
            ]
        said += continue_prompts(model, assembled.tokenizer, prompts, decoding=decoding, stops=())
    return [text.partition("\n")[0].strip() for text in said]
