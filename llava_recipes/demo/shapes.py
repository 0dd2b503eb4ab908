"""Draw one picture of the demo: a coloured shape somewhere on noisy ground."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from llava_recipes.demo.vocabulary import COLOURS, COLUMNS, ROWS, SHAPES, SIZES, caption_of

PICTURE_PX = 72
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

Combination = tuple[str, str]
"""A colour and a shape."""


@dataclass(frozen=True)
class Scene:
    """What a picture shows; places and lengths in pixels, the angle in radians."""

    colour: str
    shape: str
    size: str
    row: str
    column: str
    centre_x_px: float
    centre_y_px: float
    radius_px: float
    angle: float
    rgb: tuple[int, int, int]
    ground: int
    noise_seed: str

    @property
    def caption(self) -> str:
        return caption_of(
            size=self.size, colour=self.colour, shape=self.shape, row=self.row, column=self.column
        )


def all_combinations() -> tuple[Combination, ...]:
    return tuple((colour, shape) for colour in COLOURS for shape in SHAPES)


def unseen_combinations() -> tuple[Combination, ...]:
    """One colour of each shape that no training picture shows, all of different colours."""
    step = len(COLOURS) // len(SHAPES)
    return tuple((COLOURS[index * step], shape) for index, shape in enumerate(SHAPES))


def make_scene(combination: Combination, *, seed: str) -> Scene:
    """A scene with this colour and shape; all else is drawn from the seed."""
    draw = random.Random(seed)
    size = draw.choice(SIZES)
    radius = draw.uniform(*RADIUS_PX[size])
    row, column = draw.randrange(len(ROWS)), draw.randrange(len(COLUMNS))
    colour, shape = combination
    return Scene(
        colour=colour,
        shape=shape,
        size=size,
        row=ROWS[row],
        column=COLUMNS[column],
        centre_x_px=_centre_px(column, len(COLUMNS), draw),
        centre_y_px=_centre_px(row, len(ROWS), draw),
        radius_px=radius,
        angle=draw.uniform(-TURN, TURN),
        rgb=_tint(RGB[colour], draw),
        ground=draw.randint(20, 110),
        noise_seed=f"{seed}/noise",
    )


def draw_scene(scene: Scene) -> Image.Image:
    """The picture, PICTURE_PX wide and high, RGB; the same scene always gives the same pixels."""
    edge_px = PICTURE_PX * OVERSAMPLING
    picture = Image.new("RGB", (edge_px, edge_px), (scene.ground,) * 3)
    pen = ImageDraw.Draw(picture)
    for outline in _outlines(scene):
        pen.polygon([(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in outline], fill=scene.rgb)
    picture = picture.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BOX)
    noise = random.Random(scene.noise_seed).randbytes(PICTURE_PX * PICTURE_PX * 3)
    return Image.blend(picture, Image.frombytes("RGB", picture.size, noise), NOISE_SHARE)


def _centre_px(index: int, num_places: int, draw: random.Random) -> float:
    """The middle of the index-th of equal parts of the picture's edge, shifted a little."""
    return (index + 0.5) * PICTURE_PX / num_places + draw.uniform(-SHIFT_PX, SHIFT_PX)


def _tint(rgb: tuple[int, int, int], draw: random.Random) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, part + draw.randint(-14, 14))) for part in rgb)
    return red, green, blue


def _outlines(scene: Scene) -> list[list[tuple[float, float]]]:
    """Polygons that make up the shape, turned by its angle, in picture coordinates.

    Raises ValueError for a shape that nobody can draw.
    """
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
        [(scene.centre_x_px + x * cos - y * sin, scene.centre_y_px + x * sin + y * cos) for x, y in outline]
        for outline in unit
    ]
