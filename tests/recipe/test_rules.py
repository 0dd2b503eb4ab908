"""Sources and validation across files and overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava_recipes.errors import RecipeError
from llava_recipes.recipe.load import load_recipe
from llava_recipes.recipe.schema import Validation
from tests.tiny import stage1_values, write_recipe

ROOT = Path(__file__).parents[2]
OWN = {"sources": [{"annotations": "val.json"}]}


def validation(tmp_path: Path, below: Any, above: Any, *overrides: str) -> Validation | None:
    """What a recipe says over a base."""
    values = stage1_values(tmp_path / "out")
    values["stages"][0]["data"]["validation"] = below
    write_recipe(values, tmp_path / "base.yaml")
    stages = [] if above is None else [{"name": "pretrain", "data": {"validation": above}}]
    child = {"version": 1, "name": "child", "extends": "base.yaml", **({"stages": stages} if stages else {})}
    loaded = load_recipe(str(write_recipe(child, tmp_path / "child.yaml")), overrides)
    return loaded.recipe.stages[0].data.validation


@pytest.mark.parametrize(("below", "above"), [({"split": 5}, OWN), (OWN, {"split": 5})])
def test_one_kind_of_validation_takes_the_place_of_the_other(tmp_path: Path, below: Any, above: Any) -> None:
    found = validation(tmp_path, below, above)
    assert found is not None
    assert (found.split, found.sources is None) == ((5, True) if above != OWN else (None, False))


def test_an_override_takes_its_place_too(tmp_path: Path) -> None:
    found = validation(tmp_path, OWN, None, "stages.pretrain.data.validation.split=0.1")
    assert found == Validation(split=0.1, sources=None)


def test_a_base_keeps_its_sources(tmp_path: Path) -> None:
    found = validation(tmp_path, OWN, None)
    assert found is not None and found.sources is not None
    assert found.sources[0].annotations == "val.json"


def test_two_thousand_globs_are_not_too_many(tmp_path: Path) -> None:
    values = stage1_values(tmp_path)
    file = tmp_path / "recipe.yaml"
    values["stages"][0]["trainable"] = [f"projector.{number}" for number in range(2_000)]
    load_recipe(str(write_recipe(values, file)))
    values["stages"][0]["trainable"] += ["projector.a"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(write_recipe(values, file)))
    assert [problem.code for problem in caught.value.problems] == ["too-many-globs"]


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        ("stages.0.data.validation={foo: 1}", ["unknown-key"]),
        ("stages.0.data.validation={splt: 1}", ["unknown-key"]),
        ("stages.0.data.validation={}", ["one-of-two-keys-is-needed"]),
        ("stages.0.data.validation={split: null}", ["one-of-two-keys-is-needed"]),
    ],
)
def test_one_mistake_is_reported_once(values: str, codes: list[str]) -> None:
    """A key that stands for one of two needed ones is all there is to fix."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(ROOT / "recipes/pretrain_v15_7b.yaml"), (values,))
    assert [problem.code for problem in caught.value.problems] == codes


def test_quantization_that_is_no_mapping_is_one_problem() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(ROOT / "recipes/demo.yaml"), ("model.language_model.quantization=4bit",))
    assert [problem.code for problem in caught.value.problems] == ["value-of-wrong-kind"]
