"""Every key of the language is described, explained and in the reference."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from pydantic import ValidationError

from llava_recipes.authoring.explanation import FLAGS, example_lines, explain_key, find_keys, origin
from llava_recipes.authoring.gallery import schema_file
from llava_recipes.errors import KeyPath, RecipeError
from llava_recipes.recipe.json_schema import recipe_schema
from llava_recipes.recipe.keys import Key, all_keys
from llava_recipes.recipe.language import keys_at, spell_path
from llava_recipes.recipe.names import TRAINING_ARGUMENTS
from llava_recipes.recipe.override import read_override
from llava_recipes.recipe.schema import Recipe
from llava_recipes.recipe.source import parse_value
from tests.reference import HOW_TO, reference

ROOT = pathlib.Path(__file__).parent.parent.parent
KEYS = all_keys()
BY_PATH = {key.path: key for key in KEYS}


def _paths(path: KeyPath) -> Iterator[str]:
    """Every key that the schema's own types have, list entries as `[]`."""
    for key in keys_at(path):
        yield spell_path((*path, key)).replace("[0]", "[]")
        yield from _paths((*path, key))
        yield from _paths((*path, key, 0))


def test_the_keys_are_those_of_the_language() -> None:
    assert {key.path for key in KEYS} == set(_paths(()))
    assert len(KEYS) == len(BY_PATH) > 60


def test_the_shipped_schema_is_the_code() -> None:
    """After a change: llava-recipe schema > schemas/recipe.schema.json."""
    assert json.loads(schema_file().read_text(encoding="utf-8")) == recipe_schema()


def test_the_reference_is_in_step() -> None:
    committed = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert committed == reference(), f"the schema has changed; run: {HOW_TO}"
    assert HOW_TO in committed.partition("\n")[0]
    assert all(f"`{key.name}`" in committed for key in KEYS)


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_a_key_is_described(key: Key) -> None:
    assert key.meaning.endswith(".")
    assert key.type and "any value" not in key.type
    page = explain_key(key, width=80)
    assert key.path in page and key.meaning.split()[0] in page
    assert all(label in page for label in ("type ", "default ", "source "))


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_a_key_is_found_by_its_path(key: Key) -> None:
    assert find_keys(key.path) == (key,) or key.path == "name"
    assert key in find_keys(key.name)


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_every_example_shown_is_accepted(key: Key) -> None:
    for chosen in (key, *(replace(key, examples=(value,)) for value in key.examples)):
        assert _refused("\n".join(example_lines(chosen))) == []


def test_an_example_that_is_not_accepted_is_found() -> None:
    ratio = replace(BY_PATH["stages[].train.warmup_ratio"], examples=(1,))
    assert _refused("\n".join(example_lines(ratio))) == ["Input should be less than 1"]


def _refused(text: str) -> list[str]:
    """What the schema refuses in a part of a recipe; that the rest is missing doesn't count."""
    if not text:
        return []
    try:
        Recipe.model_validate_json(json.dumps(parse_value(text, "").root))
    except ValidationError as error:
        # A list whose entries lack keys counts as too short as well.
        return [each["msg"] for each in error.errors() if each["type"] not in ("missing", "too_short")]
    return []


@pytest.mark.parametrize("key", [key for key in KEYS if example_lines(key)], ids=lambda key: key.path)
def test_an_example_stands_where_the_key_belongs(key: Key) -> None:
    """And its value is one that the language takes, read as YAML from the page."""
    value = parse_value("\n".join(example_lines(key)), "").root
    for segment in key.path.split("."):
        assert isinstance(value, dict)
        value = value[segment.removesuffix("[]")]
        if segment.endswith("[]"):
            assert isinstance(value, list)
            value = value[0]
    if key.choices and key.type.count("|") == len(key.choices) - 1:
        assert value in key.choices


@pytest.mark.parametrize(
    ("path", "type_", "default"),
    [
        ("stages[].train.learning_rate", "number > 0", "none; the key is required"),
        ("stages[].train.adam_beta1", "number ≥ 0 and < 1", "0.9"),
        ("stages[].train.adam_epsilon", "number > 0", "1e-8"),
        ("stages[].train.save_strategy", 'steps | epoch | "no"', "steps"),
        ("stages[].train.bf16", "true or false", "false"),
        ("stages[].freeze", "all | none or list of strings", "all"),
        ("stages[].data.sources", "list of mappings", "none; the key is required"),
        ("model.language_model", "string or mapping", "none; the key is required"),
        ("model.vision_tower.select_layer", "whole number", "-2"),
        ("model.projector", "mapping", "see its keys"),
        ("version", "1", "none; the key is required"),
    ],
)
def test_types_and_defaults_in_words(path: str, type_: str, default: str) -> None:
    assert (BY_PATH[path].type, BY_PATH[path].default_text) == (type_, default)


@pytest.mark.parametrize("path", ["stages[].init_from", "stages[].data.image_grid_pinpoints"])
def test_a_default_that_the_meaning_names_is_not_denied(path: str) -> None:
    assert re.search(r"^default +see above$", explain_key(BY_PATH[path], width=80), re.M)


def test_what_is_needed_is_what_the_schema_needs() -> None:
    needed = {key.path for key in KEYS if key.needed and "." not in key.path}
    assert needed == {name for name, field in Recipe.model_fields.items() if field.is_required()}


def test_origins_name_keys_that_are_there() -> None:
    assert set(FLAGS) <= set(BY_PATH)
    ours = {"global_batch_size", "loss_normalization", "extra"}
    names = {key.name for key in KEYS if key.names[:2] == ("stages", "train") and len(key.names) == 3}
    for name in names - ours:
        assert f"TrainingArguments.{name}" in origin(f"stages[].train.{name}")
        # transformers 5 has dropped it; recipes keep it.
        assert name in TRAINING_ARGUMENTS or name == "warmup_ratio"
    for name in ours:
        assert origin(f"stages[].train.{name}") == "this recipe language"


@pytest.mark.parametrize(
    ("query", "paths"),
    [
        ("train.learning_rate", ["stages[].train.learning_rate"]),
        ("warmup_ratio", ["stages[].train.warmup_ratio"]),
        ("stages.pretrain.train.learning_rate", ["stages[].train.learning_rate"]),
        ("stages.0.train.learning_rate", ["stages[].train.learning_rate"]),
        ("stages[0].data.sources[1].images", ["stages[].data.sources[].images"]),
        ("`freeze:`", ["stages[].freeze"]),
        ("train", ["stages[].train"]),
        ("name", ["name", "stages[].name"]),
        ("stages.name", ["stages[].name"]),
        ("revision", ["model.language_model.revision", "model.vision_tower.revision"]),
        ("vision_tower.config.hidden_size", ["model.vision_tower.config"]),
        ("train.extra.ddp_timeout", ["stages[].train.extra"]),
    ],
)
def test_what_people_type(query: str, paths: list[str]) -> None:
    assert [key.path for key in find_keys(query)] == paths


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        ("train.learnin_rate", "did you mean"),
        ("lr", "write `learning_rate:`"),
        ("mm_projector_type", "write `type:`"),
        ("ddp_timeout", "`extra: {ddp_timeout: …}`"),
        ("zzzzzz", "shows the top level"),
        ("", "shows the top level"),
        ("...", "shows the top level"),
        ("x" * 10_000, "explain train.learning_rate"),
        ("\0\n[", "shows the top level"),
    ],
)
def test_what_is_no_key(query: str, hint: str) -> None:
    with pytest.raises(RecipeError) as stopped:
        find_keys(query)
    assert hint in str(stopped.value.problems[0].hint)


def test_a_path_of_an_example_can_be_set() -> None:
    """`explain` and `--set` mean the same by a path."""
    root = parse_value("{version: 1, stages: [{name: pretrain}]}", "").root
    override = read_override("stages.pretrain.train.learning_rate=1e-3", root)
    assert override.path == ("stages", 0, "train", "learning_rate")
