"""A run that the disk has no room for is refused before anything loads, with what would fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llava_recipes.errors import Problem
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import load_source
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.runner.free_space import disk_of, free_space_problems
from tests.tiny import stage1_values, yaml_text


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def plan(folder: Path, **train: Any) -> Plan:
    given = {"save_strategy": "steps", "save_steps": 2, "max_steps": 10, **train}
    values = stage1_values(folder / "run", **given)
    del values["stages"][0]["train"]["num_train_epochs"]
    return plan_recipe(load_source(yaml_text(values), "recipe.yaml"), world_size=1)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that every disk has free, to be set by a test."""
    left = [10**12]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2 * 10**12, 0, left[0]))
    return left


def only(planned: Plan) -> Problem:
    (problem,) = free_space_problems(planned, [0])
    return problem


def test_enough_room_is_no_problem(tmp_path: Path, free: list[int]) -> None:
    planned = plan(tmp_path)
    written = disk_of(planned, planned.stages[0])
    assert written is not None and written.peak_bytes is not None
    free[0] = written.peak_bytes
    assert list(free_space_problems(planned, [0])) == []
    free[0] = written.peak_bytes // 2
    assert only(planned).code == "disk-full"


def test_the_advice_fits_when_obeyed(tmp_path: Path, free: list[int]) -> None:
    planned = plan(tmp_path)
    written = disk_of(planned, planned.stages[0])
    assert written is not None
    free[0] = 3 * written.checkpoint_bytes + written.final_bytes
    problem = only(planned)
    assert problem.path == ("stages", 0, "train", "save_total_limit")
    assert problem.hint is not None and problem.hint.startswith("write `save_total_limit: 2` in `train`")
    assert list(free_space_problems(plan(tmp_path, save_total_limit=2), [0])) == []
    free[0] = written.checkpoint_bytes
    problem = only(plan(tmp_path, save_total_limit=1))
    assert problem.path == ("stages", 0, "output_dir")
    assert "save_total_limit" not in (problem.hint or "")


def test_what_is_there_counts_as_written(tmp_path: Path, free: list[int]) -> None:
    planned = plan(tmp_path)
    written = disk_of(planned, planned.stages[0])
    assert written is not None and written.peak_bytes is not None
    free[0] = written.peak_bytes // 3
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-2" / "trained.safetensors").write_bytes(bytes(written.peak_bytes))
    assert list(free_space_problems(planned, [0])) == []


def test_a_finished_stage_writes_nothing(tmp_path: Path, free: list[int]) -> None:
    free[0] = 0
    planned = plan(tmp_path)
    assert len(list(free_space_problems(planned, [0]))) == 1
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "DONE").write_text("{}")
    assert list(free_space_problems(planned, [0])) == []


def test_stages_on_one_disk_share_its_room(tmp_path: Path, free: list[int]) -> None:
    values = stage1_values(tmp_path / "one", save_strategy="steps", save_steps=2, max_steps=4)
    del values["stages"][0]["train"]["num_train_epochs"]
    second = {**values["stages"][0], "name": "again", "output_dir": str(tmp_path / "two")}
    values["stages"].append(second)
    planned = plan_recipe(load_source(yaml_text(values), "recipe.yaml"), world_size=1)
    written = disk_of(planned, planned.stages[0])
    assert written is not None and written.peak_bytes is not None
    free[0] = int(1.5 * written.peak_bytes)
    (problem,) = free_space_problems(planned, [0, 1])
    assert problem.message.startswith("the disk has no room for what stage `again` writes: ")
    free[0] = 2 * written.peak_bytes
    assert list(free_space_problems(planned, [0, 1])) == []


def test_a_disk_without_figures_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 0))
    assert list(free_space_problems(plan(tmp_path), [0])) == []
