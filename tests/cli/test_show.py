"""`llava-recipe show`: a recipe of its own that means the same, and true places behind its values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.cli.main import main
from llava_recipes.recipe.load import LoadedRecipe, load_recipe, load_source
from llava_recipes.recipe.source import parse_source
from llava_recipes.recipe.writer import write_resolved, write_with_remarks
from llava_recipes.runner.facts import compile_loaded
from tests.laws import examples

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted(file for file in (ROOT / "recipes").rglob("*.yaml") if file.parent.name != "base")
PRETRAIN = "recipes/pretrain_v15_13b.yaml"
REMARK = re.compile(r"^(?P<value>.*?\S) +# (?P<remark>[^#]*)$")
NOT_SHOWN = {"extends", "env", "vars"}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["show", *words]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_what_is_shown_is_a_recipe_that_means_the_same(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, str(file))
    again, first = load_source(text, "shown.yaml"), load_recipe(str(file))
    assert again.recipe.model_dump(exclude=NOT_SHOWN) == first.recipe.model_dump(exclude=NOT_SHOWN)
    assert not NOT_SHOWN & set(again.values)
    assert write_resolved(again.recipe) == text
    # What is written out is not reported where what was left out is not.
    assert messages(again) <= messages(first)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("save_steps: 1", "save_strategy: epoch"),
        ("save_steps: 1", "save_strategy: 'no', eval_strategy: 'no'"),
        ("LM", "{source: lmsys/vicuna-7b-v1.5, quantization: {bits: 8}}"),
        ("trainable: [projector]", "lora: {r: 8}"),
        ("trainable: [projector]", "freeze: none"),
        ("runs/a", '"$${x}/no"'),
        ("template: v1", "template: v1, validation: {split: 5}"),
        ("template: v1", "template: v1, shuffle: false, image_aspect_ratio: anyres"),
    ],
)
def test_what_is_shown_is_as_valid_as_what_was_written(old: str, new: str) -> None:
    text = """\
version: 1
name: odd
model: {language_model: LM, vision_tower: {source: openai/clip-vit-large-patch14-336}, projector: {}}
stages:
  - name: a
    trainable: [projector]
    data: {template: v1, sources: [{annotations: a.json, images: b}]}
    train: {max_steps: 50, learning_rate: 1e-4, bf16: true, global_batch_size: 128, save_steps: 1}
    output_dir: runs/a
"""
    first = load_source(text.replace(old, new).replace("LM", "lmsys/vicuna-7b-v1.5", 1), "odd.yaml")
    again = load_source(write_resolved(first.recipe), "shown.yaml")
    assert again.recipe == first.recipe
    assert messages(again) <= messages(first)


def messages(loaded: LoadedRecipe) -> set[str]:
    return {warning.message for warning in compile_loaded(loaded, world_size=1).warnings}


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_remarks_change_no_value_and_stand_behind_each(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, remarked = shown(capsys, str(file)), shown(capsys, str(file), "--origin")
    assert parse_source(remarked, "f").root == parse_source(plain, "f").root
    for line in remarked.splitlines():
        # A key that holds others has no place of its own.
        assert ("  # " in line) != line.endswith(":")


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_place_holds_the_value(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each remark names a line of a file that has the key or the value in it, or there is a default."""
    num_places = 0
    for line in shown(capsys, str(file.relative_to(ROOT)), "--origin").splitlines():
        found = REMARK.match(line)
        if found is None or found["remark"] == "default":
            continue
        place = found["remark"].split(", ")[0]
        name, _, number = place.rpartition(":")
        written = Path(name).read_text(encoding="utf-8").splitlines()[int(number) - 1]
        key, _, value = found["value"].strip().removeprefix("- ").rpartition(": ")
        assert f"{key}:" in written or value.strip('"') in written, (line, written)
        num_places += 1
    assert num_places > 20


def test_where_values_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    base = Path("recipes/base/pretrain_v15.yaml").read_text(encoding="utf-8").splitlines()
    data = next(number for number, line in enumerate(base, 1) if line.startswith("  data: "))
    images = next(number for number, line in enumerate(base, 1) if "${data}/images" in line)
    text = shown(capsys, PRETRAIN, "--origin", "--set", "stages.pretrain.train.max_steps=5")
    remarks = {
        found["value"].strip(): found["remark"] for line in text.splitlines() if (found := REMARK.match(line))
    }
    assert remarks["max_steps: 5"] == "--set stages.pretrain.train.max_steps=5"
    assert remarks["adam_beta1: 0.9"] == "default"
    assert remarks["language_model: lmsys/vicuna-13b-v1.5"].startswith(f"{PRETRAIN}:")
    assert remarks["images: ./playground/data/LLaVA-Pretrain/images"] == (
        f"recipes/base/pretrain_v15.yaml:{images}, ${{data}} from recipes/base/pretrain_v15.yaml:{data}"
    )
    text = shown(capsys, PRETRAIN, "--origin", "--set", "vars.data=/mnt")
    assert "# recipes/base/pretrain_v15.yaml" in text
    assert "${data} from --set vars.data=/mnt" in text


def test_the_environment_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAVA_DATA", "/data # not a remark")
    file = tmp_path / "child.yaml"
    file.write_text(
        f"extends: {ROOT / PRETRAIN}\nenv: [LLAVA_DATA]\nvars: {{data: '${{LLAVA_DATA}}/x'}}\n",
        encoding="utf-8",
    )
    text = shown(capsys, str(file), "--origin")
    assert f"${{data}} from {file}:3, ${{LLAVA_DATA}} from the environment" in text
    values: Any = parse_source(text, "f").root
    assert values["stages"][0]["data"]["sources"][0]["images"] == "/data # not a remark/x/images"


def test_a_recipe_that_is_wrong_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "tests/errors/extends_misspelt.yaml"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == Path("tests/errors/extends_misspelt.txt").read_text(encoding="utf-8")


# A recipe holds no control characters, and no key `<<`.
texts = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=20).filter(lambda text: text != "<<")
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(-1e9, 1e9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


@examples(200)
@given(values)
def test_any_value_is_written_so_that_it_is_read_back(value: object) -> None:
    first: Any = load_recipe(PRETRAIN).recipe
    stage = first.stages[0].model_copy(
        update={"train": first.stages[0].train.model_copy(update={"extra": {"field": value}})}
    )
    recipe = first.model_copy(update={"stages": (stage,)})
    for text in (write_resolved(recipe), write_with_remarks(recipe, lambda path: "remark")):
        root: Any = parse_source(text, "f").root
        read = root["stages"][0]["train"]["extra"]["field"]
        assert read == _escaped(value)
        assert yaml.safe_load(text)["name"] == first.name


def _escaped(value: object) -> object:
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    return value
