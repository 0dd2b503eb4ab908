"""`llava-recipe validate`: exit codes, several files, overrides, and what it leaves unloaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_recipes.cli.main import main

ROOT = Path(__file__).parent.parent.parent
GOOD = """\
version: 1
name: example
vars: {rate: 1e-3}
model:
  language_model: lmsys/vicuna-7b-v1.5
  vision_tower: {source: openai/clip-vit-large-patch14-336}
stages:
  - name: pretrain.v1
    trainable: [projector]
    data: {template: plain, sources: [{annotations: data/a.json, images: data/images}]}
    train: {num_train_epochs: 1, learning_rate: "${rate}"}
    output_dir: runs/pretrain
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "good.yaml"
    file.write_text(GOOD, encoding="utf-8")
    return file


def test_good_and_bad_files_are_distinguished(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = good.with_name("bad.yaml")
    bad.write_text(GOOD.replace("trainable", "trainabel"), encoding="utf-8")
    assert main(["validate", str(good), str(bad), str(good.parent / "none.yaml")]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"ok  {good}\n"
    assert f"{bad}:9:5: unknown key `trainabel`" in printed.err
    assert f"{good.parent / 'none.yaml'}: no such file" in printed.err


def test_a_glob_stands_for_its_files(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(good.parent / "*.yaml")]) == 0
    assert capsys.readouterr().out == f"ok  {good}\n"
    assert main(["validate", str(good.parent / "*.yml")]) == 1


def test_a_folder_is_no_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tmp_path)]) == 1
    assert "this is a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override",
    [
        "stages.0.train.max_steps=5",
        "stages.pretrain.v1.train.max_steps=5",
        "stages.0.data.sources.0.images=/elsewhere",
        "vars.rate=2e-3",
        "stages.0.train.learning_rate=2e-3",
        "model.projector.type=linear",
        "stages.0.deepspeed={zero_optimization: {stage: 2}, train_micro_batch_size_per_gpu: auto}",
        "stages.0.trainable=[projector, 'language_model.layers.{0..1}']",
    ],
)
def test_an_override_that_fits(good: Path, override: str) -> None:
    assert main(["validate", str(good), "--set", override]) == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.train.max_steps=many", "`max_steps` needs a whole number, not a string"),
        ("stages.0.train.max_step=5", "has no key `max_step`"),
        ("stages.pretrain.v2.train.max_steps=5", "`stages` has no entry `pretrain`"),
        ("stages.7.name=x", "`stages` has no entry `7`"),
        ("name.first=x", "`name` is a string and has no key `first`"),
        ("model.language_model.source=x", "`model.language_model` is a string"),
        ("stages.0.train.seed.x=1", "`stages[0].train.seed` takes a whole number"),
        ("stages..name=x", "`stages` has no entry ``"),
        ("max_steps", "`--set` needs `path=value`"),
        ("=5", "`--set` needs `path=value`"),
        ("stages.0.train.max_steps=[", "bad YAML"),
        ("stages.0.train.max_steps=.nan", "infinity and NaN"),
        ("vars.unread=1", "the variable `unread` is never used"),
        ("stages.0.output_dir=${nowhere}", "unknown variable `${nowhere}`"),
    ],
)
def test_an_override_that_does_not_fit(
    good: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message points at the command line."""
    assert main(["validate", str(good), "--set", override]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"--set {override}: ")
    assert message in printed


def test_an_override_that_is_no_text(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that are not UTF-8, as Python takes them from the shell."""
    assert main(["validate", str(good), "--set", "name=\udcff"]) == 1
    assert "`--set` must be UTF-8" in capsys.readouterr().err


def test_a_secret_is_not_printed(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(good), "--set", "stages.0.train.extra.hub_token=hf_abcdefgh"]) == 1
    assert "hf_abcdefgh" not in capsys.readouterr().err


def test_a_missing_deepspeed_file_is_reported(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Data may come later; the DeepSpeed file is part of the recipe."""
    assert main(["validate", str(good), "--set", "stages.0.deepspeed=./none/zero2.json"]) == 1
    assert "--set stages.0.deepspeed=./none/zero2.json" in capsys.readouterr().err


def test_what_the_plan_finds_points_into_the_recipe(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good.write_text(GOOD.replace("[projector]", '["language_model.layers.99"]'), encoding="utf-8")
    assert main(["validate", str(good)]) == 1
    assert f"{good}:9:17: " in capsys.readouterr().err


def test_it_needs_a_file() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["validate"])
    assert stopped.value.code == 2
