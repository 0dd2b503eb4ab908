"""The original's v1_5 scripts come to the plans of the gallery."""

from __future__ import annotations

import pytest

from tests.migrate.plans import ROOT, migrated, plan_of_recipe, plan_of_text

SCRIPTS = [
    ("v1_5/pretrain.sh", "13b", "pretrain_v15_13b"),
    ("v1_5/pretrain.sh", "7b", "pretrain_v15_7b"),
    ("v1_5/finetune.sh", "13b", "finetune_v15_13b"),
    ("v1_5/finetune.sh", "7b", "finetune_v15_7b"),
    ("v1_5/finetune_lora.sh", "13b", "finetune_lora_v15_13b"),
    ("v1_5/finetune_lora.sh", "7b", "finetune_lora_v15_7b"),
    ("v1_5/finetune_task.sh", "13b", "finetune_task_v15_13b"),
    ("v1_5/finetune_task.sh", "7b", "finetune_task_v15_7b"),
    ("v1_5/finetune_task_lora.sh", "13b", "finetune_task_lora_v15_13b"),
    ("v1_5/finetune_task_lora.sh", "7b", "finetune_task_lora_v15_7b"),
]


@pytest.mark.parametrize(("script", "size", "recipe"), SCRIPTS)
def test_a_script_of_the_original_comes_to_the_plan_of_the_gallery(
    script: str, size: str, recipe: str
) -> None:
    migration = migrated(script, size)
    assert plan_of_text(migration.text) == plan_of_recipe(ROOT / f"recipes/{recipe}.yaml")
    kinds = {entry.kind for _, entries in migration.stages for entry in entries}
    assert kinds == {"mapped", "default"}
