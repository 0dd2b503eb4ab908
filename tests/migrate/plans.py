"""Plans of recipes and of migrated scripts, for tests that compare the two."""

from __future__ import annotations

from pathlib import Path

from llava_recipes.migrate.draft import Migration
from llava_recipes.migrate.migration import migrate
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import load_recipe, load_source
from llava_recipes.runner.facts import plan_recipe

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "scripts"
WORLD_SIZE = 8


def migrated(name: str, *positional: str) -> Migration:
    """A test script as a recipe."""
    file = SCRIPTS / name
    return migrate(file.read_text(encoding="utf-8"), name, positional=positional)


def plan_of_text(text: str, world_size: int = WORLD_SIZE) -> Plan:
    return _without_notes_on_the_batch(plan_recipe(load_source(text, "migrated.yaml"), world_size=world_size))


def plan_of_recipe(name: str, world_size: int = WORLD_SIZE) -> Plan:
    """The plan of a shipped recipe, by its name."""
    recipe = load_recipe(str(ROOT / f"recipes/{name}.yaml"))
    return _without_notes_on_the_batch(plan_recipe(recipe, world_size=world_size))


def _without_notes_on_the_batch(plan: Plan) -> Plan:
    """A script sets the batch of a device, a shipped recipe that of a step: here they are the same.

    No script says what loss it expects.
    """
    words = ("global batch", "depends on the number of processes")
    notes = tuple(note for note in plan.notes if not any(word in note for word in words))
    stages = tuple(stage.model_copy(update={"expect": None}) for stage in plan.stages)
    return plan.model_copy(update={"notes": notes, "stages": stages})
