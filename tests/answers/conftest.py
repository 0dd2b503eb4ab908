"""A tiny run of two stages, trained once for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import run_to_end, stage1_values, write_recipe


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that holds `plain` and `v1`, two finished stages named for their templates."""
    folder = tmp_path_factory.mktemp("runs")
    values = stage1_values(folder / "plain", max_steps=1)
    (stage,) = values["stages"]
    del stage["train"]["num_train_epochs"]
    stage["name"] = "plain"
    second = {
        **stage,
        "name": "v1",
        "output_dir": str(folder / "v1"),
        "data": {**stage["data"], "template": "v1"},
    }
    values["stages"] = [stage, second]
    run_to_end(write_recipe(values, folder / "recipe.yaml"))
    return folder
