"""Whatever a run leaves is opened as the model that was trained; what is not a model is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_recipes.errors import RecipeError
from llava_recipes.model.assemble import assemble
from llava_recipes.model.lora import inject_lora
from llava_recipes.model.weight_names import canonical_parameters
from llava_recipes.plan.types import Plan
from llava_recipes.use.opened import OpenedRun, open_run
from tests.sealed import as_of_old, seal_again
from tests.use.finished import logits_of

CPU = torch.device("cpu")


def opened(path: Path) -> OpenedRun:
    return open_run(path, dtype=torch.float32, device=CPU)


def test_a_projector_is_laid_over_its_base(pipeline: Path) -> None:
    run = opened(pipeline / "projector")
    trained = load_file(pipeline / "projector" / "mm_projector.safetensors")
    parameters = canonical_parameters(run.assembled.model)
    assert torch.equal(parameters["projector.0.weight"], trained["model.mm_projector.0.weight"])
    assert run.kind == "run" and run.data.template == "plain"
    assert not run.assembled.model.training
    assert not any(parameter.requires_grad for parameter in parameters.values())


def test_all_that_a_full_run_trained_is_there(pipeline: Path) -> None:
    parameters = canonical_parameters(opened(pipeline / "full").assembled.model)
    trained = load_file(pipeline / "full" / "trained.safetensors")
    assert {name.split(".")[0] for name in trained} == {"language_model", "lm_head", "projector"}
    assert all(torch.equal(parameters[name], tensor) for name, tensor in trained.items())


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_adapters_are_merged_into_the_stages_before(name: str, pipeline: Path) -> None:
    """The same logits as the model with its adapters beside its weights, as it was trained."""
    plan = Plan.model_validate_json((pipeline / name / "plan.json").read_text())
    beside = assemble(plan.model, dtype=torch.float32)
    lora = plan.stages[0].lora
    assert lora is not None
    trained = load_file(pipeline / "full" / "trained.safetensors")
    for parameter_name, parameter in canonical_parameters(beside.model).items():
        if parameter_name in trained:
            parameter.data = trained[parameter_name]
    inject_lora(beside.model, lora, seed=0)
    trained = load_file(pipeline / name / "trained.safetensors")
    for parameter_name, parameter in canonical_parameters(beside.model).items():
        if parameter_name in trained:
            parameter.data = trained[parameter_name]
    beside.model.eval()
    run = opened(pipeline / name)
    theirs, ours = logits_of(beside), logits_of(run.assembled)
    assert (theirs - ours).abs().max() <= 1e-5 * theirs.abs().max()
    assert (logits_of(opened(pipeline / "full").assembled) - ours).abs().max() > 1e-3


def test_a_whole_pipeline_may_be_moved(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths of a recipe start where the run was started; the model is found from elsewhere too."""
    start, other = tmp_path / "work", tmp_path / "other"
    other.mkdir()
    shutil.copytree(pipeline / "full", start / "checkpoints" / "full")
    file = start / "checkpoints" / "full" / "plan.json"
    plan = json.loads(file.read_text())
    plan["stages"][0] |= {"output_dir": "./checkpoints/full", "starts_from": ["./checkpoints/projector"]}
    file.write_text(json.dumps(plan))
    seal_again(file.parent)
    shutil.copytree(pipeline / "projector", start / "checkpoints" / "projector")
    monkeypatch.chdir(other)
    run = opened(Path("../work/checkpoints/full"))
    assert torch.equal(logits_of(run.assembled), logits_of(opened(pipeline / "full").assembled))


def test_a_run_whose_beginning_is_gone(pipeline: Path, tmp_path: Path) -> None:
    """What trained all itself stands alone; adapters and parts do not."""
    for name in ("full", "lora"):
        shutil.copytree(pipeline / name, tmp_path / name)
        text = (tmp_path / name / "plan.json").read_text().replace(str(pipeline), str(tmp_path / "gone"))
        (tmp_path / name / "plan.json").write_text(text)
        seal_again(tmp_path / name)
    assert torch.equal(
        logits_of(opened(tmp_path / "full").assembled), logits_of(opened(pipeline / "full").assembled)
    )
    printed = refused(tmp_path / "lora")
    assert "the run that this one was started from does not exist" in printed


def test_a_run_whose_beginning_was_trained_again(pipeline: Path, tmp_path: Path) -> None:
    for name in ("full", "lora"):
        shutil.copytree(pipeline / name, tmp_path / name)
        for file in ("plan.json", "DONE"):
            text = (
                (tmp_path / name / file).read_text().replace(str(pipeline / "full"), str(tmp_path / "full"))
            )
            (tmp_path / name / file).write_text(text)
        seal_again(tmp_path / name)
    opened(tmp_path / "lora")
    # The same weights at another time are no other beginning.
    seal_again(tmp_path / "full", finished="2020-01-01T00:00:00+00:00")
    opened(tmp_path / "lora")
    trained = tmp_path / "full" / "trained.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(trained).items()}, trained)
    seal_again(tmp_path / "full")
    assert "was trained again" in refused(tmp_path / "lora")


def test_weights_have_one_dtype(pipeline: Path) -> None:
    model = open_run(pipeline / "lora", dtype=torch.bfloat16, device=CPU).assembled.model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    # Rotary frequencies are computed, not weights.
    assert {buffer.dtype for name, buffer in model.named_buffers() if "inv_freq" in name} == {torch.float32}
    as_trained = open_run(pipeline / "projector", device=CPU).assembled.model
    assert {parameter.dtype for parameter in as_trained.parameters()} == {torch.float32}


def refused(path: Path) -> str:
    with pytest.raises(RecipeError) as error:
        opened(path)
    (problem,) = error.value.problems
    assert problem.mark is not None and problem.mark.file == str(path)
    return f"{problem.message}\n{problem.found}\n{problem.hint}"


def test_a_folder_of_stages_is_refused_with_their_names(pipeline: Path) -> None:
    said = refused(pipeline)
    assert "contains stages of a run" in said and "dora, full, lora, projector" in said


def test_a_run_that_is_not_finished_is_refused_with_its_checkpoints(pipeline: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(pipeline / "projector", run)
    (run / "DONE").unlink()
    for step in (2, 10):
        (run / f"checkpoint-{step}").mkdir()
        (run / f"checkpoint-{step}" / "checkpoint.json").touch()
    said = refused(run)
    assert "not finished" in said and "checkpoint-10, checkpoint-2" in said and "--resume" in said


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nothing")
    assert "an empty folder" in refused(tmp_path)
    (tmp_path / "notes.txt").write_text("years of work")
    assert "notes.txt" in refused(tmp_path)
    assert "is a file" in refused(tmp_path / "notes.txt")


def test_a_name_that_is_no_folder_is_looked_for_on_the_hub() -> None:
    assert "not in the local cache" in refused(Path("owner/no-such-model"))


def test_a_plan_of_another_version_is_refused(pipeline: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(pipeline / "projector", run)
    as_of_old(run)
    (run / "plan.json").write_text('{"plan_version": 7}')
    assert "plan.json cannot be read" in refused(run)
    (run / "plan.json").write_text("{")
    assert "plan.json is not valid JSON" in refused(run)


def test_weights_cut_short_are_refused(pipeline: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(pipeline / "full", run)
    as_of_old(run)
    file = run / "trained.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "cannot read weights" in refused(run)
    file.unlink()
    (run / "mm_projector.safetensors").unlink()
    (run / "mm_projector.bin").unlink()
    assert "no trained weights" in refused(run)
