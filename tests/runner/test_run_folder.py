"""What a run leaves behind, and what a second run does with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llava_recipes.errors import RecipeError
from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.runner.run_folder import read_folder_state, read_plan, stage_plan
from tests.processes import llava_recipe, run_recipe, run_to_end
from tests.sealed import as_of_old
from tests.tiny import FIXTURES, GOLDEN, read_metrics, stage1_values, write_recipe
from tests.train.cutting import cut_after

ARTIFACTS = {
    "DONE",
    "config.json",
    "environment.json",
    "history.jsonl",
    "inputs.json",
    "metrics.jsonl",
    "mm_projector.bin",
    "mm_projector.safetensors",
    "plan.json",
    "recipe.resolved.yaml",
    "trainer_state.json",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 3 steps; its recipe is next to the run folder."""
    folder = tmp_path_factory.mktemp("finished")
    values = stage1_values(folder / "run", max_steps=3)
    del values["stages"][0]["train"]["num_train_epochs"]
    run_to_end(write_recipe(values, folder / "recipe.yaml"))
    return folder


def test_artifacts_are_there_and_speak(finished: Path) -> None:
    run = finished / "run"
    assert {path.name for path in run.iterdir()} == ARTIFACTS
    assert all(
        set(line)
        == {"step", "epoch", "loss", "learning_rate", "grad_norm", "samples_per_s", "tokens_per_s", "seconds"}
        for line in read_metrics(run)
    )
    state = json.loads((run / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    done = json.loads((run / "DONE").read_text())
    assert done["steps"] == 3
    assert done["loss"] == read_metrics(run)[-1]["loss"]
    environment = (run / "environment.json").read_text()
    assert json.loads(environment)["packages"]["torch"]


def test_resolved_recipe_means_the_same(finished: Path) -> None:
    again = load_recipe(str(finished / "run" / "recipe.resolved.yaml"))
    assert again.recipe == load_recipe(str(finished / "recipe.yaml")).recipe


def test_frozen_weights_are_not_saved(finished: Path) -> None:
    assert all("mm_projector" in name for name in load_file(finished / "run" / "mm_projector.safetensors"))


def test_same_plan_again_does_nothing(finished: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (finished / "run").iterdir()}
    said = run_to_end(finished / "recipe.yaml")
    assert "already done" in said
    assert {path.name: path.stat().st_mtime_ns for path in (finished / "run").iterdir()} == before


def test_other_plan_is_refused_and_shown(finished: Path) -> None:
    refused = run_recipe(finished / "recipe.yaml", "--set", "stages.pretrain.train.learning_rate=2e-3")
    assert refused.returncode == 1
    assert "learning_rate" in refused.stderr
    assert "train.learning_rate: 1e-3 then, 2e-3 now" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    refused = run_recipe(write_recipe(stage1_values(tmp_path / "run"), tmp_path / "recipe.yaml"))
    assert refused.returncode == 1
    assert "no run of llava-recipe wrote" in refused.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    (tmp_path / "run" / "DONE").write_text("{}")
    refused = run_recipe(tmp_path / "recipe.yaml")
    assert refused.returncode == 1
    assert "a run without its plan.json" in refused.stderr


@pytest.mark.parametrize(("name", "kind"), [(".plan.json.x1y2z3_8", "new"), (".plan.yaml", "foreign")])
def test_a_plan_that_is_being_written_is_not_somebody_elses_file(
    name: str, kind: str, tmp_path: Path
) -> None:
    """Two nodes open one folder at the same moment; and a kill may have left the file there."""
    loaded = load_recipe(str(write_recipe(stage1_values(tmp_path / "run"), tmp_path / "recipe.yaml")))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).touch()
    assert read_folder_state(tmp_path / "run", plan_recipe(loaded, world_size=1)).kind == kind


@pytest.mark.parametrize("norm", [1.0, 0.5])
def test_a_run_of_an_earlier_version_goes_on(norm: float, tmp_path: Path) -> None:
    """Its plan says nothing of the order, and of the clipping where it was DeepSpeed's default."""
    values = stage1_values(tmp_path / "run", max_grad_norm=norm)
    values["stages"][0]["deepspeed"] = "zero2"
    plan = plan_recipe(load_recipe(str(write_recipe(values, tmp_path / "recipe.yaml"))), world_size=1)
    there = plan.model_dump(mode="json")
    del there["stages"][0]["data"]["order"]
    del there["stages"][0]["deepspeed"]["gradient_clipping"]
    if norm != 1.0:
        there["stages"][0]["deepspeed"]["gradient_clipping"] = "auto"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.json").write_text(json.dumps(there))
    state = read_folder_state(tmp_path / "run", plan)
    assert (state.kind, state.changes) == ("started", ())


def values_of_version_1(folder: Path) -> dict[str, Any]:
    return stage1_values(folder / "run", save_strategy="steps", save_steps=2)


def write_plan_of_version_1(run: Path) -> None:
    """What the version before 2 wrote for these values; it said rates and sizes twice."""
    text = Path(__file__).with_name("plan_version_1.json").read_text("utf-8")
    (run / "plan.json").write_text(text.replace("@GOLDEN@", str(GOLDEN)).replace("@RUN@", str(run)), "utf-8")


def test_a_plan_of_version_1_is_that_of_now(tmp_path: Path) -> None:
    file = write_recipe(values_of_version_1(tmp_path), tmp_path / "recipe.yaml")
    plan = stage_plan(plan_recipe(load_recipe(str(file)), world_size=1), 0)
    (tmp_path / "run").mkdir()
    write_plan_of_version_1(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["plan_version"] == 1
    assert read_plan(tmp_path / "run") == plan
    state = read_folder_state(tmp_path / "run", plan)
    assert (state.kind, state.changes) == ("started", ())


def test_a_run_folder_of_version_1_is_resumed_and_used(tmp_path: Path) -> None:
    file = write_recipe(values_of_version_1(tmp_path), tmp_path / "recipe.yaml")
    run_to_end(file)
    run = tmp_path / "run"
    losses = [line["loss"] for line in read_metrics(run)]
    write_plan_of_version_1(run)
    as_of_old(run)
    assert "already done" in run_to_end(file)
    exported = llava_recipe("export", run, "--to", "llava", "-o", "exported", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    cut_after(run, 16)
    assert "resumes from" in run_to_end(file, "--resume")
    assert [line["loss"] for line in read_metrics(run)] == losses
    assert json.loads((run / "plan.json").read_text())["plan_version"] == 2


@pytest.mark.parametrize("stages", [None, 1, [1, {}, {"train": 1}, {"train": {"training_arguments": 2}}]])
def test_a_damaged_plan_of_version_1_is_refused(stages: object, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"plan_version": 1, "stages": stages}))
    with pytest.raises(RecipeError, match=r"plan\.json cannot be read"):
        read_plan(tmp_path)


@pytest.mark.parametrize("name", ["plan.json", "DONE"])
@pytest.mark.parametrize("content", [b"", b'{"plan_ver', b"\xff\xfe", b"[1]", b"null", b'"x"', b"[" * 10_000])
def test_a_damaged_file_of_the_run_is_named(
    name: str, content: bytes, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / "recipe.yaml", tmp_path / "run/plan.json"):
        file.write_text(file.read_text().replace(str(finished), str(tmp_path)))
    (tmp_path / "run" / name).write_bytes(content)
    refused = run_recipe(tmp_path / "recipe.yaml")
    assert refused.returncode == 1, refused.stderr
    assert f"{name} of the run folder is damaged" in refused.stderr
    assert "Traceback" not in refused.stderr and "bug" not in refused.stderr
    hint = "choose another `output_dir`" if name == "plan.json" else "continues from the last checkpoint"
    assert hint in refused.stderr


def test_dry_run_trains_and_writes_nothing(tmp_path: Path) -> None:
    said = run_to_end(write_recipe(stage1_values(tmp_path / "run"), tmp_path / "recipe.yaml"), "--dry-run")
    assert "18" in said
    assert not (tmp_path / "run").exists()


def change(values: dict[str, object], path: str, value: object) -> None:
    *parents, last = path.split(".")
    at: object = values
    for key in parents:
        at = at[int(key)] if isinstance(at, list) else at[key]  # type: ignore[index]
    at[int(last) if isinstance(at, list) else last] = value  # type: ignore[index]


BAD_INPUT = {
    "missing data file": (
        "stages.0.data.sources.0.annotations",
        "nowhere.json",
        "nowhere.json",
        "annotations",
    ),
    "malformed JSON": (
        "stages.0.data.sources.0.annotations",
        str(FIXTURES / "broken.json"),
        "broken.json:",
        None,
    ),
    "missing image folder": ("stages.0.data.sources.0.images", "no/images", "no/images", "images"),
    "tags and images": (
        "stages.0.data.sources.0.annotations",
        str(FIXTURES / "edge.json"),
        "e_two_tags",
        None,
    ),
    "wrong model path": ("model.language_model", "./no/llm", "no folder ./no/llm", "language_model"),
    "wrong tower path": ("model.vision_tower.source", "./no/tower", "no folder ./no/tower", "source"),
    "not a weights file": ("model.projector.init_from", "no.bin", "no.bin", "init_from"),
    "wrong projector": ("model.projector.type", "linear", "mlp2x_gelu", None),
    "output_dir is a file": ("stages.0.output_dir", __file__, "it is a file", "output_dir"),
    "no GPU reports": ("stages.0.train.report_to", "wandb", "wandb", "report_to"),
    "a glob without a module": (
        "stages.0.trainable",
        ["language_model.layers.7"],
        "language_model",
        "trainable",
    ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_reported_before_training(name: str, tmp_path: Path) -> None:
    path, value, expected, marked = BAD_INPUT[name]
    values = stage1_values(tmp_path / "run")
    change(values, path, value)
    recipe = write_recipe(values, tmp_path / "recipe.yaml")
    refused = run_recipe(recipe)
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert expected in refused.stderr
    assert "Traceback" not in refused.stderr
    if marked is not None:
        lines = recipe.read_text().splitlines()
        at = [
            int(text.split(":")[1]) for text in refused.stderr.splitlines() if text.startswith(f"{recipe}:")
        ]
        assert at
        assert any(marked in line for number in at for line in lines[max(0, number - 2) : number])


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_broken_image_in_training(policy: str, tmp_path: Path) -> None:
    records = json.loads((FIXTURES / "stage1.json").read_text())[:8]
    records[5]["image"] = "edge/truncated.jpg"
    (tmp_path / "data.json").write_text(json.dumps(records))
    values = stage1_values(tmp_path / "run", num_train_epochs=1, dataloader_num_workers=1)
    values["stages"][0]["data"]["sources"][0]["annotations"] = str(tmp_path / "data.json")
    values["stages"][0]["data"]["on_bad_image"] = policy
    ended = run_recipe(write_recipe(values, tmp_path / "recipe.yaml"))
    assert "Traceback" not in ended.stderr
    if policy == "error":
        assert ended.returncode == 1
        assert "s1_005" in ended.stderr
        assert "truncated.jpg" in ended.stderr
        assert not (tmp_path / "run" / "DONE").exists()
    else:
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "s1_005" in ended.stdout + ended.stderr
