"""The tiny models to ask: what is drawn, and recipes that are valid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.engines.compare import NUM_QUESTIONS, read_questions
from benchmarks.engines.tiny_model import main, write_all
from llava_recipes.recipe.load import load_recipe


def test_images_questions_and_recipes_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    write_all(folder, num_images=6)
    for name, shapes in (("mixed", {-1, 0, 1}), ("square", {0})):
        questions = read_questions(folder / f"{name}.jsonl", images=folder / "images", limit=NUM_QUESTIONS)
        assert len(questions) == NUM_QUESTIONS and len({question.text for question in questions}) > 2
        assert {_shape(question.image) for question in questions} == shapes
    said = [
        [record["conversations"][1]["value"] for record in json.loads((folder / f"{style}.json").read_text())]
        for style in ("full", "lora")
    ]
    assert said[1] == [f"this shows {answer}" for answer in said[0]] and len(set(said[0])) > 1
    full, lora = (load_recipe(str(folder / f"{style}.yaml")).recipe for style in ("full", "lora"))
    assert full.stages[0].lora is None and lora.stages[0].lora is not None
    assert lora.model.language_model == str(folder / "full-llava")


def _shape(file: Path) -> int:
    """1 for wide, 0 for square, -1 for tall."""
    with Image.open(file) as image:
        return (image.width > image.height) - (image.width < image.height)


def test_what_stands_in_the_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").touch()
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr() == ("", f"tiny_model: {tmp_path}: something is there already\n")
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
