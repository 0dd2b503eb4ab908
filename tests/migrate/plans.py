"""Plans of recipes and of migrated scripts, for tests that compare the two."""

from __future__ import annotations

from pathlib import Path

from llava_recipes.migrate.combine import Migration
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


def plan_of_text(text: str) -> Plan:
    return plan_recipe(load_source(text, "migrated.yaml"), world_size=WORLD_SIZE)


def plan_of_recipe(file: Path) -> Plan:
    return plan_recipe(load_recipe(str(file)), world_size=WORLD_SIZE)
