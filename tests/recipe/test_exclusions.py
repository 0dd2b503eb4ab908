"""Keys that exclude each other: they take each other's place there alone where they contradict each other."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.errors import KeyPath
from llava_recipes.recipe.exclusions import ANY, EXCLUSIONS, check_exclusions, displaced
from llava_recipes.recipe.extends import lay_over
from llava_recipes.recipe.language import field_at
from llava_recipes.recipe.override import resolve
from llava_recipes.recipe.scalars import Value, value_at
from llava_recipes.recipe.source import parse_source
from tests.laws import examples

KEYS = sorted({key for exclusion in EXCLUSIONS for key in (exclusion.winner, exclusion.loser)})

FREE: tuple[KeyPath, ...] = (
    ("vars",),
    ("model", "language_model", "config"),
    ("model", "language_model", "config", "rope_scaling"),
    ("model", "vision_tower", "config"),
    ("model", "vision_tower", "image_processor"),
    ("stages", 0, "train", "extra"),
    ("stages", 0, "deepspeed"),
    ("stages", 0, "deepspeed", "optimizer"),
    ("model",),
    ("stages", 0),
    (),
)
"""Mappings in which these names stand for other things, or for nothing that the language knows."""

contents = st.dictionaries(st.sampled_from(KEYS), st.integers(0, 9), min_size=1)


def recipe_with(place: KeyPath, inner: dict[str, int]) -> dict[str, Any]:
    """A recipe that has a mapping at a place, and the stage that a place below `stages` needs."""
    value: Any = dict(inner)
    for segment in reversed(place):
        value = [{"name": "only", **value}] if isinstance(segment, int) else {segment: value}
    return {"name": "x", **value}


def at(root: Value, place: KeyPath) -> dict[str, Value]:
    value = value_at(root, place)
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("place", FREE, ids=lambda place: ".".join(map(str, place)) or "top")
@examples(60)
@given(below=contents, above=contents)
def test_a_child_takes_nothing_away_where_a_name_means_something_else(
    place: KeyPath, below: dict[str, int], above: dict[str, int]
) -> None:
    parent, child = (parse_source(yaml.safe_dump(recipe_with(place, each)), "f") for each in (below, above))
    merged = at(lay_over(parent, child).root, place)
    assert {key: merged[key] for key in (*below, *above)} == {**below, **above}


@pytest.mark.parametrize("place", FREE[:8], ids=lambda place: ".".join(map(str, place)))
@examples(60)
@given(below=contents, key=st.sampled_from(KEYS), number=st.integers(0, 9))
def test_an_override_takes_nothing_away_where_a_name_means_something_else(
    place: KeyPath, below: dict[str, int], key: str, number: int
) -> None:
    text = yaml.safe_dump(recipe_with(place, below))
    override = f"{'.'.join(map(str, (*place, key)))}={number}"
    merged = at(resolve(parse_source(text, "f"), [override]).root, place)
    assert {each: merged[each] for each in (*below, key)} == {**below, key: number}


@pytest.mark.parametrize("exclusion", EXCLUSIONS, ids=lambda each: f"{each.winner}-{each.loser}")
def test_every_exclusion_is_one_of_keys_that_exist_and_is_both_displaced_and_reported(exclusion: Any) -> None:
    place = tuple(0 if segment == ANY else segment for segment in exclusion.place)
    for key in (exclusion.winner, exclusion.loser):
        assert field_at((*place, key)) is not None
    assert (*place, exclusion.loser) in displaced((*place, exclusion.winner), 1, given=(), below=())
    others = displaced((*place, exclusion.loser), 1, given=(), below=())
    assert ((*place, exclusion.winner) in others) is exclusion.mutual
    both = recipe_with(place, {exclusion.winner: 1, exclusion.loser: 1})
    assert [problem.path for problem in check_exclusions(both)] == [(*place, exclusion.loser)]


LANGUAGE_MODEL: KeyPath = ("model", "language_model")


@pytest.mark.parametrize(
    ("below", "above", "tokenizer"),
    [
        # The tokenizer of random weights is nothing to a pretrained model, which has its own.
        ({"config": 1, "tokenizer": 2}, {"source": 3}, None),
        ({"config": 1, "tokenizer": 2}, {"source": 3, "tokenizer": 4}, 4),
        ({"source": 1, "tokenizer": 2}, {"source": 3}, 2),
        ({"source": 1, "tokenizer": 2}, {"config": 3}, 2),
    ],
)
def test_a_tokenizer_goes_with_the_config_that_it_belongs_to(
    below: dict[str, int], above: dict[str, int], tokenizer: int | None
) -> None:
    parent, child = (
        parse_source(yaml.safe_dump(recipe_with(LANGUAGE_MODEL, each)), "f") for each in (below, above)
    )
    overrides = [f"model.language_model.{key}={value}" for key, value in above.items()]
    for whole in (lay_over(parent, child), resolve(parent, overrides), resolve(parent, overrides[::-1])):
        assert at(whole.root, LANGUAGE_MODEL).get("tokenizer") == tokenizer


def test_a_stage_may_have_the_name_of_such_a_key() -> None:
    below, above = (
        parse_source(yaml.safe_dump({"stages": [{"name": name, "freeze": "all"}]}), "f")
        for name in ("source", "config")
    )
    stages: Any = at(lay_over(below, above).root, ())["stages"]
    assert [stage["name"] for stage in stages] == ["source", "config"]
