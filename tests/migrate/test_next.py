"""Scripts of Open-LLaVA-NeXT and LLaVA-NeXT come to the plans of the gallery, on the GPUs of their own."""

from __future__ import annotations

import pytest

from llava_recipes.migrate.migration import migrate
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import load_recipe, load_source
from llava_recipes.runner.facts import plan_recipe
from tests.migrate.plans import ROOT, SCRIPTS, migrated

NUM_GPUS = 32
VICUNA = ("lmsys/vicuna-7b-v1.5", "llava-v1.6-vicuna-7b", "4096")
LLAMA_3 = ("meta-llama/Meta-Llama-3-8B-Instruct", "llava-v1.6-llama3-8b", "6144")
OPEN_NEXT = [
    ("pretrain", VICUNA, "pretrain_next_vicuna_7b"),
    ("finetune", (*VICUNA, "v1"), "finetune_next_vicuna_7b"),
    ("pretrain", LLAMA_3, "pretrain_next_llama3_8b"),
    ("finetune", (*LLAMA_3, "llava_llama_3", "7975"), "finetune_next_llama3_8b"),
]
FILLED_IN = {
    "llava_1_6.json": "./playground/data/llava_next_raw_format/llava_next_raw_format_processed.json",
    "--image_folder ./images": "--image_folder ./playground/data/llava_next_raw_format",
    '"/checkpoints/projectors/${LLM_CLEAN}/': '"./checkpoints/${RUN}-pretrain/',
    '"llavanext-${TOWER//\\//_}-${LLM_CLEAN}-finetune"': "llava-v1.6-qwen2-7b",
    '"/checkpoints/${RUN}"': "./checkpoints/${RUN}",
    '--torch_compile True --torch_compile_backend "inductor"': "",
}
"""What the gallery puts for what LLaVA-NeXT's script leaves open, and torch.compile, which it leaves out."""


def gallery_plan(name: str, *, world_size: int) -> Plan:
    return without_notes(plan_recipe(load_recipe(str(ROOT / f"recipes/{name}.yaml")), world_size=world_size))


def plan_of_text(text: str, *, world_size: int) -> Plan:
    return without_notes(plan_recipe(load_source(text, "migrated.yaml"), world_size=world_size))


def without_notes(plan: Plan) -> Plan:
    """A plan that does not say whether the batch was given by its parts or in all."""
    return plan.model_copy(update={"notes": ()})


@pytest.mark.parametrize(("script", "arguments", "recipe"), OPEN_NEXT, ids=[row[2] for row in OPEN_NEXT])
def test_a_script_of_open_llava_next_comes_to_the_plan_of_the_gallery(
    script: str, arguments: tuple[str, ...], recipe: str
) -> None:
    migration = migrated(f"open_next/{script}.sh", *arguments)
    assert not [entry for _, told in migration.stages for entry in told if entry.kind == "lost"]
    plan = plan_of_text(migration.text, world_size=NUM_GPUS)
    assert plan == gallery_plan(recipe, world_size=NUM_GPUS)


def test_stage_1_of_llava_next_comes_to_the_plan_of_the_gallery() -> None:
    migration = migrated("next/pretrain.sh")
    plan = plan_of_text(migration.text, world_size=8)
    assert plan == gallery_plan("pretrain_next_qwen2_7b", world_size=8)


def test_stage_2_of_llava_next_comes_to_the_plan_of_the_gallery() -> None:
    script = (SCRIPTS / "next/finetune.sh").read_text(encoding="utf-8")
    for there, here in FILLED_IN.items():
        assert there in script
        script = script.replace(there, here)
    migration = migrate(script, "finetune.sh")
    plan = plan_of_text(migration.text, world_size=NUM_GPUS)
    assert plan == gallery_plan("finetune_next_qwen2_7b", world_size=NUM_GPUS)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_mistral_differs_from_vicuna_in_its_model_and_template_alone(stage: str) -> None:
    mistral, vicuna = (
        gallery_plan(f"{stage}_next_{model}_7b", world_size=NUM_GPUS).stages[0]
        for model in ("mistral", "vicuna")
    )
    given = {"output_dir": vicuna.output_dir, "num_trainable_parameters": vicuna.num_trainable_parameters}
    data = mistral.data.model_copy(update={"template": vicuna.data.template})
    assert mistral.model_copy(update={**given, "data": data}) == vicuna
