"""Configs of XTuner, axolotl and LLaMA-Factory: the keys with the same meaning."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_recipes.errors import RecipeError
from llava_recipes.migrate.draft import Migration
from llava_recipes.migrate.migration import migrate
from llava_recipes.recipe.load import load_source
from tests.migrate.plans import plan_of_text
from tests.migrate.test_translation import at, entries

CONFIGS = Path(__file__).parent / "configs"
XTUNER = (CONFIGS / "xtuner_pretrain.py.txt").read_text(encoding="utf-8")
AXOLOTL = (CONFIGS / "axolotl_pretrain.yaml").read_text(encoding="utf-8")
FACTORY = (CONFIGS / "llama_factory.yaml").read_text(encoding="utf-8")


def names(migration: Migration, kind: str) -> set[str]:
    return {entry.name for entry in entries(migration, kind)}


def test_an_xtuner_config_is_read_not_run() -> None:
    migration = migrate(XTUNER, "llava_pretrain.py")
    plan = plan_of_text(migration.text)
    (stage,) = plan.stages
    assert plan.recipe == "llava_pretrain"
    assert plan.model.language_model.source == "lmsys/vicuna-7b-v1.5"
    assert (plan.model.projector.type, plan.model.vision_tower.select_layer) == ("mlp2x_gelu", -2)
    assert stage.trainable_modules == ("projector",)
    # 2048 less the 576 of the image in XTuner's count, which are counted here.
    assert stage.data.max_length == 2048
    assert stage.data.sources[0].annotations == "./data/llava_data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"
    assert stage.data.sources[0].images == "./data/llava_data/LLaVA-Pretrain/images"
    assert (stage.train.global_batch_size, stage.train.max_steps, stage.train.warmup_steps) == (256, 2181, 66)
    assert (stage.train.precision, stage.train.learning_rate) == ("fp16", 1e-3)
    assert names(migration, "lost") == {"llava_dataset.template_map_fn.template", "--deepspeed"}


def test_an_xtuner_config_with_adapters_and_grouping() -> None:
    text = (
        XTUNER.replace("freeze_llm=True", "freeze_llm=False, pretrained_pth='w/iter.pth'")
        .replace(
            "    llm=dict(", "    llm_lora=dict(r=128, lora_alpha=256, lora_dropout=0.05),\n    llm=dict("
        )
        .replace(
            "sampler=dict(shuffle=True)",
            "sampler=dict(type=LengthGroupedSampler, length_property='modality_length')",
        )
        .replace("pad_image_to_square=False", "pad_image_to_square=True")
    )
    migration = migrate(text, "lora.py")
    lora = {"r": 128, "alpha": 256, "dropout": 0.05, "modules": ["language_model"], "bias": "none"}
    assert at(migration, "stages.0.lora") == lora
    assert at(migration, "stages.0.trainable") == ["projector"]
    assert at(migration, "stages.0.data.group_by") == "modality_length"
    assert at(migration, "stages.0.data.image_aspect_ratio") == "pad"
    assert "model.pretrained_pth" in names(migration, "lost")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('root = "./data/llava_data/"', "root = os.environ['DATA']", "known without running"),
        ("type=LLaVAModel", "type=SupervisedFinetune", "a LLaVA config of XTuner"),
        ("max_epochs = 1", "max_epochs = (1", "this is not Python"),
        ("max_epochs = 1", "with read_base():\n    from .base import *", "parent configs are not read"),
        ("max_epochs = 1", f"max_epochs = {'(' * 300}1{')' * 300}", "this is not Python"),
        ("max_epochs = 1", f"max_epochs = {'-' * 5000}1", "this is not Python|deeper than"),
        ("max_epochs = 1", f"max_epochs = {'1+' * 3000}1", "this is not Python|deeper than"),
        ("max_epochs = 1", f"max_epochs = {'9' * 10000}", "this is not Python"),
        ("max_epochs = 1", "if True:\n    max_epochs = 1", "known without running"),
        (
            "max_epochs = 1",
            "max_epochs = 1\nfor max_epochs in (1, 2): pass",
            "known without running",
        ),
        ("randomness =", "train_cfg.update(max_epochs=2)\nrandomness =", "known without running"),
        ("randomness =", "model['llm'].type = 1\nrandomness =", "known without running"),
        ("lr=1e-3", "lr=10**10**10", "known without|takes|number|`learning_rate`"),
    ],
)
def test_an_xtuner_config_that_cannot_be_read(old: str, new: str, message: str) -> None:
    assert old in XTUNER
    with pytest.raises(RecipeError, match=message):
        load_source(migrate(XTUNER.replace(old, new), "config.py").text, "recipe.yaml")


def test_what_an_xtuner_config_sets_later_holds() -> None:
    later = (
        "model['freeze_llm'] = False\nmax_epochs += 1\ntrain_cfg = dict(max_epochs=max_epochs)\nrandomness ="
    )
    migration = migrate(XTUNER.replace("randomness =", later), "config.py")
    assert at(migration, "stages.0.trainable") == ["projector", "language_model", "lm_head"]
    assert at(migration, "stages.0.train.num_train_epochs") == 2


def test_a_setting_with_two_names_is_reported_under_the_one_that_counts() -> None:
    text = XTUNER.replace(
        "optim_wrapper = dict(",
        "adam = dict(type=AdamW, lr=1e-3, eps=1e-6, amsgrad=True)\noptim_wrapper = dict(",
    )
    migration = migrate(
        text.replace("optimizer=dict(type=AdamW, lr=1e-3,", "optimizer=adam, _=dict("), "config.py"
    )
    assert at(migration, "stages.0.train.learning_rate") == 1e-3
    assert at(migration, "stages.0.train.adam_epsilon") == 1e-6
    assert "adam.amsgrad" in names(migration, "lost")
    assert not {"adam.lr", "adam.eps", "adam.type"} & names(migration, "lost")


def test_axolotl_is_the_same_run_as_the_original_s_pretraining() -> None:
    migration = migrate(AXOLOTL, "config.yaml")
    (stage,) = plan_of_text(migration.text).stages
    assert (stage.train.global_batch_size, stage.train.max_steps, stage.train.warmup_steps) == (256, 2181, 66)
    assert stage.trainable_modules == ("projector",)
    assert stage.deepspeed_source == "zero2"
    assert stage.train.training_arguments["report_to"] == "wandb"
    assert names(migration, "lost") == set()


def test_axolotls_word_for_the_tokenizers_chat_template() -> None:
    text = AXOLOTL.replace("chat_template: plain", "chat_template: tokenizer_default")
    (stage,) = plan_of_text(migrate(text, "config.yaml").text).stages
    assert (stage.data.template, stage.data.chat_template) == (None, "tokenizer")


@pytest.mark.parametrize(
    ("name", "ours"), [("llama3_chat", "llama_3"), ("qwen_chat", "qwen"), ("phi3_chat", "phi3")]
)
def test_xtuners_templates(name: str, ours: str) -> None:
    migration = migrate(XTUNER.replace("PROMPT_TEMPLATE.vicuna", f"PROMPT_TEMPLATE.{name}"), "config.py")
    assert plan_of_text(migration.text).stages[0].data.template == ours
    assert "llava_dataset.template_map_fn.template" in names(migration, "lost")


def test_llama_factory_names_the_whole_model_by_its_parts() -> None:
    migration = migrate(FACTORY, "config.yaml")
    assert at(migration, "model.language_model") == "liuhaotian/llava-v1.5-7b"
    assert at(migration, "model.vision_tower.source") == "openai/clip-vit-large-patch14-336"
    assert at(migration, "stages.0.trainable") == ["projector", "language_model", "lm_head"]
    assert at(migration, "stages.0.data.template") == "v1"
    assert names(migration, "lost") == {"dataset"}
    load_source(migration.text, "recipe.yaml")


def test_llama_factory_freezes_the_projector_by_default() -> None:
    migration = migrate(FACTORY.replace("freeze_multi_modal_projector: false\n", ""), "config.yaml")
    assert at(migration, "stages.0.trainable") == ["language_model", "lm_head"]
    assert "freeze_multi_modal_projector" in names(migration, "default")


def test_llama_factory_adapters_have_its_own_defaults() -> None:
    text = FACTORY.replace("finetuning_type: full", "finetuning_type: lora\nlora_rank: 32\nlora_target: all")
    migration = migrate(text, "config.yaml")
    lora = {"r": 32, "alpha": 64, "dropout": 0.0, "modules": ["language_model"]}
    assert at(migration, "stages.0.lora") == lora


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n", "neither axolotl nor LLaMA-Factory"),
        ("- 1\n", "mapping"),
        ("base_model: !!python/object:os.system x\n", "tag"),
        ("base_model: [\n", "bad YAML"),
        ("", "contains no recipe"),
    ],
)
def test_yaml_that_is_no_such_config(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        migrate(text, "config.yaml")
