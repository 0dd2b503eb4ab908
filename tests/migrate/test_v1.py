"""The scripts of the first LLaVA come to the plans of the gallery."""

from __future__ import annotations

import pytest

from tests.migrate.plans import ROOT, migrated, plan_of_recipe, plan_of_text

VICUNA = ("lmsys/vicuna-7b-v1.3", "v1", "vicuna-v1-3-7b")
VICUNA_13B = ("lmsys/vicuna-13b-v1.3", "v1", "vicuna-v1-3-13b")
LLAMA_2 = ("meta-llama/Llama-2-7b-chat-hf", "llava_llama_2", "llama-2-7b-chat")
FINETUNES = ("finetune", "finetune_full_schedule", "finetune_lora", "finetune_qlora")
SCRIPTS = [
    ("pretrain", (VICUNA[0], VICUNA[2]), "pretrain_v1_7b"),
    ("pretrain", (VICUNA_13B[0], VICUNA_13B[2]), "pretrain_v1_13b"),
    ("pretrain", (LLAMA_2[0], LLAMA_2[2]), "pretrain_v1_llama2_7b"),
    *((script, VICUNA, f"{script}_v1_7b") for script in FINETUNES),
    *((script, LLAMA_2, f"{script}_v1_llama2_7b") for script in FINETUNES),
    ("finetune_sqa", VICUNA_13B, "finetune_sqa_v1_13b"),
]


@pytest.mark.parametrize(("script", "arguments", "recipe"), SCRIPTS, ids=[recipe for _, _, recipe in SCRIPTS])
def test_a_script_of_the_first_llava_comes_to_the_plan_of_the_gallery(
    script: str, arguments: tuple[str, ...], recipe: str
) -> None:
    migration = migrated(f"v1/{script}.sh", *arguments)
    assert plan_of_text(migration.text) == plan_of_recipe(ROOT / f"recipes/{recipe}.yaml")
    kinds = {entry.kind for _, entries in migration.stages for entry in entries}
    assert kinds == {"mapped", "default"}
