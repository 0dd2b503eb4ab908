"""Secrets of a script are neither copied nor printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_recipes.cli.main import main

SCRIPT = """export WANDB_API_KEY=hunter2
URL=https://user:hunter2@host/data
deepspeed llava/train/train_mem.py --version plain --model_name_or_path a/b --vision_tower c/d \\
  --data_path $URL/a.json --image_folder im --tune_mm_mlp_adapter True --output_dir ./out \\
  --hub_token hunter2 --unknown ftp://u:hunter2@h --per_device_train_batch_size 2
"""


def test_no_secret_of_a_script_is_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, recipe = tmp_path / "train.sh", tmp_path / "recipe.yaml"
    script.write_text(SCRIPT)
    for words in ([], ["-o", str(recipe)], ["--var", "TOKEN"], ["--var", "1=https://u:hunter2@h"]):
        assert main(["migrate", str(script), *words]) == 1
        said = "".join(capsys.readouterr())
        assert said
        assert "hunter2" not in said
    assert "https://***@host/data/a.json" in recipe.read_text("utf-8")
    assert "hunter2" not in recipe.read_text("utf-8")
