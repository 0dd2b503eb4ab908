"""Every shipped recipe has a golden plan, and the LLaVA-1.5 ones say what the original's command says."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest

from llava_recipes.plan.arguments import keyword_arguments
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner.facts import plan_recipe
from tests.plan.test_deepspeed import ZERO2

ROOT = Path(__file__).parents[2]
RECIPES = sorted(file for file in (ROOT / "recipes").rglob("*.yaml") if file.parent.name != "base")
GOLDEN = Path(__file__).parent / "golden"
WORLD_SIZE = 8

COMMAND = """
--deepspeed ./scripts/zero2.json --model_name_or_path lmsys/vicuna-13b-v1.5 --version plain
--data_path ./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json
--image_folder ./playground/data/LLaVA-Pretrain/images --vision_tower openai/clip-vit-large-patch14-336
--mm_projector_type mlp2x_gelu --tune_mm_mlp_adapter True --mm_vision_select_layer -2
--mm_use_im_start_end False --mm_use_im_patch_token False --bf16 True
--output_dir ./checkpoints/llava-v1.5-13b-pretrain --num_train_epochs 1 --per_device_train_batch_size 32
--per_device_eval_batch_size 4 --gradient_accumulation_steps 1 --evaluation_strategy no --save_strategy steps
--save_steps 24000 --save_total_limit 1 --learning_rate 1e-3 --weight_decay 0. --warmup_ratio 0.03
--lr_scheduler_type cosine --logging_steps 1 --tf32 True --model_max_length 2048 --gradient_checkpointing True
--dataloader_num_workers 4 --lazy_preprocess True --report_to wandb
"""


def flags(command: str) -> dict[str, str]:
    words = shlex.split(command)
    return {flag.removeprefix("--"): value for flag, value in zip(words[::2], words[1::2], strict=True)}


def said_by(plan: Plan) -> dict[str, Any]:
    """What a plan says of each flag of the original's command."""
    model, stage = plan.model, plan.stages[0]
    data, train, arguments = stage.data, stage.train, keyword_arguments(stage.train)
    assert stage.deepspeed is not None and train.max_steps is not None
    only_projector = stage.trainable_modules == ("projector",)
    return {
        # DeepSpeed 0.12.6 doesn't clip where the file says nothing; later versions do.
        "deepspeed": "./scripts/zero2.json"
        if stage.deepspeed == {**ZERO2, "gradient_clipping": 0}
        else stage.deepspeed,
        "model_name_or_path": model.language_model.source,
        "version": data.template,
        "data_path": data.sources[0].annotations,
        "image_folder": data.sources[0].images,
        "vision_tower": model.vision_tower.source,
        "mm_projector_type": model.projector.type,
        "tune_mm_mlp_adapter": only_projector,
        "mm_vision_select_layer": model.vision_tower.select_layer,
        "mm_use_im_start_end": model.image_tokens.start_end,
        "mm_use_im_patch_token": model.image_tokens.patch,
        "bf16": arguments["bf16"] and train.precision == "bf16",
        "output_dir": stage.output_dir,
        "num_train_epochs": arguments["num_train_epochs"],
        "per_device_train_batch_size": arguments["per_device_train_batch_size"],
        "per_device_eval_batch_size": arguments["per_device_eval_batch_size"],
        "gradient_accumulation_steps": arguments["gradient_accumulation_steps"],
        "evaluation_strategy": arguments["eval_strategy"],
        "save_strategy": arguments["save_strategy"],
        "save_steps": arguments["save_steps"],
        "save_total_limit": arguments["save_total_limit"],
        "learning_rate": arguments["learning_rate"],
        "weight_decay": arguments["weight_decay"],
        "warmup_ratio": 0.03 if train.warmup_steps == math.ceil(0.03 * train.max_steps) else None,
        "lr_scheduler_type": arguments["lr_scheduler_type"],
        "logging_steps": arguments["logging_steps"],
        "tf32": arguments["tf32"],
        "model_max_length": data.max_length,
        # transformers 5 calls it so.
        "gradient_checkpointing": arguments["activation_checkpointing"],
        "dataloader_num_workers": arguments["dataloader_num_workers"],
        "lazy_preprocess": data.lazy_preprocess,
        "report_to": arguments["report_to"],
    }


def parse_like(text: str, value: object) -> object:
    """A flag's text as the type of the value that it is compared with."""
    if isinstance(value, bool):
        return {"True": True, "False": False}[text]
    return type(value)(text) if isinstance(value, (int, float)) else text


def plan_of(file: Path, world_size: int = WORLD_SIZE) -> Plan:
    return plan_recipe(load_recipe(str(file)), world_size=world_size)


@pytest.mark.parametrize("size", ["13b", "7b"])
def test_the_stage_1_recipes_say_every_flag_of_the_original(size: str) -> None:
    wanted = flags(COMMAND.replace("13b", size))
    assert len(wanted) == 32
    said = said_by(plan_of(ROOT / f"recipes/pretrain_v15_{size}.yaml"))
    assert {flag: parse_like(text, said[flag]) for flag, text in wanted.items()} == said


FIRST_LLAVA = {
    "vision_tower": "openai/clip-vit-large-patch14",
    "mm_projector_type": "linear",
    "per_device_train_batch_size": "16",
    "learning_rate": "2e-3",
}
"""Where `scripts/pretrain.sh`, of the first LLaVA, differs from `scripts/v1_5/pretrain.sh`."""


@pytest.mark.parametrize(
    ("recipe", "model", "name"),
    [
        ("pretrain_v1_7b", "lmsys/vicuna-7b-v1.3", "vicuna-v1-3-7b"),
        ("pretrain_v1_13b", "lmsys/vicuna-13b-v1.3", "vicuna-v1-3-13b"),
        ("pretrain_v1_llama2_7b", "meta-llama/Llama-2-7b-chat-hf", "llama-2-7b-chat"),
    ],
)
def test_stage_1_of_the_first_llava_says_every_flag_of_the_original(
    recipe: str, model: str, name: str
) -> None:
    wanted = flags(COMMAND) | FIRST_LLAVA | {"model_name_or_path": model}
    wanted |= {"output_dir": f"./checkpoints/llava-{name}-pretrain"}
    said = said_by(plan_of(ROOT / f"recipes/{recipe}.yaml"))
    assert {flag: parse_like(text, said[flag]) for flag, text in wanted.items()} == said


@pytest.mark.parametrize(
    ("name", "num_samples", "num_steps"),
    [
        ("pretrain_v1_7b", 558_128, 4361),
        ("finetune_v1_7b", 80_000, 625),
        ("finetune_full_schedule_v1_7b", 157_712, 3 * 1233),
        ("finetune_lora_v1_7b", 80_000, 625),
        ("finetune_qlora_v1_7b", 80_000, 625),
        ("finetune_sqa_v1_13b", 12_726, 12 * 100),
    ],
)
def test_the_figures_of_the_first_llava(name: str, num_samples: int, num_steps: int) -> None:
    (stage,) = plan_of(ROOT / f"recipes/{name}.yaml").stages
    assert stage.data.num_samples == num_samples
    assert (stage.train.global_batch_size, stage.train.max_steps) == (128, num_steps)


@pytest.mark.parametrize(
    ("size", "num_trainable", "num_parameters"),
    [("13b", 31_467_520, 13_350_839_296), ("7b", 20_979_712, 7_062_902_784)],
)
def test_the_figures_of_stage_1(size: str, num_trainable: int, num_parameters: int) -> None:
    plan = plan_of(ROOT / f"recipes/pretrain_v15_{size}.yaml")
    (stage,) = plan.stages
    assert stage.data.num_samples == 558_128
    assert (stage.train.global_batch_size, stage.train.max_steps, stage.train.warmup_steps) == (256, 2181, 66)
    assert stage.num_trainable_parameters == num_trainable
    assert plan.model.sizes is not None and plan.model.sizes.num_parameters == num_parameters


@pytest.mark.parametrize(
    ("name", "num_trainable"),
    [
        # Everything but the tower of 303,507,456.
        ("finetune_v15_13b", 13_350_839_296 - 303_507_456),
        ("finetune_v15_7b", 7_062_902_784 - 303_507_456),
        ("finetune_task_v15_13b", 13_350_839_296 - 303_507_456),
        ("finetune_task_v15_7b", 7_062_902_784 - 303_507_456),
        # Per layer 128 × the sum of inputs and outputs of seven linear layers, and the projector.
        ("finetune_lora_v15_13b", 40 * 128 * (4 * 2 * 5120 + 3 * (5120 + 13824)) + 31_467_520),
        ("finetune_lora_v15_7b", 32 * 128 * (4 * 2 * 4096 + 3 * (4096 + 11008)) + 20_979_712),
        ("finetune_task_lora_v15_13b", 40 * 128 * (4 * 2 * 5120 + 3 * (5120 + 13824)) + 31_467_520),
        ("finetune_task_lora_v15_7b", 32 * 128 * (4 * 2 * 4096 + 3 * (4096 + 11008)) + 20_979_712),
    ],
)
def test_the_figures_of_stage_2(name: str, num_trainable: int) -> None:
    (stage,) = plan_of(ROOT / f"recipes/{name}.yaml").stages
    train = stage.train
    assert stage.data.num_samples == 665_298
    assert (train.global_batch_size, train.max_steps, train.warmup_steps) == (128, 5198, 156)
    assert stage.num_trainable_parameters == num_trainable
    assert stage.data.group_by == "modality_length"


@pytest.mark.parametrize("size", ["13b", "7b"])
def test_the_whole_of_llava_is_its_two_recipes(size: str) -> None:
    whole = plan_of(ROOT / f"recipes/llava_v15_{size}.yaml")
    parts = [plan_of(ROOT / f"recipes/{stage}_v15_{size}.yaml") for stage in ("pretrain", "finetune")]
    pretrain, finetune = (plan.stages[0] for plan in parts)
    assert whole.stages == (
        pretrain,
        finetune.model_copy(update={"starts_from": (pretrain.output_dir,)}),
    )
    # What the second says in `projector.init_from` is what the first one leaves.
    start = parts[1].model.projector.init_from
    assert start == f"{pretrain.output_dir}/mm_projector.bin"
    without_start = parts[1].model.projector.model_copy(update={"init_from": None})
    assert whole.model == parts[0].model == parts[1].model.model_copy(update={"projector": without_start})


ORIGINAL = [file for file in RECIPES if "_v1_" in file.name or "_v15_" in file.name]


@pytest.mark.parametrize("file", ORIGINAL, ids=lambda file: file.stem)
def test_the_originals_recipes_draw_and_clip_as_it_did(file: Path) -> None:
    """The published runs took eight GPUs and DeepSpeed 0.12.6, which doesn't clip with their files."""
    for world_size in (8, 1):
        for stage in plan_of(file, world_size).stages:
            # A run may be resumed on another number of processes: its first one settles what that means.
            assert stage.data.order == "original"
            assert stage.train.training_arguments["max_grad_norm"] == 0
            assert stage.deepspeed is not None and stage.deepspeed["gradient_clipping"] == 0


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_llava_next_clips_and_open_llava_next_does_not(stage: str) -> None:
    """LLaVA-NeXT's zero3.json says "auto"; Open-LLaVA-NeXT has LLaVA's files and versions."""
    (own,) = plan_of(ROOT / f"recipes/{stage}_next_qwen2_7b.yaml").stages
    (opened,) = plan_of(ROOT / f"recipes/{stage}_next_vicuna_7b.yaml").stages
    assert own.deepspeed is not None and opened.deepspeed is not None
    assert (own.deepspeed["gradient_clipping"], own.data.order) == (1.0, "seed")
    assert (opened.deepspeed["gradient_clipping"], opened.data.order) == (0, "original")


def test_there_are_recipes() -> None:
    assert len(ORIGINAL) > 20
    assert RECIPES


def test_every_golden_plan_has_its_recipe() -> None:
    assert {file.stem for file in GOLDEN.glob("*.json")} == {golden_name(file) for file in RECIPES}


def golden_name(recipe: Path) -> str:
    return "__".join(recipe.relative_to(ROOT / "recipes").with_suffix("").parts)


@pytest.mark.parametrize("file", RECIPES, ids=golden_name)
def test_shipped_recipes_compile_to_their_golden_plan(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In an empty folder, without data that could be counted.
    # To renew one there: llava-recipe plan RECIPE --world-size 8 --json > golden/NAME.json
    monkeypatch.chdir(tmp_path)
    golden = json.loads((GOLDEN / f"{golden_name(file)}.json").read_text(encoding="utf-8"))
    assert json.loads(plan_of(file).model_dump_json()) == golden
