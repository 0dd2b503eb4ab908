"""DONE lists what a run left, and whoever uses a finished run sees what is missing, changed or added."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llava_recipes import seals
from llava_recipes.cli.main import main
from llava_recipes.errors import RecipeError
from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner import results
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.runner.results import RESULTS, check_results, read_done, remove_leftovers
from llava_recipes.runner.run_folder import is_stale, stage_plan, write_done, write_opening
from tests.sealed import as_of_old, seal_again
from tests.tiny import GOLDEN, stage1_values, write_recipe

WEIGHTS = "mm_projector.safetensors"


def finished(folder: Path) -> Path:
    """The recipe of two stages; the first is as if it had been trained."""
    values = stage1_values(folder / "one", max_steps=3)
    del values["stages"][0]["train"]["num_train_epochs"]
    second = json.loads(json.dumps(values["stages"][0]))
    second |= {"name": "second", "init_from": "pretrain", "output_dir": str(folder / "two")}
    values["stages"].append(second)
    recipe = write_recipe(values, folder / "recipe.yaml")
    plan = plan_recipe(load_recipe(str(recipe)), world_size=1)
    (folder / "one").mkdir()
    shutil.copy(GOLDEN / "06_stage1" / "base" / "init.safetensors", folder / "one" / WEIGHTS)
    for name in ("config.json", "trainer_state.json"):
        (folder / "one" / name).write_text("{}")
    write_opening(folder / "one", plan=stage_plan(plan, 0), recipe_yaml="version: 1\n", environment={})
    write_done(folder / "one", num_steps=3, last_loss=1.0, starts_from=())
    return recipe


def trouble(run: Path) -> str:
    with pytest.raises(RecipeError) as error:
        check_results(run)
    (problem,) = error.value.problems
    return f"{problem.message}\n{problem.found}\n{problem.hint}"


def test_done_lists_everything_that_is_read_later(tmp_path: Path) -> None:
    finished(tmp_path)
    expected = {WEIGHTS, "config.json", "trainer_state.json", "plan.json", "recipe.resolved.yaml"}
    files = check_results(tmp_path / "one")["files"]
    assert (
        isinstance(files, dict) and set(files) == expected | {"environment.json"} and set(files) < {*RESULTS}
    )


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "plan.json", "recipe.resolved.yaml"])
def test_what_is_wrong_is_said_by_name(name: str, tmp_path: Path) -> None:
    finished(tmp_path)
    file = tmp_path / "one" / name
    whole = file.read_bytes()
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert f"one: {name} was changed after the run was finished" in trouble(tmp_path / "one")
    file.write_bytes(whole[:-1])
    assert f"{name} has {len(whole) - 1:,} bytes instead of {len(whole):,}" in trouble(tmp_path / "one")
    file.unlink()
    assert f"{name} is missing" in trouble(tmp_path / "one")
    file.write_bytes(whole)
    check_results(tmp_path / "one")


def test_weights_that_were_added_are_found(tmp_path: Path) -> None:
    """They would be read instead of those that the run wrote."""
    finished(tmp_path)
    shutil.copy(tmp_path / "one" / WEIGHTS, tmp_path / "one" / "trained.safetensors")
    assert "trained.safetensors was added" in trouble(tmp_path / "one")


def test_the_ways_on_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path)
    run = tmp_path / "one"
    (run / "config.json").write_text('{"mine": 1}')
    assert "move the folder away and run the recipe again" in trouble(run)
    (run / "checkpoint-2").mkdir()
    said = trouble(run)
    assert "move DONE away, and `run --resume` writes them again from the last checkpoint" in said
    assert "remove the keys `files` and `sha256`" in said
    as_of_old(run)
    check_results(run)
    check_results(run)
    printed = capsys.readouterr().err
    assert printed.count("whether they were changed cannot be checked") == 1


@pytest.mark.parametrize("command", ["next stage", "already done", "init_from", "file", "projector"])
def test_whoever_uses_a_result_checks_it(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = finished(tmp_path)
    run = tmp_path / "one"
    values = stage1_values(tmp_path / "three", max_steps=3)
    del values["stages"][0]["train"]["num_train_epochs"]
    if command in ("init_from", "file"):
        values["stages"][0]["init_from"] = str(run if command == "init_from" else run / WEIGHTS)
    if command == "projector":
        values["model"]["projector"]["init_from"] = str(run / WEIGHTS)
    other = write_recipe(values, tmp_path / "other.yaml")
    words = {
        "next stage": [str(recipe), "--stage", "second"],
        "already done": [str(recipe), "--stage", "pretrain"],
    }
    argv = ["run", *words.get(command, [str(other)]), "--dry-run"]
    assert main(argv) == 0, capsys.readouterr().err
    tensors = load_file(run / WEIGHTS)
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, run / WEIGHTS)
    assert main(argv) == 1
    printed = capsys.readouterr().err
    assert f"{run}: {WEIGHTS} was changed after" in printed and "Traceback" not in printed


def test_a_copy_outside_of_the_run_is_the_users_own(tmp_path: Path) -> None:
    finished(tmp_path)
    values = stage1_values(tmp_path / "three", max_steps=3)
    del values["stages"][0]["train"]["num_train_epochs"]
    tensors = load_file(tmp_path / "one" / WEIGHTS)
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, tmp_path / WEIGHTS)
    values["stages"][0]["init_from"] = str(tmp_path / WEIGHTS)
    assert main(["run", str(write_recipe(values, tmp_path / "other.yaml")), "--dry-run"]) == 0


def test_the_same_weights_at_another_time_are_no_other_run(tmp_path: Path) -> None:
    """As when results were written again from the last checkpoint."""
    finished(tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    write_done(two, num_steps=3, last_loss=1.0, starts_from=(str(one),))
    seal_again(one, finished="2030-01-01T00:00:00+00:00")
    assert not is_stale(two, (str(one),))
    save_file({name: tensor * 2 for name, tensor in load_file(one / WEIGHTS).items()}, one / WEIGHTS)
    seal_again(one, finished="2030-01-01T00:00:00+00:00")
    assert is_stale(two, (str(one),))
    assert is_stale(two, ())


def test_a_large_run_is_announced_and_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path)
    monkeypatch.setattr(results, "_LONG_BYTES", 1)
    monkeypatch.setattr(seals, "_SETTLED_NS", -(10**12))
    read: list[str] = []
    whole = seals.seal_of

    def seal_of(path: Path) -> seals.FileSeal:
        read.append(path.name)
        return whole(path)

    monkeypatch.setattr(seals, "seal_of", seal_of)
    monkeypatch.setattr(seals, "_KNOWN", {})
    for _ in range(3):
        check_results(tmp_path / "one")
    assert sorted(read) == sorted(set(read)) and WEIGHTS in read
    assert capsys.readouterr().err.count("computes the SHA-256 of its files") == 1


def test_a_damaged_done_is_not_taken_for_one_of_an_earlier_version(tmp_path: Path) -> None:
    finished(tmp_path)
    file = tmp_path / "one" / "DONE"
    text = file.read_text()
    file.write_text(text.replace('\n  "sha256"', '\n  "sha257"'))
    with pytest.raises(RecipeError, match="DONE of the run folder is damaged"):
        read_done(tmp_path / "one")
    file.write_text(text.replace('"steps": 3', '"steps": 4'))
    with pytest.raises(RecipeError, match="DONE of the run folder is damaged"):
        read_done(tmp_path / "one")


def test_weights_of_an_earlier_attempt_do_not_stay(tmp_path: Path) -> None:
    for name in ("trained.safetensors", WEIGHTS, "adapter_config.json", "notes.txt"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, {WEIGHTS})
    assert {file.name for file in tmp_path.iterdir()} == {WEIGHTS, "notes.txt"}
