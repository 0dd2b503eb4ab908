"""The drawn dataset: images match captions, held out means held out, other people's files stay."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from llava_recipes.data.records import check_records, open_records
from llava_recipes.demo.drawn_data import (
    IMAGE_PX,
    RGB,
    DatasetSettings,
    Scene,
    all_combinations,
    draw_scene,
    make_scene,
    read_held_out,
    unseen_combinations,
    write_dataset,
)
from llava_recipes.demo.vocabulary import COLORS, COLUMNS, ROWS, SHAPES, WHAT, answer_to
from llava_recipes.errors import RecipeError
from llava_recipes.plan.types import SourcePlan

SETTINGS = DatasetSettings(num_train=56, num_held_out=28, num_unseen=8, num_notes=40, seed=0)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def combinations(captions: list[str]) -> set[tuple[str, str]]:
    return {(caption.split()[2], caption.split()[3]) for caption in captions}


def test_no_held_out_image_and_no_unseen_combination_is_in_training(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_dataset(data, SETTINGS, redraw=False)
    records = json.loads((data / "train.json").read_text("utf-8"))
    trained = {(data / "images" / record["image"]).read_bytes() for record in records}
    held_out = read_held_out(data)
    assert len(trained) == SETTINGS.num_train
    assert len(held_out) == SETTINGS.num_held_out + SETTINGS.num_unseen
    assert trained.isdisjoint(image.image.read_bytes() for image in held_out)
    trained_combinations = combinations([record["conversations"][1]["value"] for record in records])
    known = combinations([image.caption for image in held_out if not image.is_unseen])
    unseen = combinations([image.caption for image in held_out if image.is_unseen])
    assert known == trained_combinations
    assert unseen == set(unseen_combinations())
    assert unseen.isdisjoint(trained_combinations)


def test_its_files_are_sound_training_data(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_dataset(data, SETTINGS, redraw=False)
    for name, images, num_records in (
        ("train.json", str(data / "images"), 56),
        ("held_out.json", str(data / "images"), 36),
        ("captions.json", None, 40),
        ("instruct.json", str(data / "images"), 75),
    ):
        records = open_records(
            [SourcePlan(annotations=str(data / name), images=images, num_samples=num_records)]
        )
        assert check_records(records) == []
        if name != "instruct.json":
            assert all(bool(record.images) == (images is not None) for record in records)


def test_conversations_are_about_training_images_and_about_notes(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_dataset(data, SETTINGS, redraw=False)
    captions = {
        record["image"]: record["conversations"][1]["value"]
        for record in json.loads((data / "train.json").read_text("utf-8"))
    }
    records = json.loads((data / "instruct.json").read_text("utf-8"))
    imaged = [record for record in records if "image" in record]
    assert len(imaged) == SETTINGS.num_train
    assert len(records) - len(imaged) == 19
    for record in imaged:
        turns = record["conversations"]
        asked = [turn["value"].removeprefix("<image>\n") for turn in turns[::2]]
        answered = [turn["value"] for turn in turns[1::2]]
        assert answered == [answer_to(question, captions[record["image"]]) for question in asked]
        assert turns[0]["value"].startswith("<image>\n")
        assert WHAT in asked


def test_two_drawings_are_the_same_and_another_seed_is_another(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        assert write_dataset(tmp_path / name, dataclasses.replace(SETTINGS, seed=seed), redraw=False)
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one.keys() == other.keys()
    assert one["images/train/00000.png"] != other["images/train/00000.png"]


def test_a_complete_dataset_is_kept_untouched(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_dataset(data, SETTINGS, redraw=False)
    times = {file: file.stat().st_mtime_ns for file in data.rglob("*")}
    assert not write_dataset(data, SETTINGS, redraw=True)
    assert times == {file: file.stat().st_mtime_ns for file in data.rglob("*")}


def test_other_settings_need_redraw(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_dataset(data, SETTINGS, redraw=False)
    before = contents(data)
    fewer = dataclasses.replace(SETTINGS, num_train=28)
    with pytest.raises(RecipeError) as refused:
        write_dataset(data, fewer, redraw=False)
    assert "--redraw" in (refused.value.problems[0].hint or "")
    assert contents(data) == before
    assert write_dataset(data, fewer, redraw=True)
    assert len(json.loads((data / "train.json").read_text("utf-8"))) == 28
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", "utf-8")
    for redraw in (False, True):
        with pytest.raises(RecipeError, match="didn't draw"):
            write_dataset(tmp_path, SETTINGS, redraw=redraw)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_drawing_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("llava_recipes.demo.drawn_data.write_tokenizer", fail)
    with pytest.raises(OSError, match="disk"):
        write_dataset(tmp_path / "data", SETTINGS, redraw=False)
    assert list(tmp_path.iterdir()) == []


def pixels(scene: Scene) -> np.ndarray:
    return np.asarray(draw_scene(scene)).astype(int)


def distance_from_ground(scene: Scene) -> np.ndarray:
    """int[H, W]: how far each pixel is from the color of the ground."""
    distance: np.ndarray = np.abs(pixels(scene) - scene.ground).max(axis=2)
    return distance


@pytest.mark.parametrize("combination", all_combinations())
def test_a_scene_is_drawn_the_same_every_time(combination: tuple[str, str]) -> None:
    first, second = (draw_scene(make_scene(combination, seed="5")) for _ in range(2))
    assert first.size == (IMAGE_PX, IMAGE_PX)
    assert first.mode == "RGB"
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != draw_scene(make_scene(combination, seed="6")).tobytes()


@pytest.mark.parametrize("number", range(40))
def test_the_shape_stands_where_the_caption_says_in_its_color(number: int) -> None:
    scene = make_scene(all_combinations()[number % 32], seed=f"place/{number}")
    seen = distance_from_ground(scene) > 60
    rows, columns = np.nonzero(seen)
    third = IMAGE_PX / 3
    assert ROWS[int(rows.mean() // third)] == scene.row
    assert COLUMNS[int(columns.mean() // third)] == scene.column
    mean = pixels(scene)[seen].mean(axis=0)
    nearest = min(RGB, key=lambda name: float(np.abs(mean - RGB[name]).sum()))
    assert nearest == scene.color
    assert scene.caption == (f"a {scene.size} {scene.color} {scene.shape} at the {scene.row} {scene.column}")


def test_shapes_differ_in_more_than_noise() -> None:
    scene = make_scene(("green", "circle"), seed="same")
    images = [pixels(dataclasses.replace(scene, shape=shape)) for shape in SHAPES]
    for index, image in enumerate(images):
        for other in images[index + 1 :]:
            assert (np.abs(image - other).max(axis=2) > 60).sum() >= 20


def test_an_unknown_shape_is_refused() -> None:
    scene = dataclasses.replace(make_scene(("green", "circle"), seed="s"), shape="ring")
    with pytest.raises(ValueError, match="ring"):
        draw_scene(scene)


def test_unseen_combinations_leave_every_word_in_training() -> None:
    unseen = unseen_combinations()
    seen = set(all_combinations()) - set(unseen)
    assert len(set(unseen)) == len(SHAPES)
    assert {color for color, _ in seen} == set(COLORS)
    assert {shape for _, shape in seen} == set(SHAPES)
    assert len({color for color, _ in unseen}) == len(unseen)
