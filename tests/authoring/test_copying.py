"""A copy means what the gallery's recipe means, and needs no other file."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_recipes.authoring.gallery import GalleryRecipe, copied_text, find, gallery
from llava_recipes.recipe.load import LoadedRecipe, load_recipe
from llava_recipes.runner.facts import plan_recipe

LEFT_BEHIND = {"extends", "env", "vars"}


def _copy(entry: GalleryRecipe, folder: Path) -> LoadedRecipe:
    file = folder / "copied.yaml"
    file.write_text(copied_text(entry, file), encoding="utf-8")
    return load_recipe(str(file))


@pytest.mark.parametrize("entry", gallery(), ids=lambda entry: entry.name)
def test_a_copy_means_the_same(entry: GalleryRecipe, tmp_path: Path) -> None:
    copied, original = _copy(entry, tmp_path), load_recipe(str(entry.file))
    assert copied.recipe.extends is None
    assert copied.recipe.model_dump(exclude=LEFT_BEHIND) == original.recipe.model_dump(exclude=LEFT_BEHIND)
    assert plan_recipe(copied, world_size=8) == plan_recipe(original, world_size=8)


@pytest.mark.parametrize("entry", gallery(), ids=lambda entry: entry.name)
def test_a_copy_names_itself(entry: GalleryRecipe, tmp_path: Path) -> None:
    text = copied_text(entry, tmp_path / "copied.yaml")
    assert f"recipes/{entry.name}.yaml" not in text
    assert text.count("\n") > 30
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_recipe_without_parents_is_copied_as_it_stands(tmp_path: Path) -> None:
    entry = find("demo")
    copied = copied_text(entry, tmp_path / "demo.yaml").splitlines()
    assert copied[1:] == entry.file.read_text(encoding="utf-8").splitlines()[1:]


def test_remarks_and_used_variables_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file that each value is written in; an unused variable would be an error in a file alone."""
    monkeypatch.setenv("DATA_DIR", "/data")
    (tmp_path / "base.yaml").write_text(
        "version: 1\nenv: [DATA_DIR, UNUSED]\n"
        "vars: {data: '${DATA_DIR}/d', other: 'x${third}', third: y}\nmodel:  # put together\n"
        "  language_model: lmsys/vicuna-7b-v1.5  # of the base\n"
        "  vision_tower: {source: openai/clip-vit-large-patch14-336}  # sees\n"
        "stages:\n  - name: one\n    trainable: [projector]  # alone\n    data: {template: plain, sources: "
        "[{annotations: '${data}/a.json'}]}\n    train: {max_steps: 5, learning_rate: 1e-3}\n"
        "    output_dir: ./o\n",
        encoding="utf-8",
    )
    file = tmp_path / "mine.yaml"
    file.write_text(
        "# The head.\nextends: base.yaml\nname: mine\nstages:\n  - name: one\n"
        "    train:\n      learning_rate: 5e-4  # lower\n",
        encoding="utf-8",
    )
    entry = GalleryRecipe("mine", "", file, *[""] * 8)
    text = copied_text(entry, tmp_path / "copied.yaml")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[:2] == ["# The head.", "version: 1"]
    assert "model: # put together" in lines
    assert "language_model: lmsys/vicuna-7b-v1.5 # of the base" in lines
    assert "trainable: [projector] # alone" in lines
    assert "learning_rate: 5e-4 # lower" in lines
    assert "- annotations: ${data}/a.json" in lines
    assert text.count("# sees") == 1
    assert "env: [DATA_DIR]" in lines
    assert not [name for name in ("other", "third", "UNUSED") if name in text]
    assert _copy(entry, tmp_path).recipe.stages == load_recipe(str(file)).recipe.stages


def test_keys_stand_in_the_order_of_the_language(tmp_path: Path) -> None:
    copied = _copy(find("pretrain_v15_13b"), tmp_path)
    assert list(copied.values) == ["version", "name", "vars", "model", "stages"]
    stages = copied.values["stages"]
    assert isinstance(stages, list) and isinstance(stages[0], dict)
    assert list(stages[0])[:4] == ["name", "freeze", "trainable", "data"]
