"""Every kind of recipe in the gallery trains, in tiny: its settings, random models of its architectures."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from llava_recipes.plan.families import LANGUAGE_MODELS, VISION_TOWERS
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import load_recipe, load_source
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.runner.run_folder import stage_plan, write_results
from llava_recipes.train.stage import train_stage
from tests.chat_tokenizers import save_tokenizer
from tests.plan.test_gallery import RECIPES, golden_name
from tests.tiny import FIXTURES, read_metrics
from tests.train.in_process import like_a_worker

WIDTH = 64
"""Layers of few bits on a CPU want a width that 64 divides."""
NUM_STEPS = 2
"""The first step has a learning rate of 0."""
SIZES: dict[str, Any] = {
    "vocab_size": 1100,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
CLIP_PX = 336
"""What the grids of the gallery are multiples of."""
NEEDLESS = ("num_train_epochs", "save_steps", "save_total_limit", "bf16", "fp16", "tf32", "global_batch_size")
SMALL: dict[str, Any] = {
    "max_steps": NUM_STEPS,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "save_strategy": "no",
    "report_to": "none",
}


def kind(file: Path) -> str:
    """What a recipe has of its own: architectures, templates, images, what trains and how."""
    model, *rest = _kinds(load_recipe(str(file)).recipe.model_dump(mode="json"))
    return " | ".join([model, *rest])


def _kinds(values: dict[str, Any]) -> list[str]:
    model = values["model"]
    language = _language(model)
    config = LANGUAGE_MODELS[language["source"]]
    words = [
        config["model_type"],
        "tied" if config["tie_word_embeddings"] else "",
        f"{(language.get('quantization') or {}).get('bits', '')}",
        VISION_TOWERS[model["vision_tower"]["source"]]["model_type"],
        model["projector"]["type"],
    ]
    stages = []
    for stage in values["stages"]:
        data = stage["data"]
        trained = "lora" if stage["lora"] else "full"
        features = [data["template"], data["image_aspect_ratio"], data["group_by"], trained]
        features += [data["mm_patch_merge_type"] or ""]
        stages.append(" ".join([*features, *stage["trainable"], *map(str, stage["param_groups"])]))
    return [" ".join(str(word) for word in words if word), *stages]


def _language(model: dict[str, Any]) -> dict[str, Any]:
    found = model["language_model"]
    return {"source": found} if isinstance(found, str) else found


FIRST_OF_ITS_KIND = {kind(file): file for file in reversed(RECIPES) if file.stem != "demo"}


def tiny_tokenizer(folder: Path, templates: set[str]) -> Path:
    """Llama's own tokenizer, or one that has the special tokens of the recipe's templates."""
    if "llama_3" in templates:
        return save_tokenizer("llama_3", folder)
    return save_tokenizer("qwen", folder) if "qwen" in templates else FIXTURES / "tiny_vicuna"


def tiny(file: Path, folder: Path) -> Plan:
    """The plan of a recipe with models, data and batches of a size for a test; all else as it stands."""
    recipe = load_recipe(str(file)).recipe
    values: dict[str, Any] = json.loads(recipe.model_dump_json(exclude_unset=True))
    values.pop("vars", None)
    values.pop("extends", None)
    model = values["model"]
    tokenizer = tiny_tokenizer(folder / "tokenizer", {str(stage.data.template) for stage in recipe.stages})
    language = _language(model)
    original = LANGUAGE_MODELS[language["source"]]
    config = {**SIZES, **{key: original[key] for key in ("model_type", "tie_word_embeddings")}}
    if "head_dim" in original:
        config["head_dim"] = 32
    model["language_model"] = {"config": config, "tokenizer": str(tokenizer)}
    if "quantization" in language:
        source = pretrained(folder / "language", config, tokenizer)
        model["language_model"] = {"source": str(source), "quantization": language["quantization"]}
    tower = model["vision_tower"]
    tower["config"] = {**TOWER, "model_type": VISION_TOWERS[tower.pop("source")]["model_type"]}
    model["projector"].pop("init_from", None)
    for stage in values["stages"]:
        stage["train"] = {
            **{key: value for key, value in stage["train"].items() if key not in NEEDLESS},
            **SMALL,
        }
        records = "stage1.json" if stage["data"]["template"] == "plain" else "stage2_clean.json"
        stage["data"]["sources"] = [
            {"annotations": str(FIXTURES / records), "images": str(FIXTURES / "images")}
        ]
        stage["data"]["max_length"] = 1024
        if "image_grid_pinpoints" in stage["data"]:
            grids = stage["data"]["image_grid_pinpoints"]
            stage["data"]["image_grid_pinpoints"] = [
                [side * TOWER["image_size"] // CLIP_PX for side in grid] for grid in grids
            ]
        stage["deepspeed"] = "none"
        stage["output_dir"] = str(folder / stage["name"])
    return plan_recipe(load_source(yaml.safe_dump(values), "tiny.yaml"), world_size=1)


def pretrained(folder: Path, config: dict[str, Any], tokenizer: Path) -> Path:
    """A model folder, for what cannot start from an inline config."""
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
    for token_file in tokenizer.glob("*token*"):
        shutil.copy(token_file, folder)
    return folder


def test_every_recipe_has_a_kind() -> None:
    assert len(FIRST_OF_ITS_KIND) >= 10
    kinds = {kind(file) for file in RECIPES if file.stem != "demo"}
    assert kinds == FIRST_OF_ITS_KIND.keys()


@pytest.mark.parametrize("file", FIRST_OF_ITS_KIND.values(), ids=golden_name)
def test_a_recipe_trains_all_of_its_stages(file: Path, tmp_path: Path) -> None:
    if "qlora" in file.stem:
        pytest.importorskip("bitsandbytes")
    plan = tiny(file, tmp_path)
    for index, stage in enumerate(plan.stages):
        folder = Path(stage.output_dir)
        folder.mkdir()
        with like_a_worker():
            trained = train_stage(plan, index, output_dir=folder, resume_from=None)
        lines = read_metrics(folder)
        assert len(lines) == NUM_STEPS
        assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
        roots = {name.split(".", 1)[0] for name in trained.state}
        assert stage.trainable_modules is not None
        assert roots == {module.split(".", 1)[0] for module in stage.trainable_modules}
        adapters = {name: tensor for name, tensor in trained.state.items() if ".lora_B" in name}
        assert bool(adapters) == (stage.lora is not None)
        assert all(tensor.abs().max() > 0 for tensor in adapters.values())
        write_results(stage_plan(plan, index), trained, folder)
