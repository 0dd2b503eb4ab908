"""A run that was cut goes on as if it had not been: the same losses, the same projector."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from llava_recipes.train.checkpoints import find_damage, list_checkpoints
from tests.tiny import FIXTURES, llava_recipe, read_metrics, run_to_end, stage1_values, write_recipe

MODES = [(1, "none"), (2, "none"), (1, "zero2"), (2, "zero3")]


def write_saving_recipe(folder: Path, *, processes: int, deepspeed: str) -> Path:
    values = stage1_values(
        folder / "run",
        per_device_train_batch_size=4 // processes,
        save_strategy="steps",
        save_steps=4,
    )
    values["stages"][0]["deepspeed"] = deepspeed
    return write_recipe(values, folder / "recipe.yaml")


def cut_after(run: Path, step: int) -> None:
    """Take away all that a run wrote after a step, as a kill would have left it."""
    for checkpoint in list_checkpoints(run):
        if checkpoint.step > step:
            shutil.rmtree(checkpoint.folder)
    for name in ("DONE", "mm_projector.bin", "mm_projector.safetensors", "config.json", "trainer_state.json"):
        (run / name).unlink()


@pytest.mark.parametrize(("processes", "deepspeed"), MODES)
def test_resumed_run_is_the_uncut_run(processes: int, deepspeed: str, tmp_path: Path) -> None:
    recipe = write_saving_recipe(tmp_path, processes=processes, deepspeed=deepspeed)
    run = tmp_path / "run"
    run_to_end(recipe, "--processes", str(processes))
    whole, projector = read_metrics(run), load_file(run / "mm_projector.safetensors")
    assert [checkpoint.step for checkpoint in list_checkpoints(run)] == [18, 16, 12, 8, 4]
    frozen_parameters = 13_000  # the tiny language model alone has more
    saved = [path.stat().st_size for path in (run / "checkpoint-8").rglob("*") if path.is_file()]
    assert sum(saved) < 4 * 4 * frozen_parameters + 200_000
    cut_after(run, 8)

    refused = llava_recipe("run", str(recipe), "--processes", str(processes))
    assert refused.returncode == 1
    assert "--resume" in refused.stderr
    run_to_end(recipe, "--processes", str(processes), "--resume")

    again = read_metrics(run)
    assert [line["step"] for line in again] == [line["step"] for line in whole]
    assert [line["loss"] for line in again] == pytest.approx([line["loss"] for line in whole], rel=1e-6)
    assert [line["learning_rate"] for line in again] == [line["learning_rate"] for line in whole]
    for name, tensor in load_file(run / "mm_projector.safetensors").items():
        assert (tensor - projector[name]).abs().max() <= 1e-6


def test_damaged_checkpoints_are_passed_over(tmp_path: Path) -> None:
    recipe = write_saving_recipe(tmp_path, processes=1, deepspeed="none")
    run = tmp_path / "run"
    run_to_end(recipe)
    whole = read_metrics(run)
    cut_after(run, 12)
    weights = run / "checkpoint-12" / "trained.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    assert find_damage(run / "checkpoint-12") == "trained.safetensors has other content than was saved"
    said = run_to_end(recipe, "--resume")
    assert "checkpoint-12 is passed over" in said
    assert read_metrics(run)[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-6)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_saves_and_stops(processes: int, tmp_path: Path) -> None:
    values = stage1_values(tmp_path / "run", num_train_epochs=300, per_device_train_batch_size=2)
    recipe = write_recipe(values, tmp_path / "recipe.yaml")
    command = [sys.executable, "-m", "llava_recipes", "run", str(recipe), "--processes", str(processes)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, out + err
    assert "--resume" in out
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    assert find_damage(checkpoint.folder) is None
    assert not (tmp_path / "run" / "DONE").exists()
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == checkpoint.step


def test_a_grouped_order_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    """Pictures and text in groups, several processes and accumulation; the cut lies in the second epoch."""
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
