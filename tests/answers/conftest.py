"""Tiny runs, trained once for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that holds `plain` and `v1`, two finished stages named for their templates."""
    # Imported late: `make quick` has no use for it.
    from tests.runs.finished import finish, run_values

    folder = tmp_path_factory.mktemp("runs")
    values = run_values(folder / "plain")
    (stage,) = values["stages"]
    stage["name"] = "plain"
    data = {**stage["data"], "template": "v1"}
    values["stages"].append({**stage, "name": "v1", "output_dir": str(folder / "v1"), "data": data})
    finish(values, folder / "recipe.yaml")
    return folder
