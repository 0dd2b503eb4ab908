"""When a stage's validation loss is measured, in words."""

from __future__ import annotations

from llava_recipes.plan.types import StagePlan


def when_measured(stage: StagePlan) -> str:
    """`every 500 steps and at the end`."""
    arguments = stage.train.training_arguments
    every = {"steps": f"every {arguments.get('eval_steps'):,} steps and ", "epoch": "after every epoch and "}
    return f"{every.get(str(arguments['eval_strategy']), '')}at the end"
