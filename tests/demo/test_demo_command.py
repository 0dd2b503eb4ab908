"""The demo from its first word to its last, with a handful of steps."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.processes import ROOT, llava_recipe

STAGES = ("warm-up", "pretrain", "finetune")
FEW = ["--images=42", *(f"--set=stages.{name}.train.max_steps=3" for name in STAGES)]


def run_demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    places = [
        f"--recipe={ROOT / 'recipes/demo.yaml'}",
        f"--data={folder / 'data'}",
        f"--out={folder / 'runs'}",
    ]
    return llava_recipe("demo", *places, *options, cwd=folder)


def test_the_demo_trains_captions_and_prints_its_score(tmp_path: Path) -> None:
    done = run_demo(tmp_path, *FEW)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "224 of known combinations" in done.stdout
    assert "chance" in done.stdout
    scores = json.loads((tmp_path / "runs" / "score.json").read_text("utf-8"))
    for score, num_images in zip(scores, (224, 96), strict=True):
        assert tuple(score["after"]) == STAGES
        assert {tally["num_images"] for tally in score["after"].values()} == {num_images}
        last = score["after"]["finetune"]
        assert score["times_chance"] * score["chance"] * num_images == pytest.approx(last["num_both"])
    assert "you>   what is this" in done.stdout
    assert f"llava-recipe chat {tmp_path / 'runs' / 'finetune'} --image" in done.stdout
    weights_of = zip(STAGES, ("trained.safetensors", "mm_projector.bin", "trained.safetensors"), strict=True)
    for stage, weights in weights_of:
        written = {file.name for file in (tmp_path / "runs" / stage).iterdir()}
        assert {weights, "DONE", "plan.json", "metrics.jsonl", "config.json"} <= written
    assert not (tmp_path / "runs" / "pretrain" / "trained.safetensors").exists()

    again = run_demo(tmp_path, *FEW)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "drawn before" in again.stdout
    assert "finetune: already done" in again.stdout
    assert json.loads((tmp_path / "runs" / "score.json").read_text("utf-8")) == scores


def test_the_demo_leaves_a_folder_of_somebody_else_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work", "utf-8")
    refused = run_demo(tmp_path, *FEW)
    assert refused.returncode == 1
    assert "the demo didn't draw" in refused.stderr
    assert "--data" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "runs").exists()


def test_a_number_of_images_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    refused = run_demo(tmp_path, "--images=0")
    assert refused.returncode == 2
    assert "0 is less than 1" in refused.stderr
