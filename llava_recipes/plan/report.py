"""A plan and its estimate as one value, for other programs."""

from __future__ import annotations

from pydantic import Field

from llava_recipes.plan.estimate import Estimate
from llava_recipes.plan.types import Plan


class PlanReport(Plan):
    """A plan with its estimate: what `llava-recipe plan --json` prints."""

    estimate: Estimate | None = Field(
        None, description="None where a config is not at hand, and in the plan of a run folder."
    )
