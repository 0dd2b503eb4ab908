"""What the heads of the gallery's recipes say; a copy means the same and needs no other file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_recipes.authoring.copying import copied_text
from llava_recipes.authoring.gallery import (
    GalleryRecipe,
    families,
    find,
    find_all,
    gallery,
    gallery_folder,
    modeline,
    read_head,
    schema_file,
)
from llava_recipes.errors import RecipeError
from llava_recipes.recipe.load import LoadedRecipe, load_recipe
from llava_recipes.runner.facts import plan_recipe

ENTRIES = gallery()
LEFT_BEHIND = {"extends", "env", "vars"}


def test_there_is_a_gallery() -> None:
    names = {entry.name for entry in ENTRIES}
    assert {"demo", "pretrain_v15_7b", "pretrain_v15_13b"} <= names
    assert len(names) == len(ENTRIES)


def test_every_whole_recipe_is_listed() -> None:
    """What loads by itself is a recipe; what does not is there to be extended."""
    whole = set()
    for file in gallery_folder().rglob("*.yaml"):
        try:
            load_recipe(str(file))
        except RecipeError:
            continue
        whole.add(file)
    assert whole == {entry.file for entry in ENTRIES}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_recipe_says_what_to_expect(entry: GalleryRecipe) -> None:
    """The head needs `Run`, `Hardware` and `Expect`; the last gives time and loss in clauses of their own."""
    for label in ("purpose", "family", "hardware", "time", "loss", "expect", "source"):
        assert getattr(entry, label), f"{label} of {entry.name}"


@pytest.mark.parametrize(
    ("expect", "time", "loss"),
    [
        (
            "2,181 steps, loss ending near 2; the original takes 5.5 h",
            "the original takes 5.5 h",
            "loss ending near 2",
        ),
        ("the loss falls; no duration is published", "no duration is published", "the loss falls"),
        ("50 s at most, a loss of 1", "50 s at most", "a loss of 1"),
        ("2,181 steps", "", ""),
    ],
)
def test_time_and_loss_are_distinguished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect: str, time: str, loss: str
) -> None:
    (tmp_path / "one.yaml").write_text(
        f"# Purpose.\n# Run       it\n# Expect    {expect}\n", encoding="utf-8"
    )
    monkeypatch.setattr("llava_recipes.authoring.gallery.gallery_folder", lambda: tmp_path)
    (entry,) = gallery()
    assert (entry.time, entry.loss) == (time, loss)


@pytest.mark.parametrize(
    ("hardware", "expect", "machine", "duration"),
    [
        ("8×A100-80G: 16 on each", "the original takes 5.5 h", "8×A100-80G", "5.5 h"),
        ("2 CPU cores; no GPU", "0.7 h by the estimate of `plan`", "2 CPU cores", "0.7 h (estimate)"),
        ("one card", "no duration is published", "one card", ""),
        ("8×A100-80G", "it takes 10 h on 8×A100-40G", "8×A100-80G", "10 h on 8×A100-40G"),
    ],
)
def test_a_line_holds_the_gist(hardware: str, expect: str, machine: str, duration: str) -> None:
    entry = GalleryRecipe(
        *("name", "family", Path("x")),
        purpose="LLaVA-1.5 7B, Stage 1: alignment. More.",
        hardware=hardware,
        time=expect,
        loss="",
        expect=expect,
        needs="",
        data="",
        source="",
    )
    assert entry.title == "LLaVA-1.5 7B, Stage 1"
    assert (entry.machine, entry.duration) == (machine, duration)


def test_families_are_in_the_order_of_a_reader() -> None:
    grouped = families()
    assert sum(map(len, grouped.values())) == len(ENTRIES)
    names = [entry.name for entry in grouped["LLaVA-1.5"]]
    order = ["pretrain_v15_7b", "finetune_v15_7b", "finetune_task_v15_7b", "pretrain_v15_13b"]
    assert sorted(order, key=names.index) == order


def test_a_family_is_found_by_its_name() -> None:
    assert find_all("llava v1") == families()["LLaVA v1"]
    assert find_all("demo.yaml") == (find("demo"),)


def test_a_head_is_read_by_its_labels() -> None:
    head = read_head(
        "# yaml-language-server: $schema=x\n#\n# One thing.\n# And more.\n#\n"
        "# Run       it\n#           now\n"
        "# Expect    a loss near 2; 3 h\nversion: 1\n# Hardware  not of the head\n"
    )
    assert head == {"": "One thing. And more.", "Run": "it now", "Expect": "a loss near 2; 3 h"}


@pytest.mark.parametrize("name", ["demo", "demo.yaml", "recipes/demo.yaml"])
def test_a_recipe_is_found_by_its_name(name: str) -> None:
    assert find(name).file == gallery_folder() / "demo.yaml"


def test_a_near_miss_is_reported() -> None:
    with pytest.raises(RecipeError) as stopped:
        find("pretrain_v15_7")
    assert stopped.value.problems[0].hint == "did you mean `pretrain_v15_7b`?"


def test_the_modeline_finds_the_schema(tmp_path: Path) -> None:
    """From inside the checkout by a path that can be committed, from elsewhere by the whole one."""
    for output in (gallery_folder() / "mine.yaml", tmp_path / "mine.yaml"):
        schema = modeline(output).partition("$schema=")[2]
        assert json.loads((output.parent / schema).read_text(encoding="utf-8"))
    assert modeline(gallery_folder() / "mine.yaml").endswith("$schema=../schemas/recipe.schema.json")
    assert modeline(tmp_path / "mine.yaml").endswith(str(schema_file().resolve()))


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
