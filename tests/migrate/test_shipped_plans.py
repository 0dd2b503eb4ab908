"""Scripts of LLaVA, Open-LLaVA-NeXT and LLaVA-NeXT result in the plans of the shipped recipes."""

from __future__ import annotations

import pytest

from llava_recipes.migrate.migration import migrate
from tests.migrate.plans import SCRIPTS, migrated, plan_of_recipe, plan_of_text

VICUNA = ("lmsys/vicuna-7b-v1.3", "v1", "vicuna-v1-3-7b")
VICUNA_13B = ("lmsys/vicuna-13b-v1.3", "v1", "vicuna-v1-3-13b")
LLAMA_2 = ("meta-llama/Llama-2-7b-chat-hf", "llava_llama_2", "llama-2-7b-chat")
FINETUNES = ("finetune", "finetune_full_schedule", "finetune_lora", "finetune_qlora")
V1_5 = ("pretrain", "finetune", "finetune_lora", "finetune_task", "finetune_task_lora")
ORIGINAL = [
    ("v1/pretrain", (VICUNA[0], VICUNA[2]), "pretrain_v1_7b"),
    ("v1/pretrain", (VICUNA_13B[0], VICUNA_13B[2]), "pretrain_v1_13b"),
    ("v1/pretrain", (LLAMA_2[0], LLAMA_2[2]), "pretrain_v1_llama2_7b"),
    *((f"v1/{script}", VICUNA, f"{script}_v1_7b") for script in FINETUNES),
    *((f"v1/{script}", LLAMA_2, f"{script}_v1_llama2_7b") for script in FINETUNES),
    ("v1/finetune_sqa", VICUNA_13B, "finetune_sqa_v1_13b"),
    *((f"v1_5/{script}", (size,), f"{script}_v15_{size}") for script in V1_5 for size in ("13b", "7b")),
]
NEXT_GPUS = 32
NEXT_VICUNA = ("lmsys/vicuna-7b-v1.5", "llava-v1.6-vicuna-7b", "4096")
NEXT_LLAMA_3 = ("meta-llama/Meta-Llama-3-8B-Instruct", "llava-v1.6-llama3-8b", "6144")
OPEN_NEXT = [
    ("pretrain", NEXT_VICUNA, "pretrain_next_vicuna_7b"),
    ("finetune", (*NEXT_VICUNA, "v1"), "finetune_next_vicuna_7b"),
    ("pretrain", NEXT_LLAMA_3, "pretrain_next_llama3_8b"),
    ("finetune", (*NEXT_LLAMA_3, "llava_llama_3", "7975"), "finetune_next_llama3_8b"),
]
FILLED_IN = {
    "llava_1_6.json": "./playground/data/llava_next_raw_format/llava_next_raw_format_processed.json",
    "--image_folder ./images": "--image_folder ./playground/data/llava_next_raw_format",
    '"/checkpoints/projectors/${LLM_CLEAN}/': '"./checkpoints/${RUN}-pretrain/',
    '"llavanext-${TOWER//\\//_}-${LLM_CLEAN}-finetune"': "llava-v1.6-qwen2-7b",
    '"/checkpoints/${RUN}"': "./checkpoints/${RUN}",
    '--torch_compile True --torch_compile_backend "inductor"': "",
}
"""What the shipped recipe has for what LLaVA-NeXT's script leaves open, and torch.compile, which it omits."""


@pytest.mark.parametrize(("script", "arguments", "recipe"), ORIGINAL, ids=[row[2] for row in ORIGINAL])
def test_a_script_of_the_original(script: str, arguments: tuple[str, ...], recipe: str) -> None:
    migration = migrated(f"{script}.sh", *arguments)
    assert plan_of_text(migration.text) == plan_of_recipe(recipe)
    assert {entry.kind for _, entries in migration.stages for entry in entries} == {"mapped", "default"}


@pytest.mark.parametrize(("script", "arguments", "recipe"), OPEN_NEXT, ids=[row[2] for row in OPEN_NEXT])
def test_a_script_of_open_llava_next(script: str, arguments: tuple[str, ...], recipe: str) -> None:
    migration = migrated(f"open_next/{script}.sh", *arguments)
    assert not [entry for _, entries in migration.stages for entry in entries if entry.kind == "lost"]
    assert plan_of_text(migration.text, NEXT_GPUS) == plan_of_recipe(recipe, NEXT_GPUS)


def test_stage_1_of_llava_next() -> None:
    assert plan_of_text(migrated("next/pretrain.sh").text) == plan_of_recipe("pretrain_next_qwen2_7b")


def test_stage_2_of_llava_next() -> None:
    script = (SCRIPTS / "next/finetune.sh").read_text(encoding="utf-8")
    for there, here in FILLED_IN.items():
        assert there in script
        script = script.replace(there, here)
    plan = plan_of_text(migrate(script, "finetune.sh").text, NEXT_GPUS)
    assert plan == plan_of_recipe("finetune_next_qwen2_7b", NEXT_GPUS)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_mistral_differs_from_vicuna_in_its_model_and_template_alone(stage: str) -> None:
    mistral, vicuna = (
        plan_of_recipe(f"{stage}_next_{model}_7b", NEXT_GPUS).stages[0] for model in ("mistral", "vicuna")
    )
    own = {"output_dir": vicuna.output_dir, "num_trainable_parameters": vicuna.num_trainable_parameters}
    data = mistral.data.model_copy(update={"template": vicuna.data.template})
    assert mistral.model_copy(update={**own, "data": data}) == vicuna
