"""Checkpoints as folders: whole or not there, checked byte by byte, rotated and cleaned up with care."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from llava_recipes.errors import RecipeError
from llava_recipes.seals import seal_of
from llava_recipes.train.checkpoints import (
    LATEST,
    SEAL,
    UNUSABLE,
    SealFacts,
    check_form,
    clean_up,
    find_damage,
    is_leftover,
    list_checkpoints,
    loading,
    missing_latest,
    read_facts,
    remove_old,
    saving,
    seal,
    set_aside,
)
from tests.laws import examples

STATE: dict[str, Any] = {
    "global_step": 4,
    "epoch": 0.5,
    "total_flos": 1.0,
    "log_history": [{"loss": 1.0, "step": 1}],
}
LAYOUT = {"world_size": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
FACTS = SealFacts(4, 1, LAYOUT, 1.0)


def write_checkpoint(output_dir: Path, step: int = 4) -> Path:
    with saving(output_dir, step) as new:
        save_file({"projector.0.bias": torch.ones(3)}, new.folder / "trained.safetensors")
        new.add("trained.safetensors", lambda: seal_of(new.folder / "trained.safetensors"))
        for name in ("optimizer.pt", "progress.json", "random.json"):
            new.write_json(name, {"some": [1, 2]})
        new.write_json("trainer_state.json", {**STATE, "global_step": step})
        return new.commit(SealFacts(step, 1, LAYOUT, 1.0))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_checkpoint_is_sound(checkpoint: Path, tmp_path: Path) -> None:
    assert find_damage(checkpoint) is None
    assert read_facts(checkpoint) == FACTS
    assert names(tmp_path) == ["checkpoint-4", LATEST]
    shutil.copytree(checkpoint, tmp_path / "else" / "checkpoint-4")
    assert find_damage(tmp_path / "else" / "checkpoint-4") is None


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), saving(tmp_path, 4) as new:
        new.write_json("optimizer.pt", {})
        raise OSError("full")
    assert names(tmp_path) == []


def test_what_stands_at_a_checkpoints_place_is_kept_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "checkpoint-4").symlink_to(tmp_path / "kept")
    write_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "checkpoint-8")
    write_checkpoint(tmp_path, 8)
    write_checkpoint(tmp_path, 8)
    assert [found.step for found in list_checkpoints(tmp_path)] == [8, 4]
    assert {"set-aside-checkpoint-4", "set-aside-checkpoint-8", "set-aside-checkpoint-8-2"} < set(
        names(tmp_path)
    )


def _without(*gone: str) -> Callable[[dict[str, Any]], object]:
    return lambda files: [files.pop(name) for name in gone]


@pytest.mark.parametrize(
    ("change", "damage"),
    [
        (_without("optimizer.pt"), "optimizer.pt is missing in its"),
        (_without("trained.safetensors"), "trained.safetensors is missing in its"),
        (lambda files: files.update({"../x": {"bytes": 1, "sha256": ""}}), "outside"),
        (lambda files: files.update({"x": {"bytes": 1, "sha256": ""}}), "x is missing"),
        (lambda files: files["random.json"].update(bytes="many"), "cannot be read"),
        (lambda files: files["random.json"].update(sha256=None), "cannot be read"),
    ],
)
def test_a_seal_that_names_other_files_is_damage(
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, Any]], object],
    damage: str,
) -> None:
    from llava_recipes.train import checkpoints

    sealed = json.loads((checkpoint / SEAL).read_text())
    change(sealed["files"])
    (checkpoint / SEAL).write_bytes(checkpoints._sealed(FACTS, sealed["files"]))
    assert damage in str(find_damage(checkpoint))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A checkpoint for many changes of its seal, and the seal."""
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("seal"))
    return checkpoint, (checkpoint / SEAL).read_bytes()


@examples(300)
@given(data=st.data())
def test_any_change_of_a_seal_is_damage(data: st.DataObject, one: tuple[Path, bytes]) -> None:
    checkpoint, whole = one
    at = data.draw(st.integers(0, len(whole) - 1))
    bit = bytes([whole[at] ^ (1 << data.draw(st.integers(0, 7)))])
    put = data.draw(st.sampled_from([bit, b"", b"\x00", b"\xff", b"[", b'"', b"9" * 30, b" "]))
    changed = whole[:at] + put + whole[at + 1 :]
    (checkpoint / SEAL).write_bytes(changed)
    assert (find_damage(checkpoint) is None) == (changed == whole)


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.pt", "trainer_state.json", "random.json"])
def test_any_change_of_a_file_is_damage(checkpoint: Path, name: str) -> None:
    file = checkpoint / name
    whole = file.read_bytes()
    for changed in (whole[:-1], whole + b" ", bytes([whole[0] ^ 1]) + whole[1:], b""):
        file.write_bytes(changed)
        assert str(find_damage(checkpoint)).startswith(name)
    file.unlink()
    assert find_damage(checkpoint) == f"{name} is missing"


@pytest.mark.parametrize("name", [SEAL, "optimizer.pt", "trainer_state.json"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_something_else_in_a_files_place_is_damage(
    checkpoint: Path, name: str, make: Callable[[Path], None]
) -> None:
    """Nothing waits for a pipe."""
    (checkpoint / name).unlink()
    make(checkpoint / name)
    assert find_damage(checkpoint) is not None


def test_a_link_to_a_file_of_the_system_is_damage(checkpoint: Path) -> None:
    (checkpoint / "random.json").write_text("")
    seal(checkpoint, FACTS)
    (checkpoint / "random.json").unlink()
    (checkpoint / "random.json").symlink_to("/proc/self/environ")
    assert "/proc" in str(find_damage(checkpoint))


def test_a_file_that_was_added_is_damage(checkpoint: Path) -> None:
    (checkpoint / "optimizer-00002-of-00002.safetensors").write_bytes(b"")
    assert str(find_damage(checkpoint)).endswith("was not saved with it")


def _state(**changed: object) -> str:
    return json.dumps(STATE | changed)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", "null", "[" * 9_999, _state(global_step=5), _state(epoch=None)),
        *(_state(log_history=1), _state(total_flos=float("inf"))),
    ],
)
def test_a_trainer_state_of_no_use_is_named(checkpoint: Path, text: str) -> None:
    (checkpoint / "trainer_state.json").write_text(text)
    seal(checkpoint, FACTS)
    assert str(find_damage(checkpoint)).startswith("trainer_state.json ")


def test_a_seal_of_another_step_is_damage(checkpoint: Path) -> None:
    seal(checkpoint, SealFacts(8, 1, LAYOUT, None))
    assert "another step" in str(find_damage(checkpoint))


def test_the_earlier_form_is_refused_with_a_way_on(checkpoint: Path) -> None:
    check_form(checkpoint)
    files = {"optimizer.pt": {"bytes": 1, "sha256": ""}}
    (checkpoint / SEAL).write_text(json.dumps({"step": 4, "world_size": 1, "files": files}))
    with pytest.raises(RecipeError) as caught:
        check_form(checkpoint)
    (problem,) = caught.value.problems
    assert problem.code == "checkpoint-of-earlier-version"
    assert f"init_from: {checkpoint}" in str(problem.hint)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("x"), RuntimeError("gloo: Connection closed by peer")]
)
def test_other_failures_are_not_the_checkpoints(checkpoint: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, loading(checkpoint, "x"):
        raise error
    assert caught.value is error


def test_a_failure_to_load_is_the_checkpoints(checkpoint: Path) -> None:
    with pytest.raises(RecipeError) as caught, loading(checkpoint, "optimizer.pt"):
        raise KeyError("scalars")
    (problem,) = caught.value.problems
    assert problem.code == UNUSABLE
    assert "optimizer.pt cannot be loaded" in str(problem.found)


def test_rotation_keeps_the_newest_and_what_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (4, 8, 16, 20):
        write_checkpoint(tmp_path, step)
    (tmp_path / "elsewhere").mkdir()
    write_checkpoint(tmp_path / "elsewhere", 2)
    (tmp_path / "checkpoint-2").symlink_to(tmp_path / "elsewhere" / "checkpoint-2")
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / SEAL).write_text("{}")
    remove_old(tmp_path, newest=16, keep=2)
    left = [f"checkpoint-{step}" for step in (16, 2, 20, 3, 8)]
    assert names(tmp_path) == [*left, "elsewhere", LATEST]
    remove_old(tmp_path, newest=16, keep=0)
    assert names(tmp_path) == [*(name for name in left if name != "checkpoint-8"), "elsewhere", LATEST]
    assert find_damage(tmp_path / "elsewhere" / "checkpoint-2") is None
    # Who runs tests as root may write everywhere.
    monkeypatch.setattr("os.access", lambda path, mode: path.name != "checkpoint-16")
    remove_old(tmp_path, newest=20, keep=1)
    assert {"checkpoint-16", "checkpoint-20"} <= set(names(tmp_path))


LEFT = (".saving-checkpoint-8", ".removing-checkpoint-2", ".plan.json.a1b2c3d4", ".DONE.abcd_123")
FOREIGN = (".bashrc.a1b2c3d4", ".saving-notes", "checkpoint-x", "notes.txt", ".plan.json.swp")


def test_leftovers_go_and_nothing_else_does(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (*LEFT, *FOREIGN):
        if "checkpoint" in name:
            (tmp_path / name).mkdir()
            (tmp_path / name / "trained.safetensors").write_text("x")
        else:
            (tmp_path / name).write_text("x")
    unsealed, mixed = tmp_path / "checkpoint-12", tmp_path / "checkpoint-16"
    for folder, file in ((unsealed, "optimizer.pt"), (mixed, "notes.txt")):
        folder.mkdir()
        (folder / file).write_text("x")
    (tmp_path / ".saving-checkpoint-9").symlink_to(tmp_path)
    assert list_checkpoints(tmp_path) == [list_checkpoints(tmp_path)[-1]]
    clean_up(tmp_path)
    what = f"{mixed}, which is no checkpoint of this run, is now set-aside-checkpoint-16\n"
    assert capsys.readouterr().out == what
    kept = {".saving-checkpoint-9", "checkpoint-4", LATEST, "set-aside-checkpoint-16", *FOREIGN}
    assert set(names(tmp_path)) == kept
    assert all(map(is_leftover, LEFT)) and not any(map(is_leftover, FOREIGN))
    clean_up(tmp_path / "not there")


def test_the_pointer_names_what_is_gone(checkpoint: Path, tmp_path: Path) -> None:
    assert missing_latest(tmp_path) is None
    set_aside(checkpoint)
    assert missing_latest(tmp_path) == "checkpoint-4"
    for damaged in (b"", b"\xff", b"../checkpoint-4"):
        (tmp_path / LATEST).write_bytes(damaged)
        assert missing_latest(tmp_path) is None
