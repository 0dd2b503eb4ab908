"""The additions that docs/CONTRIBUTING.md shows, put into a copy of the package: they work as they stand."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import llava_recipe, run_process
from tests.tiny import FIXTURES, stage1_values, write_recipe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "CONTRIBUTING.md"
FILES_TOUCHED = {
    "A projector type": 2,
    "A family of vision towers": 2,
    "A family of language models that `plan` counts": 1,
    "A DeepSpeed preset": 1,
    "A conversation template": 1,
    "A command": 2,
    "A key of `train`": 2,
}
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def additions() -> dict[str, list[tuple[str, str, str]]]:
    """By title: each change as file, the text that it replaces, and the new text."""
    found = {}
    for section in PAGE.read_text("utf-8").split("\n### ")[1:]:
        title = section.partition(": ")[0]
        changes = []
        for block in re.findall(r"```diff\n(.*?)```", section, re.DOTALL):
            head, *lines = block.splitlines()
            old = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
            new = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
            changes.append((head.removeprefix("+++ "), old, new))
        found[title] = changes
    return found


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package that has all additions."""
    folder = tmp_path_factory.mktemp("changed")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "llava_recipes", folder / "llava_recipes", ignore=ignored)
    for changes in additions().values():
        for name, old, new in changes:
            file = folder / name
            if not old:
                assert not file.exists()
                file.write_text(new, "utf-8")
                continue
            text = file.read_text("utf-8")
            assert text.count(old) == 1, f"{name} holds this {text.count(old)} times:\n{old}"
            file.write_text(text.replace(old, new), "utf-8")
    return folder


def values(folder: Path) -> dict[str, Any]:
    """A recipe that uses every addition but the preset, for which a CPU is slow."""
    recipe = stage1_values(folder / "out", torch_empty_cache_steps=5, max_steps=1, warmup_ratio=0)
    recipe["model"] = {
        "language_model": {
            "config": {
                "model_type": "smollm3",
                **{"vocab_size": 1000, "num_key_value_heads": 2, "pad_token_id": 0},
                **SIZES,
            },
            "tokenizer": str(FIXTURES / "tiny_vicuna"),
        },
        "vision_tower": {
            "config": {"model_type": "chinese_clip_vision_model", "image_size": 28, "patch_size": 14, **SIZES}
        },
        "projector": {"type": "norm_mlp2x_gelu"},
    }
    del recipe["stages"][0]["train"]["num_train_epochs"]
    recipe["stages"][0]["data"]["template"] = "zephyr"
    return recipe


def run_changed(changed: Path, *words: str | Path) -> str:
    """What a command of the changed package writes."""
    done = llava_recipe(*words, cwd=changed, env={"PYTHONPATH": str(changed)}, fresh=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_an_addition_touches_few_files() -> None:
    touched = {title: len({name for name, _, _ in changes}) for title, changes in additions().items()}
    assert touched == FILES_TOUCHED


def test_a_recipe_with_all_of_them_is_planned(changed: Path, tmp_path: Path) -> None:
    recipe = values(tmp_path)
    recipe["stages"][0]["deepspeed"] = "zero1"
    file = write_recipe(recipe, tmp_path / "recipe.yaml")
    assert run_changed(changed, "stages", file) == "pretrain\n"
    assert "cannot be exported to `hf`" in run_changed(changed, "validate", file)
    plan = json.loads(run_changed(changed, "plan", file, "--json"))
    (stage,) = plan["stages"]
    # The norm of the tower's 64 features, then 64 to 64 and 64 to 64.
    assert stage["num_trainable_parameters"] == 2 * 64 + 2 * (64 * 64 + 64)
    assert stage["deepspeed"]["zero_optimization"]["stage"] == 1
    assert stage["train"]["training_arguments"]["torch_empty_cache_steps"] == 5


def test_a_near_miss_of_the_new_type_is_reported(changed: Path, tmp_path: Path) -> None:
    recipe = values(tmp_path)
    recipe["model"]["projector"]["type"] = "norm_mlp2x_gel"
    file = write_recipe(recipe, tmp_path / "recipe.yaml")
    done = llava_recipe("validate", file, cwd=changed, env={"PYTHONPATH": str(changed)}, fresh=True)
    assert done.returncode == 1 and "did you mean `norm_mlp2x_gelu`?" in done.stdout + done.stderr


INSIDE = """
import math
import sys
from pathlib import Path
from llava_recipes.cli.main import main
from llava_recipes.model.assemble import skeleton_shapes
from llava_recipes.model.weights import read_projector_weights
from llava_recipes.plan.types import Plan
from llava_recipes.templates import Turn, spell

recipe = Path(sys.argv[1])
assert main(["run", str(recipe)]) == 0
out = recipe.with_name("out")
model = Plan.model_validate_json((out / "plan.json").read_text("utf-8")).model
assert model.sizes.num_parameters == sum(map(math.prod, skeleton_shapes(model).values()))
assert read_projector_weights(out / "mm_projector.bin").type == "norm_mlp2x_gelu"
turns = [Turn("human", "<image>\\nWhat?"), Turn("gpt", "A cat.")]
segments = spell("zephyr", turns, has_image=True, start_end=False)
before = "<|system|>\\nYou are a friendly chatbot.</s>\\n<|user|>\\n<image>\\nWhat?</s>\\n<|assistant|>\\n"
assert "".join(each.text for each in segments) == before + "A cat.</s>\\n"
assert [each.text for each in segments if each.learn] == ["A cat.</s>"]
"""


def test_a_recipe_with_all_of_them_trains(changed: Path, tmp_path: Path) -> None:
    file = write_recipe(values(tmp_path), tmp_path / "recipe.yaml")
    done = run_process(
        [sys.executable, "-c", INSIDE, str(file)], cwd=changed, env={"PYTHONPATH": str(changed)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
