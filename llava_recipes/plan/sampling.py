"""What a stage asks the model while it trains: as a plan, and in words."""

from __future__ import annotations

from llava_recipes.plan.types import SamplingPlan
from llava_recipes.recipe.schema import Samples, Stage

NUM_RECORDS = 4


def plan_sampling(stage: Stage) -> SamplingPlan | None:
    """The plan of `sample_every`, or None where nothing is asked."""
    if stage.sample_every is None:
        return None
    samples = stage.samples or Samples()
    return SamplingPlan(
        every=stage.sample_every,
        num_records=None if samples.images else samples.num or NUM_RECORDS,
        images=samples.images or (),
        prompt=samples.prompt,
        max_new_tokens=samples.max_new_tokens,
    )


def describe_sampling(sampling: SamplingPlan) -> str:
    """How much is asked, and when."""
    number = len(sampling.images) or sampling.num_records or 0
    pictures = f"{number} {'picture' if number == 1 else 'pictures'}"
    return f"about {pictures} every {sampling.every:,} steps and after the last"
