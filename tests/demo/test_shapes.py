"""Drawn pictures: the same scene, the same pixels; the shape where and as its caption says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from llava_recipes.demo.drawn_data import (
    PICTURE_PX,
    RGB,
    Scene,
    all_combinations,
    draw_scene,
    make_scene,
    unseen_combinations,
)
from llava_recipes.demo.vocabulary import COLOURS, COLUMNS, ROWS, SHAPES


def pixels(scene: Scene) -> np.ndarray:
    return np.asarray(draw_scene(scene)).astype(int)


def distance_from_ground(scene: Scene) -> np.ndarray:
    """int[H, W]: how far each pixel is from the colour of the ground."""
    distance: np.ndarray = np.abs(pixels(scene) - scene.ground).max(axis=2)
    return distance


@pytest.mark.parametrize("combination", all_combinations())
def test_a_scene_is_drawn_the_same_every_time(combination: tuple[str, str]) -> None:
    first, second = (draw_scene(make_scene(combination, seed="5")) for _ in range(2))
    assert first.size == (PICTURE_PX, PICTURE_PX)
    assert first.mode == "RGB"
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != draw_scene(make_scene(combination, seed="6")).tobytes()


@pytest.mark.parametrize("number", range(40))
def test_the_shape_stands_where_the_caption_says_in_its_colour(number: int) -> None:
    scene = make_scene(all_combinations()[number % 32], seed=f"place/{number}")
    seen = distance_from_ground(scene) > 60
    rows, columns = np.nonzero(seen)
    third = PICTURE_PX / 3
    assert ROWS[int(rows.mean() // third)] == scene.row
    assert COLUMNS[int(columns.mean() // third)] == scene.column
    mean = pixels(scene)[seen].mean(axis=0)
    nearest = min(RGB, key=lambda name: float(np.abs(mean - RGB[name]).sum()))
    assert nearest == scene.colour
    assert scene.caption == (f"a {scene.size} {scene.colour} {scene.shape} at the {scene.row} {scene.column}")


def test_shapes_differ_in_more_than_noise() -> None:
    scene = make_scene(("green", "circle"), seed="same")
    pictures = [pixels(dataclasses.replace(scene, shape=shape)) for shape in SHAPES]
    for index, picture in enumerate(pictures):
        for other in pictures[index + 1 :]:
            assert (np.abs(picture - other).max(axis=2) > 60).sum() >= 20


def test_an_unknown_shape_is_refused() -> None:
    scene = dataclasses.replace(make_scene(("green", "circle"), seed="s"), shape="ring")
    with pytest.raises(ValueError, match="ring"):
        draw_scene(scene)


def test_unseen_combinations_leave_every_word_in_training() -> None:
    unseen = unseen_combinations()
    seen = set(all_combinations()) - set(unseen)
    assert len(set(unseen)) == len(SHAPES)
    assert {colour for colour, _ in seen} == set(COLOURS)
    assert {shape for _, shape in seen} == set(SHAPES)
    assert len({colour for colour, _ in unseen}) == len(unseen)
