"""Which checkpoints can be resumed from: whole, sealed, and holding nothing but values."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.errors import RecipeError
from llava_recipes.model.weights import write_trained
from llava_recipes.train.checkpoints import (
    SEAL,
    UNUSABLE,
    check_moments,
    check_state,
    find_damage,
    find_unreadable,
    loading,
    make_room,
    remove_old,
    seal,
)
from tests.laws import examples
from tests.model.poison import poisoned

RNG = {
    "python": random.Random(1).getstate(),
    "numpy": np.random.RandomState(1).get_state(),
    "cpu": torch.get_rng_state(),
}
STATE = {"global_step": 4, "epoch": 0.5, "total_flos": 1.0, "log_history": [{"loss": 1.0, "step": 1}]}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first import of DeepSpeed in a process sets this one."""
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "0")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A sealed checkpoint as a run on one process leaves it."""
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    write_trained({"projector.0.bias": torch.ones(3)}, folder)
    torch.save({"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{}]}, folder / "optimizer.pt")
    torch.save({"last_epoch": 4, "lr_lambdas": [{}]}, folder / "scheduler.pt")
    torch.save(RNG, folder / "rng_state.pth")
    (folder / "trainer_state.json").write_text(json.dumps(STATE))
    seal(folder, step=4, world_size=1)
    return folder


def deepspeed_states() -> dict[str, object]:
    """What DeepSpeed 0.19 puts into its files besides tensors and plain values."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    scaler = DynamicLossScaler(2.0**16, 2.0, 1000, 1, 2, False, True)
    return {
        "loss_scaler": LossScaler(scale=8.0),
        "dynamic": scaler,
        "zero_stage": ZeroStageEnum.weights,
        "param_slice_mappings": [{"w": fragment_address(numel=3, start=5)}],
    }


def as_deepspeeds(folder: Path, state: object) -> Path:
    """The checkpoint as DeepSpeed leaves it, sealed."""
    (folder / "optimizer.pt").unlink()
    (folder / "global_step4").mkdir()
    torch.save(state, folder / "global_step4" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    torch.save({"module": {"w": torch.ones(2)}}, folder / "global_step4" / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text("global_step4")
    seal(folder, step=4, world_size=1)
    return folder


def trouble(folder: Path) -> str | None:
    return find_damage(folder) or find_unreadable(folder)


def test_a_whole_checkpoint_is_sound(checkpoint: Path) -> None:
    assert trouble(checkpoint) is None


def test_deepspeeds_own_records_are_read(checkpoint: Path) -> None:
    state = deepspeed_states()
    folder = as_deepspeeds(checkpoint, state)
    assert trouble(folder) is None
    with loading(folder, "DeepSpeed's files", by_deepspeed=True):
        file = folder / "global_step4" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
        # As DeepSpeed's loader asks for it.
        read = torch.load(file, weights_only=False)
    assert read["zero_stage"] is state["zero_stage"]
    assert read["param_slice_mappings"] == state["param_slice_mappings"]
    for name in ("loss_scaler", "dynamic"):
        assert type(read[name]) is type(state[name])
        assert vars(read[name]) == vars(state[name])


@pytest.mark.parametrize("kind", [*poisoned(Path("x")), "empty", "junk", "cut"])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "of deepspeed"])
def test_a_poisoned_state_is_named_and_not_run(checkpoint: Path, name: str, kind: str) -> None:
    made = checkpoint.parent / "PWNED"
    if name == "of deepspeed":
        as_deepspeeds(checkpoint, deepspeed_states())
        name = "global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt"
    file = checkpoint / name
    whole = file.read_bytes()
    others = {"empty": b"", "junk": b"\x00junk" * 20, "cut": whole[: len(whole) // 2]}
    file.write_bytes((others | poisoned(made))[kind])
    assert str(find_damage(checkpoint)).startswith(name)
    seal(checkpoint, step=4, world_size=1)
    assert find_damage(checkpoint) is None
    assert str(find_unreadable(checkpoint)).startswith(f"{name} ")
    assert not made.exists()


def _without(*names: str) -> Callable[[dict[str, Any]], object]:
    return lambda sealed: [sealed["files"].pop(name) for name in names]


@pytest.mark.parametrize(
    ("change", "damage"),
    [
        (_without("optimizer.pt"), "optimizer.pt is missing in its"),
        (_without("scheduler.pt"), "scheduler.pt is missing in its"),
        (_without("trained.safetensors"), "trained.safetensors is missing in its"),
        (_without("rng_state.pth"), "rng_state.pth was not saved with it"),
        (lambda sealed: sealed.update(files={}), "is missing in its"),
        (lambda sealed: sealed.update(files=[1]), "cannot be read"),
        (lambda sealed: sealed.update(step=8), "another step"),
        (lambda sealed: sealed["files"].update({"../x": {"bytes": 1, "sha256": ""}}), "outside"),
        (lambda sealed: sealed["files"].update({"x": {"bytes": 1, "sha256": ""}}), "x is missing"),
        (lambda sealed: sealed["files"]["scheduler.pt"].update(bytes="many"), "cannot be read"),
        (lambda sealed: sealed["files"]["scheduler.pt"].update(sha256=None), "cannot be read"),
    ],
)
def test_a_seal_that_says_otherwise_is_damage(
    checkpoint: Path, change: Callable[[dict[str, Any]], object], damage: str
) -> None:
    sealed = json.loads((checkpoint / SEAL).read_text())
    change(sealed)
    (checkpoint / SEAL).write_text(json.dumps(sealed))
    assert damage in str(find_damage(checkpoint))


@examples(300)
@given(data=st.data())
def test_any_change_of_a_seal_is_damage(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("seal") / "checkpoint-4"
    folder.mkdir()
    for name in ("trained.safetensors", "trainer_state.json", "scheduler.pt", "optimizer.pt"):
        (folder / name).write_bytes(name.encode())
    seal(folder, step=4, world_size=1)
    whole = (folder / SEAL).read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = data.draw(
        st.sampled_from([b"", b"\x00", b"\xff", b"[", b'"', b"9" * 30]).map(
            lambda put: whole[:at] + put + whole[at + 1 :]
        )
    )
    (folder / SEAL).write_bytes(changed)
    damage = find_damage(folder)
    assert damage is None or isinstance(damage, str)
    if damage is None:
        # Blanks, and the number of processes, which the plan says again.
        assert json.loads(changed)["files"] == json.loads(whole)["files"]


@pytest.mark.parametrize("name", [SEAL, "optimizer.pt", "trainer_state.json"])
def test_a_folder_in_a_files_place_is_damage(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    (checkpoint / name).mkdir()
    assert find_damage(checkpoint) is not None


@pytest.mark.parametrize("name", [SEAL, "optimizer.pt", "trainer_state.json"])
def test_a_pipe_is_damage_and_nothing_waits_for_it(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    assert find_damage(checkpoint) is not None


def test_a_link_to_a_file_of_the_system_is_damage(checkpoint: Path) -> None:
    sealed = json.loads((checkpoint / SEAL).read_text())
    sealed["files"]["rng_state.pth"]["bytes"] = 0
    (checkpoint / SEAL).write_text(json.dumps(sealed))
    (checkpoint / "rng_state.pth").unlink()
    (checkpoint / "rng_state.pth").symlink_to("/proc/self/environ")
    assert "/proc" in str(find_damage(checkpoint))


@pytest.mark.parametrize("latest", ["", "global_step8", "../../other", "/etc", "\udcff"])
def test_latest_names_what_was_saved(checkpoint: Path, latest: str) -> None:
    folder = as_deepspeeds(checkpoint, {})
    (folder / "latest").write_text(latest, errors="surrogateescape")
    seal(folder, step=4, world_size=1)
    assert find_damage(folder) == "latest names a folder that was not saved with it"


def _state(**changed: object) -> str:
    return json.dumps(STATE | changed)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", "null", "[" * 9_999, _state(global_step=5), _state(epoch=None)),
        *(_state(log_history=1), _state(total_flos=float("inf"))),
    ],
)
def test_a_damaged_trainer_state_is_named(checkpoint: Path, text: str) -> None:
    (checkpoint / "trainer_state.json").write_text(text)
    assert str(find_unreadable(checkpoint)).startswith("trainer_state.json ")


def test_what_transformers_refuses_is_the_checkpoints_fault(checkpoint: Path) -> None:
    (checkpoint / "trainer_state.json").write_text(json.dumps(STATE | {"unheard_of": 1}))
    with pytest.raises(RecipeError) as caught:
        check_state(checkpoint)
    (problem,) = caught.value.problems
    assert problem.code == UNUSABLE
    assert "trainer_state.json" in str(problem.found) and "unheard_of" in str(problem.found)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("x"), RuntimeError("gloo: Connection closed by peer")]
)
def test_other_failures_are_not_the_checkpoints(checkpoint: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, loading(checkpoint, "x"):
        raise error
    assert caught.value is error


def test_what_stands_in_the_way_of_a_checkpoint_goes(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    place = tmp_path / "checkpoint-4"
    make_room(place)
    (place / "global_step4").mkdir(parents=True)
    os.mkfifo(place / "rng_state.pth")
    make_room(place)
    assert not place.exists()
    place.symlink_to(kept)
    make_room(place)
    os.mkfifo(place)
    make_room(place)
    assert not os.path.lexists(place) and kept.is_dir()


def test_the_newest_stay_and_what_is_not_sealed_is_left_alone(tmp_path: Path) -> None:
    for step in (4, 8, 16, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "weights").write_text("x")
        if step != 20:
            seal(tmp_path / f"checkpoint-{step}", step=step, world_size=1)
    remove_old(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-16",
        "checkpoint-20",
        "checkpoint-8",
    ]
    remove_old(tmp_path, keep=2)
    assert len(list(tmp_path.iterdir())) == 3


def test_averages_of_other_weights_are_refused() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    check_moments(optimizer)
    optimizer.state[weight]["exp_avg"][0] = float("nan")
    with pytest.raises(ValueError, match="exp_avg has 3 NaN of 6 values"):
        check_moments(optimizer)
    optimizer.state[weight]["exp_avg"] = torch.ones(3)
    with pytest.raises(ValueError, match="exp_avg has shape"):
        check_moments(optimizer)


def test_a_copy_elsewhere_is_as_sound(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "else" / "checkpoint-4")
    assert trouble(tmp_path / "else" / "checkpoint-4") is None
