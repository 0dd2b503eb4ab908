"""Recipes as commands of the original, and back: the plan stays the same."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llava_recipes.cli.main import main
from llava_recipes.errors import RecipeError
from llava_recipes.migrate.export_script import export_script
from llava_recipes.migrate.migration import migrate
from llava_recipes.plan.deepspeed import original_file
from llava_recipes.recipe.load import load_recipe, load_source
from llava_recipes.recipe.schema import Recipe
from tests.migrate.plans import ROOT, WORLD_SIZE, plan_of_recipe, plan_of_text
from tests.processes import run_process

RECIPES = sorted(file for file in (ROOT / "recipes").rglob("*.yaml") if file.parent.name != "base")
NEXT_MODELS = ("vicuna_7b", "mistral_7b", "llama3_8b")
NOT_OF_THE_ORIGINAL = {
    "demo",
    *("small_qwen3_0_6b", "small_qwen3_1_7b", "small_llama32_1b", "small_llama32_3b"),
    *(f"{stage}_next_{model}" for stage in ("pretrain", "finetune") for model in NEXT_MODELS),
    *("pretrain_next_qwen2_7b", "finetune_next_qwen2_7b"),
}
"""Recipes that say what the original cannot."""

BASE = """\
version: 1
name: tuned
model:
  language_model: lmsys/vicuna-7b-v1.5
  vision_tower: {source: openai/clip-vit-large-patch14-336, select_layer: -2}
stages:
  - name: finetune
    freeze: [vision_tower]
    data:
      template: v1
      order: original
      sources: [{annotations: data/a.json, images: "data/my images"}]
    train: {max_steps: 7, learning_rate: 2e-5, max_grad_norm: 0}
    deepspeed: zero3
    output_dir: "out/it's tuned"
"""


def exported(recipe: Recipe, world_size: int | None = None) -> str:
    return export_script(recipe, file="recipe.yaml", stages=range(len(recipe.stages)), world_size=world_size)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipe_to_script_to_recipe_is_the_same_plan(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(str(file)).recipe
    expected = plan_of_recipe(str(file.relative_to(ROOT / "recipes").with_suffix("")))
    # A folder without data whose samples could be counted.
    monkeypatch.chdir(tmp_path)
    if file.stem in NOT_OF_THE_ORIGINAL:
        with pytest.raises(RecipeError):
            exported(recipe)
        return
    script = exported(recipe, WORLD_SIZE)
    migration = migrate(script, "exported.sh")
    kinds = {entry.kind for _, entries in migration.stages for entry in entries}
    # A run has one name and a stage starts from the one before: of several, flags say it again.
    assert kinds <= {"mapped", "default"} | ({"needless"} if len(recipe.stages) > 1 else set())
    assert plan_of_text(migration.text) == expected


def test_values_that_a_shell_would_take_apart_come_back() -> None:
    migration = migrate(exported(load_source(BASE, "x.yaml").recipe), "exported.sh")
    plan, expected = plan_of_text(migration.text), plan_of_text(BASE)
    (stage,), (wanted,) = plan.stages, expected.stages
    assert stage.data.sources == wanted.data.sources
    assert stage.output_dir == wanted.output_dir
    assert plan.recipe == expected.recipe == "tuned"
    assert stage.train == wanted.train
    assert stage.trainable_modules == wanted.trainable_modules


@pytest.mark.parametrize(
    ("quantization", "flags"),
    [
        ("{bits: 4, double_quant: false}", ["--bits 4", "--quant_type nf4", "--double_quant False"]),
        ("{bits: 4, type: fp4}", ["--bits 4", "--quant_type fp4", "--double_quant True"]),
        ("{bits: 8}", ["--bits 8"]),
    ],
)
def test_few_bits_come_back(quantization: str, flags: list[str]) -> None:
    language = f"{{source: lmsys/vicuna-7b-v1.5, quantization: {quantization}}}"
    text = BASE.replace("language_model: lmsys/vicuna-7b-v1.5", f"language_model: {language}")
    text = text.replace("freeze: [vision_tower]", "trainable: [projector]\n    lora: {r: 8}")
    text = text.replace("zero3", "zero2")
    script = exported(load_source(text, "x.yaml").recipe)
    assert all(flag in script for flag in flags)
    assert ("--quant_type" in script) == ("--quant_type nf4" in flags or "--quant_type fp4" in flags)
    plan, expected = plan_of_text(migrate(script, "exported.sh").text), plan_of_text(text)
    assert plan.model.language_model == expected.model.language_model
    assert plan.stages[0].lora == expected.stages[0].lora


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("freeze: [vision_tower]", "trainable: [vision_tower]", "cannot train just these modules"),
        ("freeze: [vision_tower]", "freeze: [vision_tower.encoder]", "whole modules alone"),
        ("order: original", "shuffle: false", "always shuffles"),
        ("order: original", "order: seed", "another order of samples"),
        ("order: original", "order: original\n      group_by: length", "sorts differently"),
        ("template: v1", "template: v1\n      on_bad_image: skip", "stops at a bad image"),
        ("select_layer: -2", "revision: main", "no `revision`"),
        ("deepspeed: zero3", "deepspeed: {zero_optimization: {stage: 2}}", "not an inline config"),
        ("deepspeed: zero3", "deepspeed: zero3_offload", "has a schedule"),
        ("max_steps: 7", "max_steps: 7, loss_normalization: token", "each device batch"),
        ("max_steps: 7", "max_steps: 7, global_batch_size: 64", "accumulation steps"),
        ("max_grad_norm: 0", "max_grad_norm: 0.5", "the original doesn't clip"),
        ("max_grad_norm: 0", "seed: 42", "the original doesn't clip"),
        ("annotations: data/a.json", "annotations: data/a.json, weight: 2", "the whole file, once"),
        ("data/a.json", "data/a.json, sampling_strategy: first:5", "the whole file, once"),
        ("data/a.json", "data/a.parquet", "reads JSON lists"),
        ("template: v1", "template: qwen", "have this template"),
        ("template: v1", "chat_template: tokenizer", "use chat templates"),
        ("template: v1", "template: v1\n      system_prompt: Be brief.", "system prompts are fixed"),
        ("template: v1", "template: v1\n      validation: {split: 5}", "no validation loss"),
        (
            "annotations: data/a.json",
            "annotations: data/b.json}, {annotations: data/a.json",
            "one annotation",
        ),
    ],
)
def test_what_the_original_cannot_do_is_refused(old: str, new: str, message: str) -> None:
    assert old in BASE
    with pytest.raises(RecipeError, match=message):
        exported(load_source(BASE.replace(old, new), "x.yaml").recipe)


@pytest.mark.parametrize("trained", ["projector", "projector, image_tokens"])
def test_start_and_end_tokens_beside_the_projector_alone_are_refused(trained: str) -> None:
    """The original raises NotImplementedError there."""
    text = BASE.replace("stages:", "  image_tokens: {start_end: true}\nstages:")
    text = text.replace("freeze: [vision_tower]", f"trainable: [{trained}]")
    with pytest.raises(RecipeError, match="stops at the first batch"):
        exported(load_source(text, "x.yaml").recipe)


@pytest.mark.parametrize(
    ("template", "version"),
    [
        *(
            ("v0", "default"),
            ("llava_v0", "default"),
            ("vicuna_v1", "v1"),
            ("mistral_direct", "chatml_direct"),
        ),
        *((name, name) for name in ("v0_mmtag", "v1_mmtag", "llava_v1", "llama_2", "llava_llama_2", "mpt")),
    ],
)
def test_a_template_comes_back_by_the_originals_name(template: str, version: str) -> None:
    text = BASE.replace("template: v1", f"template: {template}")
    script = exported(load_source(text, "x.yaml").recipe)
    assert f"--version {version} \\" in script
    assert (
        plan_of_text(migrate(script, "exported.sh").text).stages[0].data == plan_of_text(text).stages[0].data
    )


def test_a_global_batch_becomes_accumulation() -> None:
    text = BASE.replace("max_steps: 7", "max_steps: 7, global_batch_size: 64, per_device_train_batch_size: 2")
    assert "--gradient_accumulation_steps 8 \\" in exported(load_source(text, "x.yaml").recipe, world_size=4)


def test_on_one_process_the_original_draws_from_the_seed() -> None:
    recipe = load_source(BASE.replace("order: original", "order: seed"), "x.yaml").recipe
    assert "--per_device_train_batch_size" in exported(recipe, world_size=1)


def test_without_deepspeed_the_original_clips_where_the_flag_says() -> None:
    text = BASE.replace("max_grad_norm: 0", "max_grad_norm: 0.5").replace(
        "deepspeed: zero3", "deepspeed: none"
    )
    script = exported(load_source(text, "x.yaml").recipe)
    assert "--max_grad_norm 0.5" in script
    (stage,) = plan_of_text(migrate(script, "exported.sh").text).stages
    assert stage.train.training_arguments["max_grad_norm"] == 0.5


FAKE_DEEPSPEED = """\
#!/bin/sh
echo "$@" >> calls.txt
! grep -q "mm_projector.bin" calls.txt || exit 0
exit ${STAGE_1:-0}
"""


@pytest.mark.parametrize(("stage_1", "num_calls"), [(0, 2), (7, 1)])
def test_a_script_stops_at_the_first_stage_that_fails(stage_1: int, num_calls: int, tmp_path: Path) -> None:
    script = exported(load_recipe(str(ROOT / "recipes" / "llava_v15_7b.yaml")).recipe, WORLD_SIZE)
    assert script.count("deepspeed llava/train/train_mem.py") == 2
    (tmp_path / "both.sh").write_text(script)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "deepspeed").write_text(FAKE_DEEPSPEED)
    (programs / "deepspeed").chmod(0o755)
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "STAGE_1": str(stage_1)}
    done = run_process(["bash", "both.sh"], cwd=tmp_path, env=env)
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert (done.returncode, len(calls)) == (stage_1, num_calls), done.stderr
    assert "--version plain" in calls[0] and all("--version v1" in call for call in calls[1:])


def test_a_script_says_which_recipe_it_is_from_and_not_where_that_is() -> None:
    recipe = load_source(BASE, "x.yaml").recipe
    script = export_script(recipe, file="/home/bob/secret/tuned.yaml", stages=[0], world_size=None)
    assert "from tuned.yaml." in script and "/home/bob" not in script


@pytest.mark.parametrize(
    ("clipping", "norm", "message"),
    [
        (None, "0.5", "doesn't clip: the file has no `gradient_clipping`"),
        (None, "0", None),
        ("auto", "0.5", None),
        (0.5, "0.5", None),
        (0, "0.5", "the DeepSpeed file has `gradient_clipping: 0`"),
    ],
)
def test_a_deepspeed_file_must_clip_as_the_recipe_does(
    clipping: object, norm: str, message: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**original_file("zero2"), **({} if clipping is None else {"gradient_clipping": clipping})}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    text = BASE.replace("zero3", f"{tmp_path}/ds.json").replace("max_grad_norm: 0", f"max_grad_norm: {norm}")
    (tmp_path / "recipe.yaml").write_text(text)
    code = main(["export-script", str(tmp_path / "recipe.yaml")])
    printed = capsys.readouterr()
    assert code == (0 if message is None else 1)
    assert ("--deepspeed" in printed.out) == (message is None)
    assert message is None or message in printed.err


def test_without_a_number_the_script_says_how_many_processes_its_batch_needs() -> None:
    text = BASE.replace(
        "max_steps: 7", "max_steps: 7, global_batch_size: 64, per_device_train_batch_size: 16"
    )
    recipe = load_source(text, "x.yaml").recipe
    assert "batch of 64 needs 4 GPUs" in exported(recipe)
    assert "--gradient_accumulation_steps 1 " in exported(recipe)
    assert "--gradient_accumulation_steps 4 " in exported(recipe, 1)
    assert "GPUs (" not in exported(recipe, 1)
