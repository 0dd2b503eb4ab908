"""What a run reads is recorded at its start; a run that goes on over something else is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from llava_recipes import seals
from llava_recipes.cli.main import main
from llava_recipes.plan.types import Plan, plan_from_json
from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner import inputs
from llava_recipes.runner.changes import find_changes
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.runner.inputs import INPUTS, compare_inputs, describe_inputs, record_inputs
from llava_recipes.runner.run_folder import is_stale, stage_plan, write_done, write_opening
from tests.sealed import seal_again
from tests.tiny import FIXTURES, GOLDEN, stage1_values, write_recipe
from tests.train.test_checkpoints import write_checkpoint


def started(folder: Path, change: dict[str, Any] | None = None) -> Plan:
    """A finished first stage, a second one that was begun, and their recipe; the plan of the second."""
    folder.mkdir(exist_ok=True)
    shutil.copytree(FIXTURES / "tiny_vicuna", folder / "vicuna")
    shutil.copytree(FIXTURES / "tiny_clip", folder / "clip")
    shutil.copy(GOLDEN / "06_stage1" / "base" / "init.safetensors", folder / "init.safetensors")
    for name in ("a.json", "v.json"):
        shutil.copy(FIXTURES / "stage1_22.json", folder / name)
    values = stage1_values(folder / "one", max_steps=3)
    del values["stages"][0]["train"]["num_train_epochs"]
    values["model"]["language_model"] = str(folder / "vicuna")
    values["model"]["vision_tower"]["source"] = str(folder / "clip")
    values["model"]["projector"]["init_from"] = str(folder / "init.safetensors")
    images = str(FIXTURES / "images")
    values["stages"][0]["data"]["sources"] = [{"annotations": str(folder / "a.json"), "images": images}]
    second = json.loads(json.dumps(values["stages"][0]))
    second |= {"name": "second", "init_from": "pretrain", "output_dir": str(folder / "two")}
    second["data"]["validation"] = {"sources": [{"annotations": str(folder / "v.json"), "images": images}]}
    second["data"] |= change or {}
    values["stages"].append(second)
    plan = plan_recipe(load_recipe(str(write_recipe(values, folder / "recipe.yaml"))), world_size=1)
    for index, name in enumerate(("one", "two")):
        (folder / name).mkdir()
        write_opening(folder / name, plan=stage_plan(plan, index), recipe_yaml="", environment={})
    shutil.copy(folder / "init.safetensors", folder / "one" / "mm_projector.safetensors")
    write_done(folder / "one", num_steps=3, last_loss=1.0, starts_from=())
    record_inputs(folder / "two", describe_inputs(folder / "two", stage_plan(plan, 1)))
    write_checkpoint(folder / "two", step=2)
    return stage_plan(plan, 1)


def resumed(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What `run --resume` says before it trains."""
    capsys.readouterr()
    code = main(["run", str(folder / "recipe.yaml"), "--resume", "--dry-run", *options])
    printed = capsys.readouterr()
    assert code == ("everything checked" not in printed.out)
    assert code == 0 or "resumes from" not in printed.out
    assert "Traceback" not in printed.err
    return printed.out + printed.err


def goes_on(said: str) -> bool:
    return "resumes from" in said and "everything checked" in said


def other_records(folder: Path) -> None:
    records = json.loads((folder / "a.json").read_text())
    (folder / "a.json").write_text(json.dumps(records[::-1]))


def one_letter(folder: Path) -> None:
    text = (folder / "a.json").read_text()
    assert '"value": "' in text
    before, _, after = text.rpartition('"value": "')
    (folder / "a.json").write_text(f'{before}"value": "{"x" if after[0] != "x" else "y"}{after[1:]}')


def one_letter_at_the_same_time(folder: Path) -> None:
    before = os.stat(folder / "a.json")
    one_letter(folder)
    os.utime(folder / "a.json", ns=(before.st_atime_ns, before.st_mtime_ns))


def other_weights(folder: Path) -> None:
    file = folder / "vicuna" / "model.safetensors"
    save_file({name: each * 1.5 for name, each in load_file(file).items()}, file, metadata={"format": "pt"})


def other_tokenizer(folder: Path) -> None:
    file = folder / "vicuna" / "tokenizer_config.json"
    file.write_text(file.read_text() + "\n")


def other_tower(folder: Path) -> None:
    file = folder / "clip" / "model.safetensors"
    save_file({name: each * 1.5 for name, each in load_file(file).items()}, file, metadata={"format": "pt"})


def other_projector(folder: Path) -> None:
    file = folder / "init.safetensors"
    save_file({name: each * 1.5 for name, each in load_file(file).items()}, file)


def trained_anew(folder: Path) -> None:
    file = folder / "one" / "mm_projector.safetensors"
    save_file({name: each * 1.5 for name, each in load_file(file).items()}, file)
    seal_again(folder / "one", finished="2030-01-01T00:00:00+00:00")


def not_finished(folder: Path) -> None:
    (folder / "one" / "DONE").unlink()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (other_records, ["trained on other annotations", "a.json has", "--accept data.sources"]),
        (one_letter, ["trained on other annotations", "a.json has other contents, of the same size"]),
        (one_letter_at_the_same_time, ["a.json has other contents, of the same size"]),
        (other_weights, ["another language model", "model.safetensors", "--accept model.language_model"]),
        (other_tokenizer, ["another language model", "tokenizer_config.json"]),
        (other_tower, ["another vision tower", "--accept model.vision_tower"]),
        (other_projector, ["other weights of the projector", "--accept model.projector.init_from"]),
        (trained_anew, ["over other weights", "was trained again", "two to train this stage again"]),
        (not_finished, ["over other weights", "is not finished now"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_run_over_other_inputs_does_not_go_on(
    change: Any, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started(tmp_path)
    assert goes_on(resumed(tmp_path, capsys))
    change(tmp_path)
    said = resumed(tmp_path, capsys)
    assert not goes_on(said)
    for words in expected:
        assert words in said


def test_what_is_in_the_place_of_a_file_is_reported_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it at once, and obeying the hint is enough."""
    started(tmp_path)
    run, names = tmp_path / "two", ["DONE", INPUTS, "latest", "samples.jsonl", "mm_projector.bin"]
    for name in names:
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    said = resumed(tmp_path, capsys)
    for name in names:
        assert (
            f"{run / name}: {name} of the run folder is not a file\nfound: a named pipe\nhint:  move" in said
        )
        (run / name).unlink()
    assert goes_on(resumed(tmp_path, capsys))


def test_a_run_says_which_other_inputs_it_accepts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started(tmp_path)
    one_letter(tmp_path)
    said = resumed(tmp_path, capsys, "--accept", "data.sources")
    assert goes_on(said)
    assert f"second: accepts data.sources: {tmp_path}/a.json has other contents, of the same size\n" in said


def test_a_run_over_the_same_inputs_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started(tmp_path)
    for name in ("a.json", "vicuna/model.safetensors"):
        shutil.copy(tmp_path / name, tmp_path / "copy")
        (tmp_path / "copy").replace(tmp_path / name)
    # Trained anew, with the same weights.
    seal_again(tmp_path / "one", finished="2030-01-01T00:00:00+00:00")
    assert goes_on(resumed(tmp_path, capsys))


def test_only_what_is_read_is_recorded(tmp_path: Path) -> None:
    plan = started(tmp_path)
    # Another program downloads more of the models.
    for name in ("clip/tokenizer.json", "vicuna/generation_config.json", "vicuna/training_args.bin"):
        (tmp_path / name).write_text("{}")
    assert compare_inputs(tmp_path / "two", plan).differences == ()
    weights = tmp_path / "vicuna" / "model.safetensors"
    weights.rename(tmp_path / "vicuna" / "part.safetensors")
    names = dict.fromkeys(load_file(tmp_path / "vicuna" / "part.safetensors"), "part.safetensors")
    (tmp_path / "vicuna" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    record_inputs(tmp_path / "two", describe_inputs(tmp_path / "two", plan))
    shutil.copy(FIXTURES / "tiny_clip" / "model.safetensors", tmp_path / "vicuna" / "part.safetensors")
    (difference,) = compare_inputs(tmp_path / "two", plan).differences
    assert "part.safetensors has" in difference.words


def test_a_checkpoint_that_a_run_was_started_from_is_recorded(tmp_path: Path) -> None:
    plan = started(tmp_path)
    place = write_checkpoint(tmp_path / "one", step=2)
    plan = plan.model_copy(
        update={"stages": (plan.stages[0].model_copy(update={"starts_from": (str(place),)}),)}
    )
    record_inputs(tmp_path / "two", describe_inputs(tmp_path / "two", plan))
    assert compare_inputs(tmp_path / "two", plan).differences == ()
    shutil.copy(tmp_path / "init.safetensors", place / "trained.safetensors")
    (difference,) = compare_inputs(tmp_path / "two", plan).differences
    assert difference.key == "init_from" and "trained.safetensors has" in difference.words


@pytest.mark.parametrize("key", ["data.sources", "data.sources.0", "data.sources.0.annotations"])
def test_a_changed_file_is_accepted_by_the_keys_that_lead_to_it(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started(tmp_path)
    one_letter(tmp_path)
    assert goes_on(resumed(tmp_path, capsys, "--accept", key))
    recipe = str(tmp_path / "recipe.yaml")
    assert main(["run", recipe, "--dry-run", "--accept", "data.sources.1"]) == 2
    assert "--accept data.sources.1: nothing has changed there" in capsys.readouterr().err


def test_a_folder_with_other_weights_is_accepted_by_one_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the refusal of the folder advises covers its contents too."""
    started(tmp_path)
    shutil.copytree(tmp_path / "clip", tmp_path / "towers" / "clip")
    other_tower(tmp_path / "towers")
    tower = ("--set", f"model.vision_tower.source={tmp_path}/towers/clip")
    for key in ("model.vision_tower.source", "model.vision_tower"):
        said = resumed(tmp_path, capsys, "--stage", "second", *tower, "--accept", key)
        assert "accepts model.vision_tower" in said and "until now" not in said
        assert "output_dir contains a run of another plan" not in said


def test_a_file_that_cannot_be_read_is_no_bug(tmp_path: Path) -> None:
    plan = started(tmp_path)
    (tmp_path / "a.json").unlink()
    os.mkfifo(tmp_path / "a.json")
    (difference,) = compare_inputs(tmp_path / "two", plan).differences
    assert difference.key == "data.sources"


def test_validation_data_only_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started(tmp_path)
    records = json.loads((tmp_path / "v.json").read_text())
    (tmp_path / "v.json").write_text(json.dumps(records[::-1]))
    said = resumed(tmp_path, capsys)
    assert goes_on(said) and "`data.validation` was changed" in said and "v.json has" in said


@pytest.mark.parametrize("content", ["", "{", "{}", None])
def test_a_record_that_is_damaged_or_missing_is_said(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started(tmp_path)
    file = tmp_path / "two" / INPUTS
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    other_records(tmp_path)
    said = resumed(tmp_path, capsys)
    assert goes_on(said) and "cannot be told" in said and INPUTS in said


def test_a_flipped_bit_in_the_record_forbids_nothing(tmp_path: Path) -> None:
    plan = started(tmp_path)
    file = tmp_path / "two" / INPUTS
    whole = file.read_bytes()
    for place in range(0, len(whole), 37):
        data = bytearray(whole)
        data[place] ^= 1
        file.write_bytes(data)
        comparison = compare_inputs(tmp_path / "two", plan)
        assert not comparison.is_recorded and not comparison.differences


def test_what_was_not_touched_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = started(tmp_path)
    read: list[str] = []
    monkeypatch.setattr(seals, "_KNOWN", {})
    whole, sampled = seals.seal_of, inputs.sampled_sha256

    def reading(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def read_it(path: Path) -> Any:
            read.append(path.name)
            return function(path)

        return read_it

    monkeypatch.setattr(seals, "seal_of", reading(whole))
    monkeypatch.setattr(inputs, "sampled_sha256", reading(sampled))
    assert compare_inputs(tmp_path / "two", plan).differences == ()
    assert record_inputs(tmp_path / "two", describe_inputs(tmp_path / "two", plan))
    assert read == []
    os.utime(tmp_path / "a.json", (1, 1))
    assert compare_inputs(tmp_path / "two", plan).differences == ()
    assert read == ["a.json"]


def test_a_file_that_moved_is_the_same(tmp_path: Path) -> None:
    plan = started(tmp_path)
    (tmp_path / "a.json").rename(tmp_path / "b.json")
    (source,) = plan.stages[0].data.sources
    data = plan.stages[0].data.model_copy(
        update={"sources": (source.model_copy(update={"annotations": str(tmp_path / "b.json")}),)}
    )
    moved = plan.model_copy(update={"stages": (plan.stages[0].model_copy(update={"data": data}),)})
    comparison = compare_inputs(tmp_path / "two", moved)
    assert comparison.differences == ()
    assert comparison.moved == {"stages.0.data.sources.0.annotations"}
    (tmp_path / "b.json").write_text("[]")
    (difference,) = compare_inputs(tmp_path / "two", moved).differences
    assert (difference.key, difference.kind) == ("data.sources", "changed")


def test_models_that_moved_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started(tmp_path)
    file = tmp_path / "one" / "plan.json"
    record_inputs(file.parent, describe_inputs(file.parent, plan_from_json(json.loads(file.read_text()))))
    (tmp_path / "vicuna").rename(tmp_path / "there")
    (tmp_path / "clip").rename(tmp_path / "tower")
    moved = ("--set", f"model.vision_tower.source={tmp_path}/tower", "--set")
    for model in (f"{tmp_path}/there", f"{{source: {tmp_path}/there, tokenizer: {tmp_path}/there}}"):
        said = resumed(tmp_path, capsys, "--stage", "second", *moved, f"model.language_model={model}")
        assert goes_on(said), said
    shutil.copytree(tmp_path / "there", tmp_path / "words")
    model = f"{{source: {tmp_path}/there, tokenizer: {tmp_path}/words}}"
    assert goes_on(resumed(tmp_path, capsys, *moved, f"model.language_model={model}"))
    (tmp_path / "words" / "tokenizer_config.json").write_text("{}")
    assert not goes_on(resumed(tmp_path, capsys, *moved, f"model.language_model={model}"))


def test_the_start_of_a_start_may_be_gone(tmp_path: Path) -> None:
    """Where the later one has trained all of it again, a plan leaves the earlier one out."""
    plan = started(tmp_path)
    (stage,) = plan.stages
    one, oldest = tmp_path / "one", tmp_path / "oldest"
    shutil.copytree(one, oldest)
    before = plan.model_copy(
        update={"stages": (stage.model_copy(update={"starts_from": (str(oldest), str(one))}),)}
    )
    record_inputs(tmp_path / "two", describe_inputs(tmp_path / "two", before))
    write_done(tmp_path / "two", num_steps=3, last_loss=1.0, starts_from=before.stages[0].starts_from)

    def differs() -> list[bool]:
        changes = find_changes(before.model_dump(mode="json"), plan, None, 0)
        differences = compare_inputs(tmp_path / "two", plan).differences
        return [bool(changes), is_stale(tmp_path / "two", stage.starts_from), bool(differences)]

    assert differs()[:2] == [True, True], "it is there, and is left out"
    shutil.rmtree(oldest)
    assert differs() == [False, False, False]
    trained_anew(tmp_path)
    assert differs() == [False, True, True]


def test_a_large_file_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_WHOLE_WEIGHTS_BYTES", 1000)
    monkeypatch.setattr(inputs, "_BLOCK_BYTES", 64)
    plan = started(tmp_path)
    recorded = json.loads((tmp_path / "two" / INPUTS).read_text())["inputs"]
    weights = recorded["model.language_model.source"]["files"]["model.safetensors"]
    assert "sampled_sha256" in weights and "sha256" not in weights
    assert "sha256" in recorded["stages.0.data.sources.0.annotations"]["files"]["a.json"]
    other_weights(tmp_path)
    (difference,) = compare_inputs(tmp_path / "two", plan).differences
    assert difference.key == "model.language_model"


def test_a_file_of_the_hubs_cache_is_known_by_its_blob(tmp_path: Path) -> None:
    plan = started(tmp_path)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    file = tmp_path / "vicuna" / "model.safetensors"
    for blob in ("a" * 64, "b" * 64):
        shutil.copy(FIXTURES / "tiny_vicuna" / "model.safetensors", blobs / blob)
    file.unlink()
    file.symlink_to(blobs / ("a" * 64))
    record_inputs(tmp_path / "two", describe_inputs(tmp_path / "two", plan))
    recorded = json.loads((tmp_path / "two" / INPUTS).read_text())["inputs"]
    assert recorded["model.language_model.source"]["files"]["model.safetensors"]["hub_blob"] == "a" * 64
    assert compare_inputs(tmp_path / "two", plan).differences == ()
    file.unlink()
    file.symlink_to(blobs / ("b" * 64))
    (difference,) = compare_inputs(tmp_path / "two", plan).differences
    assert difference.key == "model.language_model"


def test_a_finished_stage_says_what_was_changed_since(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = started(tmp_path)
    shutil.copy(tmp_path / "init.safetensors", tmp_path / "two" / "mm_projector.safetensors")
    write_done(tmp_path / "two", num_steps=3, last_loss=1.0, starts_from=plan.stages[0].starts_from)
    assert main(["run", str(tmp_path / "recipe.yaml"), "--dry-run"]) == 0
    assert "trained before" not in capsys.readouterr().out
    other_records(tmp_path)
    assert main(["run", str(tmp_path / "recipe.yaml"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "second: it was trained before this was changed:" in said and "a.json has" in said
