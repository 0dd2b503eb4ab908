"""The weights that a stage starts from are compared with the recipe's model before any stage starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_recipes.cli.main import main
from tests.golden_runs import run_folder
from tests.sealed import as_of_old, seal_again
from tests.tiny import FIXTURES, stage1_values, write_recipe
from tests.train.in_process import train_all, weights_of

Change = Callable[[dict[str, Any], Path], None]


def stage_values(folder: Path, **stage: Any) -> dict[str, Any]:
    """One stage of two steps."""
    values = stage1_values(folder, max_steps=2, warmup_ratio=0.0)
    del values["stages"][0]["train"]["num_train_epochs"], values["model"]["projector"]["init_from"]
    values["stages"][0] |= stage
    return values


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs: a projector, adapters next to it, and the language model's first layer on both."""
    folder = tmp_path_factory.mktemp("runs")
    train_all(stage_values(folder / "projector"))
    train_all(stage_values(folder / "lora", init_from=str(folder / "projector"), lora={"r": 2}))
    train_all(
        stage_values(folder / "layer", init_from=str(folder / "lora"), trainable=["language_model.layers.0"])
    )
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original's full fine-tune as it saves it."""
    folder = tmp_path_factory.mktemp("llava")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(run_folder("full") / name, folder / name)
    return folder


def check(values: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `run` prints before it would train; nothing when all is well."""
    recipe = write_recipe(values, folder / "recipe.yaml")
    code = main(["run", str(recipe), "--processes", "1", "--dry-run"])
    printed = capsys.readouterr().err
    assert code == (1 if printed else 0)
    assert "Traceback" not in printed
    assert not (folder / "next").exists()
    if printed:
        lines = recipe.read_text().splitlines()
        places = [text for text in printed.splitlines() if text.startswith(f"{recipe}:")]
        assert places
        assert all("init_from" in lines[int(place.split(":")[1]) - 1] for place in places), printed
    return printed


def next_values(folder: Path, start: Path | str) -> dict[str, Any]:
    return stage_values(folder / "next", init_from=str(start))


@pytest.mark.parametrize("name", ["projector", "lora", "layer", "projector/mm_projector.bin"])
def test_what_fits_is_taken(
    name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(next_values(tmp_path, runs / name), tmp_path, capsys) == ""


def test_a_run_brings_the_runs_before_it(runs: Path, tmp_path: Path) -> None:
    """The last one contains only a layer: projector and adapters come from those that it started from."""
    values = next_values(tmp_path, runs / "layer")
    train_all(values)
    plan = json.loads((tmp_path / "next" / "plan.json").read_text())
    expected = [str(runs / name) for name in ("projector", "lora", "layer")]
    assert plan["stages"][0]["starts_from"] == expected
    before = weights_of(values, *map(Path, expected))
    projector = load_file(runs / "lora" / "mm_projector.safetensors")
    assert torch.equal(before["projector.0.weight"], projector["model.mm_projector.0.weight"])
    base = weights_of(values)
    for name in ("language_model.layers.0.mlp.up_proj.weight", "language_model.layers.1.mlp.up_proj.weight"):
        assert not torch.equal(before[name], base[name])
    layer = load_file(runs / "layer" / "trained.safetensors")
    name = "language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(before[name], layer[name])


def test_a_run_before_that_is_gone(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = tmp_path / "layer"
    shutil.copytree(runs / "layer", moved)
    plan = json.loads((moved / "plan.json").read_text())
    gone = str(tmp_path / "gone" / "run")
    plan["stages"][0]["starts_from"] = [gone]
    (moved / "plan.json").write_text(json.dumps(plan))
    seal_again(moved)
    assert f"found: {gone}" in check(next_values(tmp_path, moved), tmp_path, capsys)
    # One that trained all of it needs nothing of the run before.
    plan["stages"][0]["trainable_modules"] = ["projector", "language_model", "lm_head"]
    (moved / "plan.json").write_text(json.dumps(plan))
    seal_again(moved)
    assert check(next_values(tmp_path, moved), tmp_path, capsys) == ""


def linear(values: dict[str, Any], folder: Path) -> None:
    values["model"]["projector"]["type"] = "linear"


def deeper(values: dict[str, Any], folder: Path) -> None:
    """Its first layers have the sizes and names of the other's."""
    values["model"]["projector"]["type"] = "mlp3x_gelu"


def other_layer(values: dict[str, Any], folder: Path) -> None:
    values["model"]["vision_tower"]["select_layer"] = -1


def other_feature(values: dict[str, Any], folder: Path) -> None:
    values["model"]["vision_tower"]["select_feature"] = "cls_patch"


def tokens(values: dict[str, Any], folder: Path) -> None:
    values["model"]["image_tokens"] = {"start_end": True}


def other_tower(values: dict[str, Any], folder: Path) -> None:
    shutil.copytree(FIXTURES / "tiny_clip", folder / "another_clip")
    values["model"]["vision_tower"]["source"] = str(folder / "another_clip")


def other_language_model(values: dict[str, Any], folder: Path) -> None:
    shutil.copytree(FIXTURES / "tiny_vicuna", folder / "another_llm")
    values["model"]["language_model"] = str(folder / "another_llm")


def wider(values: dict[str, Any], folder: Path) -> None:
    """A language model of the same name and another size."""
    values["model"]["language_model"] = {
        "config": {
            "model_type": "llama",
            "vocab_size": 1000,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        "tokenizer": str(FIXTURES / "tiny_vicuna"),
    }


@pytest.mark.parametrize(
    ("start", "change", "expected"),
    [
        (
            "projector",
            linear,
            ["has another projector", "`mlp2x_gelu`, 32 to 32 to 32; this recipe has `linear`, 32 to 32"],
        ),
        (
            "projector/mm_projector.bin",
            wider,
            ["has another projector", "32 to 32 to 32; this recipe has `mlp2x_gelu`, 32 to 64"],
        ),
        (
            "projector",
            deeper,
            ["has another projector", "this recipe has `mlp3x_gelu`, 32 to 32 to 32 to 32"],
        ),
        (
            "projector/mm_projector.bin",
            deeper,
            ["has another projector", "has `mlp2x_gelu`, 32 to 32 to 32"],
        ),
        ("llava", deeper, ["has another projector"]),
        ("projector", other_layer, ["another `select_layer`", "has -2, this recipe -1"]),
        ("projector", other_feature, ["another `select_feature`", "has patch, this recipe cls_patch"]),
        ("projector", other_tower, ["another vision tower", "another_clip", "`model.projector.init_from`"]),
        ("projector", other_language_model, ["was trained with another language model", "another_llm"]),
        ("projector", tokens, ["without start and end tokens", "start_end: false"]),
        ("lora", other_language_model, ["contains adapters for another language model", "another_llm"]),
        ("lora", wider, ["contains adapters for another", "random weights of a llama config, seed 0"]),
        ("layer", other_language_model, ["trained a part of another language model"]),
        ("llava", tokens, ["without start and end tokens", "another vocabulary", "1,002"]),
        ("llava", wider, ["does not fit this recipe's language model", "has another projector"]),
        ("llava", other_tower, ["another vision tower"]),
        ("llava", linear, ["has another projector"]),
    ],
    ids=lambda value: getattr(value, "__name__", None) or (value if isinstance(value, str) else ""),
)
def test_what_does_not_fit_is_reported_with_both_sides(
    start: str,
    change: Change,
    expected: list[str],
    runs: Path,
    llava: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = next_values(tmp_path, llava if start == "llava" else runs / start)
    change(values, tmp_path)
    printed = check(values, tmp_path, capsys)
    for words in expected:
        assert words in printed


def test_a_whole_language_model_may_take_the_place_of_another(
    llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its weights are all there: which ones stood in their place before means nothing."""
    values = next_values(tmp_path, llava)
    other_language_model(values, tmp_path)
    assert check(values, tmp_path, capsys) == ""


def test_a_whole_model_of_transformers_is_compared_with_the_recipe(
    llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says which features its projector was made for, and brings a vocabulary that was filled up."""
    folder = tmp_path / "llava-hf"
    folder.mkdir()
    config = {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": {"model_type": "llama"},
        "vision_config": {"model_type": "clip_vision_model"},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    (folder / "config.json").write_text(json.dumps(config))
    theirs = load_file(llava / "model.safetensors")
    padded = torch.zeros(1024, theirs["lm_head.weight"].shape[1])
    save_file({"language_model.lm_head.weight": padded}, folder / "model.safetensors")
    values = next_values(tmp_path, folder)
    other_layer(values, tmp_path)
    printed = check(values, tmp_path, capsys)
    assert "another `select_layer`" in printed and "has -2, this recipe -1" in printed
    assert f"has 1,024 rows, this recipe's model {len(theirs['lm_head.weight']):,}" in printed
    assert f"hint:  write `language_model: {folder}` in `model:`" in printed
    values = next_values(tmp_path, folder)
    other_feature(values, tmp_path)
    assert "has patch, this recipe cls_patch" in check(values, tmp_path, capsys)


def test_a_vocabulary_that_was_filled_up_is_no_matter_of_image_tokens(
    llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `import` makes of a folder of transformers keeps its rows."""
    folder = tmp_path / "imported"
    folder.mkdir()
    shutil.copy(llava / "config.json", folder)
    save_file({"lm_head.weight": torch.zeros(1024, 32)}, folder / "model.safetensors")
    printed = check(next_values(tmp_path, folder), tmp_path, capsys)
    assert f"hint:  write `language_model: {folder}`" in printed and "image_tokens" not in printed


def test_a_language_model_that_cannot_be_downloaded_is_reported_at_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_recipes.model.pretrained._repository_files", lambda source, revision: None)
    values = stage_values(tmp_path / "next")
    values["model"]["language_model"] = "runs/merged"
    recipe = write_recipe(values, tmp_path / "recipe.yaml")
    assert main(["run", str(recipe), "--processes", "1", "--dry-run"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"{recipe}:4:19: no such folder, not in the local cache")


def test_the_originals_checkpoint_is_laid_over_the_base(llava: Path, tmp_path: Path) -> None:
    values = next_values(tmp_path, llava)
    values["stages"][0]["train"]["learning_rate"] = 1e-12
    train_all(values)
    theirs = load_file(llava / "model.safetensors")
    projector = load_file(tmp_path / "next" / "mm_projector.safetensors")
    for name, tensor in projector.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-9)
    from_base = stage_values(tmp_path / "base")
    from_base["model"]["projector"]["init_from"] = str(tmp_path / "next" / "mm_projector.bin")
    train_all(from_base)
    losses = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        for name in ("next", "base")
    ]
    # The same projector, and another language model.
    assert losses[0] != pytest.approx(losses[1], rel=1e-5)


def test_the_originals_adapters_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = run_folder("lora"), tmp_path / "llava-lora"
    shutil.copytree(source, folder)
    values = next_values(tmp_path, folder)
    assert check(values, tmp_path, capsys) == ""
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "lmsys/vicuna-13b-v1.5"
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    printed = check(values, tmp_path, capsys)
    assert "contains adapters for another language model" in printed
    assert "has lmsys/vicuna-13b-v1.5, this recipe" in printed


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def without_done(folder: Path) -> None:
    (folder / "DONE").unlink()


def cut_trained(folder: Path) -> None:
    cut(folder / "trained.safetensors")


def without_settings(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def cut_projector(folder: Path) -> None:
    (folder / "trained.safetensors").unlink()
    (folder / "adapter_config.json").unlink()
    cut(folder / "mm_projector.safetensors")


def without_weights(folder: Path) -> None:
    for file in folder.iterdir():
        if file.suffix in (".safetensors", ".bin") or file.name == "adapter_config.json":
            file.unlink()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (without_done, ["a run that is not finished", "has no DONE; checkpoints: none", "--resume"]),
        (cut_trained, ["cannot read weights", "trained.safetensors", "cut short"]),
        (without_settings, ["adapter_config.json cannot be read", "adapter_config.json"]),
        (cut_projector, ["cannot read weights", "mm_projector.safetensors", "cut short"]),
        (without_weights, ["a folder without trained weights"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_run_that_was_cut_short(
    damage: Callable[[Path], None],
    expected: list[str],
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(runs / "lora", tmp_path / "lora")
    if damage is not without_done:
        as_of_old(tmp_path / "lora")
    damage(tmp_path / "lora")
    there = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "lora").iterdir()}
    printed = check(next_values(tmp_path, tmp_path / "lora"), tmp_path, capsys)
    for words in expected:
        assert words in printed
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "lora").iterdir()} == there


def test_a_checkpoint_with_a_missing_shard(
    llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sharded"
    folder.mkdir()
    shutil.copy(llava / "config.json", folder / "config.json")
    tensors = load_file(llava / "model.safetensors")
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[:10]}, folder / "model-00001-of-00002.safetensors")
    shards = {name: f"model-0000{1 if name in names[:10] else 2}-of-00002.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    printed = check(next_values(tmp_path, folder), tmp_path, capsys)
    assert "1 weight file(s) named by model.safetensors.index.json are missing" in printed


def test_a_finished_stage_of_this_recipe_that_was_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = stage_values(tmp_path / "one")
    train_all(values)
    second = json.loads(json.dumps(values["stages"][0]))
    values["stages"].append({**second, "name": "second", "init_from": "pretrain"})
    values["stages"][1]["output_dir"] = str(tmp_path / "next")
    assert check(values, tmp_path, capsys) == ""
    cut(tmp_path / "one" / "mm_projector.safetensors")
    printed = check(values, tmp_path, capsys)
    assert "not as it wrote them" in printed and "mm_projector.safetensors has" in printed


def test_everything_wrong_is_reported_before_the_first_stage(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second stage whose beginning does not fit, and a third one's that is not there."""
    values = stage_values(tmp_path / "next")
    values["model"]["projector"]["type"] = "linear"
    for name, start in (("second", runs / "projector"), ("third", tmp_path / "nowhere")):
        stage = json.loads(json.dumps(values["stages"][0]))
        folder = str(tmp_path / name)
        values["stages"].append({**stage, "name": name, "init_from": str(start), "output_dir": folder})
    printed = check(values, tmp_path, capsys)
    assert "has another projector" in printed
    assert "the file or folder of `init_from` does not exist" in printed


def test_a_hub_id_is_read_from_the_cache(
    llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole model, and a projector alone, as their repositories contain them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    for name in ("llava", "pretrain"):
        repository = tmp_path / "hub" / f"models--owner--{name}"
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
        shutil.copy(llava / "config.json", snapshot / "config.json")
        if name == "llava":
            shutil.copy(llava / "model.safetensors", snapshot / "model.safetensors")
        else:
            weights = load_file(run_folder("full") / "init.safetensors")
            torch.save(weights, snapshot / "mm_projector.bin")
        values = next_values(tmp_path, f"owner/{name}")
        assert check(values, tmp_path, capsys) == ""
        linear(values, tmp_path)
        assert f"owner/{name} has `mlp2x_gelu`" in check(values, tmp_path, capsys)
    theirs = load_file(llava / "model.safetensors")
    values = next_values(tmp_path, "owner/llava")
    (after,) = train_all(values)
    assert torch.equal(after["lm_head.weight"], theirs["lm_head.weight"])
    shutil.rmtree(tmp_path / "next")
    printed = check(next_values(tmp_path, "owner/never"), tmp_path, capsys)
    assert "no such folder, not in the local cache, and the hub cannot be reached" in printed


def test_a_deep_look_downloads_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(next_values(tmp_path, "owner/never"), tmp_path / "recipe.yaml")
    assert main(["validate", "--deep", str(recipe)]) == 0
    assert (
        "warning: `init_from` isn't a folder here, and was not looked up on the hub"
        in capsys.readouterr().err
    )
    values = next_values(tmp_path, FIXTURES)
    capsys.readouterr()
    assert main(["validate", "--deep", str(write_recipe(values, recipe))]) == 1
    assert "`init_from` names a folder without trained weights" in capsys.readouterr().err
