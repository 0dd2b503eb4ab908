"""A run that was cut goes on as if it had not been: the same losses, the same projector."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from llava_recipes.cli.main import main
from llava_recipes.errors import RecipeError
from llava_recipes.runner.hand_off import check_start
from llava_recipes.seals import write_seals
from llava_recipes.train.checkpoints import TRAINED, find_damage, list_checkpoints
from tests.processes import TIMEOUT_S, python, run_to_end, started
from tests.tiny import FIXTURES, read_metrics, stage1_values, write_recipe
from tests.train.cutting import copy_cut, cut_after, replan, reseal

MODES = [(1, "none"), (2, "none"), (1, "zero2"), (2, "zero3")]
CHANGES = [
    ((1, "none"), (2, "zero3")),
    ((2, "zero3"), (1, "none")),
    ((2, "none"), (1, "zero2")),
    ((1, "zero2"), (2, "zero2")),
]


def write_saving_recipe(folder: Path, *, processes: int, deepspeed: str) -> Path:
    values = stage1_values(
        folder / "run",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2 // processes,
        save_strategy="steps",
        save_steps=4,
    )
    values["stages"][0]["deepspeed"] = deepspeed
    return write_recipe(values, folder / "recipe.yaml")


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Path]:
    """The folder of a whole run, each kind trained once. Copy it to change it."""

    @cache
    def trained(processes: int, deepspeed: str) -> Path:
        folder = tmp_path_factory.mktemp(f"uncut-{processes}-{deepspeed}")
        recipe = write_saving_recipe(folder, processes=processes, deepspeed=deepspeed)
        run_to_end(recipe, "--processes", str(processes))
        return folder

    return trained


@pytest.mark.parametrize(("processes", "deepspeed"), MODES)
def test_resumed_run_is_the_uncut_run(
    processes: int, deepspeed: str, uncut: Callable[[int, str], Path], tmp_path: Path
) -> None:
    whole_run = uncut(processes, deepspeed) / "run"
    assert [checkpoint.step for checkpoint in list_checkpoints(whole_run)] == [18, 16, 12, 8, 4]
    frozen_parameters = 13_000  # the tiny language model alone has more
    saved = [path.stat().st_size for path in (whole_run / "checkpoint-8").rglob("*") if path.is_file()]
    assert sum(saved) < 4 * 4 * frozen_parameters + 200_000
    recipe = copy_cut(whole_run.parent, tmp_path, step=8)
    # Both ways of starting continue.
    run_to_end(recipe, "--processes", str(processes), *(["--resume"] if processes == 1 else []))
    check_same(tmp_path / "run", whole_run, rel=1e-6)


def check_same(run: Path, whole_run: Path, *, rel: float) -> None:
    again, whole = read_metrics(run), read_metrics(whole_run)
    assert [line["step"] for line in again] == [line["step"] for line in whole]
    assert [line["loss"] for line in again] == pytest.approx([line["loss"] for line in whole], rel=rel)
    assert [line["learning_rate"] for line in again] == [line["learning_rate"] for line in whole]
    projector = load_file(whole_run / "mm_projector.safetensors")
    for name, tensor in load_file(run / "mm_projector.safetensors").items():
        assert (tensor - projector[name]).abs().max() <= rel


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_a_run_goes_on_on_other_processes_and_engines(
    before: tuple[int, str], after: tuple[int, str], uncut: Callable[[int, str], Path], tmp_path: Path
) -> None:
    whole = uncut(*before)
    copy_cut(whole, tmp_path, step=8)
    processes, deepspeed = after
    recipe = write_saving_recipe(tmp_path, processes=processes, deepspeed=deepspeed)
    replan(recipe, processes)
    said = run_to_end(recipe, "--processes", str(processes), "--resume")
    assert "resumed after step 8" in said
    check_same(tmp_path / "run", whole / "run", rel=1e-5)


def test_damaged_checkpoints_are_passed_over(uncut: Callable[[int, str], Path], tmp_path: Path) -> None:
    whole = read_metrics(uncut(1, "none") / "run")
    recipe, run = copy_cut(uncut(1, "none"), tmp_path, step=12), tmp_path / "run"
    weights = run / "checkpoint-12" / "trained.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    assert find_damage(run / "checkpoint-12") == "trained.safetensors was changed after it was saved"
    said = run_to_end(recipe, "--resume")
    assert f"skips {run / 'checkpoint-12'}: " in said
    assert read_metrics(run)[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-6)


def test_a_dry_run_names_the_checkpoint_that_the_run_would_go_on_from(
    uncut: Callable[[int, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = copy_cut(uncut(1, "none"), tmp_path, step=12), tmp_path / "run"
    words = ["run", str(recipe), "--processes", "1", "--dry-run"]
    (stage,) = yaml.safe_load(recipe.read_text())["stages"]
    assert main(words) == 0
    assert f"{stage['name']}: resumes from {run / 'checkpoint-12'}\n" in capsys.readouterr().out
    (run / "checkpoint-12" / "trained.safetensors").write_bytes(b"damaged")
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"skips {run / 'checkpoint-12'}: " in said
    assert f"{stage['name']}: resumes from {run / 'checkpoint-8'}\n" in said


@pytest.mark.parametrize(("processes", "fresh"), [(1, False), (2, True)])
def test_a_signal_saves_and_stops(processes: int, fresh: bool, tmp_path: Path) -> None:
    """Also where each process starts with the signals that an interpreter finds."""
    values = stage1_values(tmp_path / "run", num_train_epochs=300, per_device_train_batch_size=2)
    recipe = write_recipe(values, tmp_path / "recipe.yaml")
    metrics = tmp_path / "run" / "metrics.jsonl"
    words = ["run", str(recipe), "--processes", str(processes)]
    with started([*python("llava_recipes", fresh=fresh), *words], cwd=tmp_path) as child:
        deadline = time.monotonic() + TIMEOUT_S
        while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=TIMEOUT_S)
    assert child.returncode == 130, out + err
    assert "--resume" in out
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    assert find_damage(checkpoint.folder) is None
    assert not (tmp_path / "run" / "DONE").exists()
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == checkpoint.step


def test_a_grouped_order_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    """Images and text in groups, several processes and accumulation; the cut lies in the second epoch."""
    recipe = write_saving_recipe(tmp_path, processes=2, deepspeed="none")
    values = yaml.safe_load(recipe.read_text())
    stage = values["stages"][0]
    stage["data"] |= {"template": "v1", "group_by": "modality_length"}
    stage["data"]["sources"][0]["annotations"] = str(FIXTURES / "stage2_clean.json")
    stage["train"] |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    run = tmp_path / "run"
    run_to_end(write_recipe(values, recipe), "--processes", "2")
    whole, projector = read_metrics(run), load_file(run / "mm_projector.safetensors")
    cut_after(run, 4)
    run_to_end(recipe, "--processes", "2", "--resume")
    again = read_metrics(run)
    assert again[4]["epoch"] > 1
    assert [line["loss"] for line in again] == pytest.approx([line["loss"] for line in whole], rel=1e-6)
    for name, tensor in load_file(run / "mm_projector.safetensors").items():
        assert (tensor - projector[name]).abs().max() <= 1e-6


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run)]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_state_that_cannot_be_used_makes_way_for_an_older_one(
    processes: int, uncut: Callable[[int, str], Path], tmp_path: Path
) -> None:
    """Sealed again, as a stranger would: seen where it is loaded, by all processes alike."""
    whole = uncut(processes, "none")
    recipe, run = copy_cut(whole, tmp_path, step=16), tmp_path / "run"
    (run / "checkpoint-16" / "progress.json").write_text("{}")
    save_file({"projector.0.bias": torch.ones(3)}, run / "checkpoint-12" / "trained.safetensors")
    for step in (16, 12):
        reseal(run / f"checkpoint-{step}")
    said = run_to_end(recipe, "--processes", str(processes), "--resume")
    assert "checkpoint-16: progress.json cannot be loaded" in said
    assert "checkpoint-12: trained.safetensors does not fit what trains" in said
    assert "resumed after step 8" in said
    assert losses(run) == losses(whole / "run")
    assert [found.step for found in list_checkpoints(run)] == [18, 16, 12, 8, 4]
    assert len(list(run.glob("set-aside-checkpoint-1[26]"))) == 2


def test_without_a_checkpoint_of_use_a_run_begins_again(
    uncut: Callable[[int, str], Path], tmp_path: Path
) -> None:
    whole = uncut(1, "none")
    recipe, run = copy_cut(whole, tmp_path, step=8), tmp_path / "run"
    for step in (4, 8):
        (run / f"checkpoint-{step}" / "random.json").unlink()
    said = run_to_end(recipe)
    assert "starts again at step 0, since no checkpoint can be used" in said
    assert losses(run) == losses(whole / "run")


def test_a_run_that_was_killed_after_its_last_step_trains_no_more(
    uncut: Callable[[int, str], Path], tmp_path: Path
) -> None:
    whole = uncut(1, "none")
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    recipe, run = copy_cut(whole, tmp_path, step=18), tmp_path / "run"
    run_to_end(recipe)
    for name in ("mm_projector.safetensors", "metrics.jsonl", "config.json"):
        assert (run / name).read_bytes() == (whole / "run" / name).read_bytes()
    before, again = (json.loads((each / "DONE").read_text()) for each in (whole / "run", run))
    assert [again[key] for key in ("steps", "loss")] == [before[key] for key in ("steps", "loss")]


def test_leftovers_of_kills_block_nothing(uncut: Callable[[int, str], Path], tmp_path: Path) -> None:
    """What is left before plan.json has its name, in a checkpoint that is written, and in one that goes."""
    whole = uncut(1, "none")
    recipe, run = copy_cut(whole, tmp_path, step=16), tmp_path / "run"
    (run / "checkpoint-12").rename(run / ".removing-checkpoint-12")
    (run / ".removing-checkpoint-12" / "random.json").unlink()
    shutil.copytree(run / "checkpoint-16", run / ".saving-checkpoint-18")
    (run / "checkpoint-16" / "checkpoint.json").unlink()
    (run / ".DONE.a1b2c3d4").touch()
    assert "resumed after step 8" in run_to_end(recipe)
    assert not [path.name for path in run.iterdir() if path.name.startswith((".", "set-aside"))]
    assert losses(run) == losses(whole / "run")

    shutil.rmtree(run)
    run.mkdir()
    (run / ".plan.json.a1b2c3d4").touch()
    assert main(["run", str(recipe), "--processes", "1", "--dry-run"]) == 0


def test_a_checkpoint_of_an_earlier_version_is_refused(
    uncut: Callable[[int, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = copy_cut(uncut(1, "none"), tmp_path, step=8), tmp_path / "run"
    start, usual = run / "checkpoint-8", ["run", str(recipe), "--processes", "1", "--dry-run"]
    files = {**write_seals(start, [TRAINED]), "optimizer.pt": {"bytes": 1, "sha256": ""}}
    sealed = {"step": 8, "world_size": 1, "files": files}
    (start / "checkpoint.json").write_text(json.dumps(sealed))
    assert main(usual) == 1
    printed = capsys.readouterr().err
    assert "written by an earlier version" in printed and "recipe.yaml:" in printed
    assert f"init_from: {start}" in printed
    # Nothing is advised that leads there.
    assert main([*usual, "--set", "stages.pretrain.train.learning_rate=1e-5"]) == 1
    printed = capsys.readouterr().err
    assert f"init_from: {start}" in printed and "--accept" not in printed
    assert main(["plan", str(recipe), "--world-size", "1"]) == 0
    assert "written by an earlier version: `run` refuses it" in capsys.readouterr().out
    values = stage1_values(tmp_path / "new", max_steps=1)
    del values["model"]["projector"]["init_from"], values["stages"][0]["train"]["num_train_epochs"]
    values["stages"][0]["init_from"] = str(start)
    again = write_recipe(values, tmp_path / "again.yaml")
    assert main(["run", str(again), "--processes", "1", "--dry-run"]) == 0, capsys.readouterr().err
    check_start(str(start), path=())
    (start / TRAINED).write_bytes(b"")
    with pytest.raises(RecipeError, match="damaged"):
        check_start(str(start), path=())


@pytest.mark.parametrize(
    "damaged", [b"{}\n", b"\xff\xfe\n", b'{"step": "x", "seconds": 1}\n', b"[" * 9_999 + b"\n", None]
)
def test_a_damaged_log_is_an_error_that_names_it(
    damaged: bytes | None,
    uncut: Callable[[int, str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe, log = copy_cut(uncut(1, "none"), tmp_path, step=8), tmp_path / "run" / "metrics.jsonl"
    if damaged is None:
        log.unlink()
        log.mkdir()
    else:
        log.write_bytes(log.read_bytes() + damaged)
    assert main(["run", str(recipe), "--processes", "1", "--resume", "--dry-run"]) == 1
    printed = capsys.readouterr().err
    assert "metrics.jsonl" in printed and ("is not a file" if damaged is None else "is damaged") in printed
