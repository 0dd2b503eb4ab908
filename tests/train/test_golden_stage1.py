"""A recipe's run equals the original code's: every loss, learning rate, gradient norm and final weight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.golden_runs import STAGE1_RUNS, golden_stage1, stage1_folder, stage1_steps
from tests.processes import run_to_end
from tests.tiny import read_metrics, write_recipe


@pytest.mark.parametrize("name", STAGE1_RUNS)
def test_run_equals_the_original(name: str, tmp_path: Path) -> None:
    folder = stage1_folder(name)
    values = golden_stage1(tmp_path / "run", name)
    run_to_end(write_recipe(values, tmp_path / "recipe.yaml"))

    metrics = read_metrics(tmp_path / "run")
    steps = stage1_steps(name)
    assert len(metrics) == len(steps)
    for line, micro_batches in zip(metrics, steps, strict=True):
        assert line["loss"] == pytest.approx(sum(step["loss"] for step in micro_batches), rel=1e-5)
        assert line["learning_rate"] == pytest.approx(micro_batches[-1]["lr_used"][0], rel=1e-12, abs=1e-15)
        assert line["grad_norm"] == pytest.approx(micro_batches[-1]["grad_norm"], rel=1e-4)

    golden = torch.load(folder / "mm_projector.bin", weights_only=True)
    written = torch.load(tmp_path / "run" / "mm_projector.bin", weights_only=True)
    assert written.keys() == golden.keys()
    for key, tensor in golden.items():
        assert (written[key] - tensor).abs().max() <= 1e-5
    same = load_file(tmp_path / "run" / "mm_projector.safetensors")
    assert same.keys() == written.keys()
    assert all(torch.equal(same[key], written[key]) for key in same)

    config = json.loads((tmp_path / "run" / "config.json").read_text())
    expected = json.loads((folder / "config.json").read_text())
    differing = {"transformers_version", "_name_or_path", "mm_vision_tower"}
    assert config.keys() == expected.keys()
    assert {k: v for k, v in config.items() if k not in differing} == {
        k: v for k, v in expected.items() if k not in differing
    }
