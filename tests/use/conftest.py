"""Finished runs that the tests of this folder open and export, trained once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stages of one recipe: a projector, then everything but the tower, then adapters of two kinds."""
    # Imported late: `make quick` has no use for it.
    from tests.use.finished import conversations, finish, run_values

    folder = tmp_path_factory.mktemp("pipeline")
    values = run_values(folder / "projector")
    full = run_values(folder / "full", name="full", freeze=["vision_tower"], data=conversations())
    del full["stages"][0]["trainable"]
    adapters = {
        "lora": {"r": 4, "alpha": 8},
        "dora": {"r": 4, "alpha": 8, "use_dora": True, "use_rslora": True},
    }
    values["stages"] += full["stages"]
    for name, lora in adapters.items():
        stage = run_values(folder / name, name=name, init_from="full", lora=lora, data=conversations())
        values["stages"] += stage["stages"]
    finish(values, folder / "recipe.yaml")
    return folder


@pytest.fixture
def with_umask() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """Run a block under another umask, and go back to the old one."""

    @contextlib.contextmanager
    def under(umask: int) -> Iterator[None]:
        before = os.umask(umask)
        try:
            yield
        finally:
            os.umask(before)

    return under


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of `plain` and `v1`, two finished stages named for their templates."""
    # Imported late: `make quick` has no use for it.
    from tests.use.finished import finish, run_values

    folder = tmp_path_factory.mktemp("runs")
    values = run_values(folder / "plain")
    (stage,) = values["stages"]
    stage["name"] = "plain"
    data = {**stage["data"], "template": "v1"}
    values["stages"].append({**stage, "name": "v1", "output_dir": str(folder / "v1"), "data": data})
    finish(values, folder / "recipe.yaml")
    return folder
