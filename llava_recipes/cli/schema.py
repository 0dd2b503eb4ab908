"""`llava-recipe schema`: the JSON Schema of recipes, their bases or plans, for editors and programs."""

from __future__ import annotations

import argparse
import json

from llava_recipes.recipe.json_schema import base_schema, recipe_schema, value_schema
from llava_recipes.screen import say_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kind",
        nargs="?",
        choices=("recipe", "base", "plan"),
        default="recipe",
        help="kind of file (default: recipe)",
    )


def run(arguments: argparse.Namespace) -> int:
    say_json(schema_text(arguments.kind).rstrip("\n"))
    return 0


def schema_text(kind: str) -> str:
    """The JSON Schema of a kind of file, as it is committed in `schemas/`."""
    if kind == "recipe":
        schema = recipe_schema()
    elif kind == "base":
        schema = base_schema()
    else:
        from llava_recipes.estimate.estimate import PlanReport

        schema = value_schema(PlanReport, title="llava_recipes plan")
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
