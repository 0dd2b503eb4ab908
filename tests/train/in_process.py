"""Train stages in this process, one after another: many small runs without as many starts of Python."""

from __future__ import annotations

import gc
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_recipes.model.assemble import assemble
from llava_recipes.model.weight_names import canonical_parameters
from llava_recipes.model.weights import load_trained
from llava_recipes.recipe.load import load_source
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.runner.run_folder import stage_plan, write_done, write_opening, write_results
from llava_recipes.train.stage import train_stage
from tests.tiny import yaml_text


@contextmanager
def like_a_worker() -> Iterator[None]:
    """Train here as in a process of its own, which ends with its run: what it would take along is undone.

    Signal handlers come back, and the log that is left open is closed without a warning.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            yield
            gc.collect()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def train_all(values: dict[str, Any]) -> list[dict[str, Tensor]]:
    """Train every stage of a recipe, each into its folder; gives every weight after each of them."""
    after = []
    loaded = load_source(yaml_text(values), "recipe.yaml")
    plan = plan_recipe(loaded, world_size=1)
    with like_a_worker():
        for index, stage in enumerate(plan.stages):
            folder = Path(stage.output_dir)
            own = stage_plan(plan, index)
            write_opening(folder, plan=own, recipe_yaml="", environment={})
            trained = train_stage(own, 0, output_dir=folder, resume_from=None)
            write_results(own, trained, folder)
            parameters = canonical_parameters(trained.assembled.model)
            after.append({name: parameter.detach().clone() for name, parameter in parameters.items()})
            write_done(
                folder,
                num_steps=trained.num_steps,
                last_loss=trained.last_loss,
                starts_from=stage.starts_from,
            )
            del trained
    return after


def weights_of(values: dict[str, Any], *folders: Path) -> dict[str, Tensor]:
    """Every weight of a recipe's model, by canonical name, with those of finished runs laid over it."""
    plan = plan_recipe(load_source(yaml_text(values), "recipe.yaml"), world_size=1)
    model = assemble(plan.model, dtype=torch.float32).model
    for folder in folders:
        load_trained(model, folder)
    return {name: parameter.detach().clone() for name, parameter in canonical_parameters(model).items()}
