"""How much of each source is used."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.errors import RecipeError
from llava_recipes.plan.compile import Facts, compile_recipe
from llava_recipes.plan.data import count_drawn, count_held_out, count_used
from llava_recipes.plan.types import StagePlan
from llava_recipes.recipe.load import load_recipe
from tests.tiny import stage1_values, write_recipe

counts = st.integers(1, 3_000_000)


@given(num_records=counts, percent=st.integers(1, 100))
def test_percentages_are_rounded_as_in_llava_next(num_records: int, percent: int) -> None:
    assert count_drawn(f"random:{percent}%", num_records) == math.ceil(percent * num_records / 100)


def test_shares_are_exact_where_floats_are_not() -> None:
    assert math.ceil(0.07 * 100) == 8
    assert count_used(0.07, 100) == count_drawn("end:7%", 100) == count_drawn("first:7.0%", 100) == 7
    assert count_drawn("first:0.5%", 1000) == 5
    assert count_drawn("first:1000", 24) == 1000
    assert [count_used(weight, 5) for weight in (0.1, 1.0, 2.0, 2.5)] == [1, 5, 10, 13]


@given(drawn=st.lists(st.integers(0, 10_000), min_size=1, max_size=6), split=st.integers(1, 5000))
def test_a_number_is_held_out_in_proportion(drawn: list[int], split: int) -> None:
    if not sum(drawn):
        return
    held_out = count_held_out(float(split), list(drawn))
    assert sum(count or 0 for count in held_out) == min(split, sum(drawn))
    for count, whole in zip(held_out, drawn, strict=True):
        assert count is not None and 0 <= count <= whole
        assert abs(count - min(split, sum(drawn)) * whole / sum(drawn)) < 1


def test_a_share_is_held_out() -> None:
    assert count_held_out(0.01, [558_128]) == [5582]
    assert count_held_out(0.1, [10, None]) == [None, None]


def planned(tmp_path: Any, *sources: dict[str, Any], validation: Any = None, **train: Any) -> StagePlan:
    values = stage1_values(tmp_path / "out", **train)
    data = values["stages"][0]["data"]
    data["sources"] = [
        {"annotations": f"{index}.json", "images": "images", **source} for index, source in enumerate(sources)
    ]
    if validation is not None:
        data["validation"] = validation
    recipe = load_recipe(str(write_recipe(values, tmp_path / "recipe.yaml"))).recipe
    return compile_recipe(recipe, world_size=2, facts=Facts()).plan.stages[0]


def test_the_plan_counts_what_is_used(tmp_path: Any) -> None:
    stage = planned(
        tmp_path,
        {"num_samples": 1000, "sampling_strategy": "random:10%"},
        {"num_samples": 300, "weight": 2.0},
        validation={"split": 40},
        num_train_epochs=2,
        eval_strategy="steps",
        eval_steps=50,
    )
    assert [source.num_held_out for source in stage.data.sources] == [10, 30]
    assert [source.num_used for source in stage.data.sources] == [90, 540]
    assert stage.data.num_samples == 630
    assert (stage.train.steps_per_epoch, stage.train.max_steps) == (79, 158)
    validation = stage.data.validation
    assert validation is not None
    assert (validation.num_samples, validation.num_evaluations) == (40, 4)
    assert [source.part for source in validation.sources] == ["held_out", "held_out"]


@pytest.mark.parametrize(("strategy", "evaluations"), [("no", 1), ("epoch", 3)])
def test_files_of_their_own_leave_the_training_data_whole(
    tmp_path: Any, strategy: str, evaluations: int
) -> None:
    own = {"sources": [{"annotations": "v.json", "num_samples": 7}]}
    without = planned(tmp_path, {"num_samples": 100})
    stage = planned(tmp_path, {"num_samples": 100}, validation=own, eval_strategy=strategy)
    assert stage.data.sources == without.data.sources
    assert stage.train.max_steps == without.train.max_steps == 39
    assert stage.data.validation is not None
    assert stage.data.validation.num_evaluations == evaluations


def test_nothing_is_counted_while_a_file_is_not_there(tmp_path: Any) -> None:
    stage = planned(tmp_path, {"num_samples": 100}, {}, validation={"split": 0.1}, eval_strategy="epoch")
    assert stage.data.num_samples is stage.train.max_steps is None
    assert stage.data.validation is not None
    assert stage.data.validation.num_samples is stage.data.validation.num_evaluations is None


@pytest.mark.parametrize(
    ("source", "validation", "message"),
    [
        ({"num_samples": 24, "sampling_strategy": "first:25"}, None, "asks for more records than the file"),
        (
            {"num_samples": 24, "sampling_strategy": "random:50%"},
            {"split": 12},
            "nothing is left to train on",
        ),
        (
            {"num_samples": 24},
            {"sources": [{"annotations": "v.json", "num_samples": 5, "sampling_strategy": "end:6"}]},
            "asks for more records than the file",
        ),
    ],
)
def test_more_than_there_is(tmp_path: Any, source: Any, validation: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        planned(tmp_path, source, validation=validation)
