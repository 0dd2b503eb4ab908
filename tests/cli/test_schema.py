"""`llava-recipe schema`: the committed schemas are the code's, and another validator agrees with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from jsonschema import Draft202012Validator

from llava_recipes.cli.main import main
from llava_recipes.errors import RecipeError
from llava_recipes.recipe.json_schema import value_schema
from llava_recipes.recipe.schema import Recipe
from llava_recipes.recipe.source import parse_source
from tests.installed import only_with_the_tested

ROOT = Path(__file__).parent.parent.parent
BASES = sorted((ROOT / "recipes" / "base").rglob("*.yaml"))
RECIPES = sorted(set((ROOT / "recipes").rglob("*.yaml")) - set(BASES))
# Errors of shape, which a schema can find; the others are rules between keys, or of YAML itself.
SHAPE_ERRORS = [
    file
    for file in sorted((ROOT / "tests" / "errors").glob("*.yaml"))
    if file.stem.startswith(("key_", "value_", "choice_"))
]
SHAPE_RULES = {"choice_deepspeed"}


def _schema(kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(
        (ROOT / "schemas" / f"{kind}.schema.json").read_text(encoding="utf-8")
    )
    return schema


def _values(file: Path) -> object:
    return parse_source(file.read_bytes(), str(file)).root


@only_with_the_tested("pydantic")
@pytest.mark.parametrize("kind", ["recipe", "base", "plan"])
def test_the_committed_schema_is_the_code(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """After a change: llava-recipe schema KIND > schemas/KIND.schema.json."""
    assert main(["schema", kind]) == 0
    assert capsys.readouterr().out == (ROOT / "schemas" / f"{kind}.schema.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["recipe", "base", "plan"])
def test_the_schema_is_one(kind: str) -> None:
    Draft202012Validator.check_schema(_schema(kind))


def test_recipe_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == _schema("recipe")


def test_there_are_recipes() -> None:
    assert RECIPES
    assert BASES
    assert len(SHAPE_ERRORS) > 30


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_shipped_recipe_fits(file: Path) -> None:
    Draft202012Validator(_schema("recipe")).validate(_values(file))


@pytest.mark.parametrize("file", BASES, ids=lambda file: file.stem)
def test_a_shipped_base_fits_its_own_schema_alone(file: Path) -> None:
    Draft202012Validator(_schema("base")).validate(_values(file))


def test_what_a_recipe_needs_may_stand_in_its_parents() -> None:
    recipe = Draft202012Validator(_schema("recipe"))
    part: dict[str, object] = {"extends": "base.yaml", "stages": [{"name": "pretrain", "train": {}}]}
    assert recipe.is_valid(part)
    assert not recipe.is_valid({**part, "stages": [{"train": {}}]})
    assert not recipe.is_valid({**part, "stages": [{"name": "pretrain", "trian": {}}]})
    alone = {key: value for key, value in part.items() if key != "extends"}
    assert not recipe.is_valid(alone)
    assert Draft202012Validator(_schema("base")).is_valid(alone)


@pytest.mark.parametrize(
    "path", ["name", "model", "model.vision_tower", "stages", "stages.0.train.learning_rate"]
)
def test_a_recipe_without_parents_needs_every_key(path: str) -> None:
    values: Any = _values(ROOT / "recipes" / "demo.yaml")
    at = values
    *parents, last = path.split(".")
    for key in parents:
        at = at[int(key)] if isinstance(at, list) else at[key]
    del at[last]
    assert not Draft202012Validator(_schema("recipe")).is_valid(values)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_another_reader_sees_the_same_values(file: Path) -> None:
    """PyYAML's own reader differs in numbers such as 1e-3 alone, which it takes for text."""

    def same(ours: object, theirs: object) -> bool:
        if isinstance(ours, dict) and isinstance(theirs, dict):
            return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
        if isinstance(ours, list) and isinstance(theirs, list):
            return len(ours) == len(theirs) and all(map(same, ours, theirs))
        return ours == theirs or (isinstance(ours, float) and ours == float(str(theirs)))

    assert same(_values(file), yaml.safe_load(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("file", SHAPE_ERRORS, ids=lambda file: file.stem)
def test_an_error_of_shape_is_refused_by_the_schema_too(file: Path) -> None:
    try:
        values = _values(file)
    except RecipeError:
        pytest.fail("an error of YAML has another name")
    refused = not Draft202012Validator(_schema("recipe")).is_valid(values)
    assert refused != (file.stem in SHAPE_RULES)


def test_every_mapping_is_closed_and_every_key_described() -> None:
    schema = value_schema(Recipe, title="recipe")
    for name, definition in _definitions(cast(dict[str, Any], schema)):
        if "properties" not in definition:
            continue
        assert definition["additionalProperties"] is False, name
        for key, value in definition["properties"].items():
            described = "description" in value or "$ref" in value
            assert described, f"{name}.{key}"
            assert key in definition.get("required", ()) or "default" in value, f"{name}.{key}"


def _definitions(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "Recipe", schema
    yield from schema["$defs"].items()
