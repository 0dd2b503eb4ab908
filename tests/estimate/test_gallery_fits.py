"""Every recipe of the gallery fits the machine that its head names, and takes the time that it states."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llava_recipes.authoring.gallery import GalleryRecipe, gallery
from llava_recipes.estimate.cost import GPUS, find_gpu
from llava_recipes.estimate.estimate import Assumptions, Estimate, Estimator
from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner.facts import compile_loaded

ENTRIES = [entry for entry in gallery() if entry.name != "demo"]
SMALL = [entry for entry in ENTRIES if entry.family == "Small"]
MACHINE = re.compile(r"(\d+)×(A100-80G)")
ESTIMATE = re.compile(
    r"(\d+\.\d) h(?: \((\d+\.\d) h and (\d+\.\d) h\))?(?: on an RTX 4090)?"
    r"(?: for (?P<samples>a million|[\d,]+) conversations)? by the estimate"
)
ONLY_AT_THE_USUAL_LENGTH = {
    # LLaVA-NeXT's scripts allow 8,192 and 32,768 tokens, which no batch is full of; the heads say so.
    *("pretrain_next_qwen2_7b", "finetune_next_qwen2_7b"),
}
OF_24_GB = [name for name, gpu in GPUS.items() if 21 < gpu.memory_gib < 24]


def estimated(entry: GalleryRecipe, *, gpu: str, world_size: int, num_samples: int | None = None) -> Estimate:
    """The estimate of a recipe; `num_samples` for a file whose records nobody has counted."""
    given = [] if num_samples is None else [f"stages.finetune.data.sources.0.num_samples={num_samples}"]
    compiled = compile_loaded(load_recipe(str(entry.file), given), world_size=world_size)
    return Estimator(compiled, Assumptions(gpu=find_gpu(gpu))).estimate()


def machine_of(entry: GalleryRecipe) -> tuple[str, int]:
    """The GPU that a head names, and how many of it."""
    if entry.family == "Small":
        return "rtx4090", 1
    found = MACHINE.match(entry.machine)
    assert found, entry.machine
    return found[2].lower(), int(found[1])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without data that could be counted."""
    monkeypatch.chdir(tmp_path)


def test_there_is_something_to_look_at() -> None:
    assert len(SMALL) == 4 and len(ENTRIES) > 20
    assert OF_24_GB == ["a10", "l4", "rtx3090", "rtx4090"]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_recipe_fits_the_machine_of_its_head(entry: GalleryRecipe) -> None:
    gpu, world_size = machine_of(entry)
    expected = "fits"
    if entry.name in ONLY_AT_THE_USUAL_LENGTH:
        expected = "fits at the usual length"
        assert "usual length" in entry.hardware
    for stage in estimated(entry, gpu=gpu, world_size=world_size).stages:
        assert [fit.verdict for fit in stage.fits] == [expected], stage.name


@pytest.mark.parametrize("gpu", OF_24_GB)
@pytest.mark.parametrize("entry", SMALL, ids=lambda entry: entry.name)
def test_a_small_recipe_fits_any_card_of_24_gb(entry: GalleryRecipe, gpu: str) -> None:
    for stage in estimated(entry, gpu=gpu, world_size=1).stages:
        assert [fit.verdict for fit in stage.fits] == ["fits"], stage.name


@pytest.mark.parametrize(
    "entry", [entry for entry in ENTRIES if "estimate" in entry.time], ids=lambda entry: entry.name
)
def test_an_estimated_time_is_that_of_the_plan(entry: GalleryRecipe) -> None:
    gpu, world_size = machine_of(entry)
    found = ESTIMATE.search(entry.time)
    assert found, entry.time
    reported = [float(hours) for hours in found.groups()[:3] if hours]
    samples = (found["samples"] or "").replace(",", "").replace("a million", "1000000")
    estimate = estimated(entry, gpu=gpu, world_size=world_size, num_samples=int(samples) if samples else None)
    hours = [stage.compute.hours or 0.0 for stage in estimate.stages]
    expected = [sum(hours), *hours] if len(hours) > 1 else hours
    assert reported == pytest.approx(expected, abs=0.051)
