"""Runs that are trained in this process, a few steps each, and left as the command leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from llava_recipes.model.assemble import Assembled
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import LoadedRecipe, load_recipe
from llava_recipes.recipe.writer import write_resolved
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.runner.run_folder import (
    describe_environment,
    stage_plan,
    write_done,
    write_opening,
    write_results,
)
from llava_recipes.train.stage import train_stage
from tests.tiny import FIXTURES, stage1_values, write_recipe
from tests.train.in_process import like_a_worker


def run_values(folder: Path, **stage: Any) -> dict[str, Any]:
    """A recipe of one short stage, at a rate that moves every weight; keyword arguments go into the stage."""
    values = stage1_values(folder, max_steps=2, warmup_ratio=0.0, learning_rate=1e-2)
    del values["stages"][0]["train"]["num_train_epochs"]
    values["stages"][0].update(stage)
    return values


def conversations() -> dict[str, Any]:
    """`data` of a Stage 2."""
    sources = [{"annotations": str(FIXTURES / "stage2_clean.json"), "images": str(FIXTURES / "images")}]
    return {"template": "v1", "sources": sources, "image_aspect_ratio": "pad", "max_length": 2048}


def finish(values: dict[str, Any], file: Path) -> None:
    """Train every stage of a recipe, written to `file`, in this process."""
    loaded = load_recipe(str(write_recipe(values, file)))
    plan = plan_recipe(loaded, world_size=1)
    with like_a_worker():
        _train(loaded, plan)


def _train(loaded: LoadedRecipe, plan: Plan) -> None:
    for index, stage in enumerate(plan.stages):
        folder, own = Path(stage.output_dir), stage_plan(plan, index)
        write_opening(
            folder,
            plan=own,
            recipe_yaml=write_resolved(loaded.recipe),
            environment=describe_environment(["llava-recipe", "run"]),
        )
        trained = train_stage(own, 0, output_dir=folder, resume_from=None)
        write_results(own, trained, folder)
        write_done(
            folder, num_steps=trained.num_steps, last_loss=trained.last_loss, starts_from=stage.starts_from
        )


@torch.no_grad()
def logits_of(assembled: Assembled) -> Tensor:
    """float32[1, T, V]: what a model says to one picture and a few tokens."""
    model, num_image_tokens = assembled.model, assembled.num_image_tokens
    return logits_with(model, num_image_tokens)


def logits_with(model: LlavaForConditionalGeneration, num_image_tokens: int) -> Tensor:
    ids = torch.tensor([[1, 40, *[0] * num_image_tokens, 77, 301, 5, 12]])
    is_image = torch.zeros_like(ids, dtype=torch.bool)
    is_image[:, 2 : 2 + num_image_tokens] = True
    image_px = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, image_px, image_px, generator=torch.Generator().manual_seed(7))
    logits: Tensor = model(input_ids=ids, is_image=is_image, pixel_values=pixels).logits
    return logits.float()
