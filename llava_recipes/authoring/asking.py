"""Ask on a terminal for values that the command line of `llava-recipe new` doesn't give."""

from __future__ import annotations

import os
from dataclasses import replace

from rich.prompt import Prompt

from llava_recipes.authoring.new_recipe import DEFAULT_TEMPLATE, TEMPLATES, Wishes, template_text
from llava_recipes.recipe.writer import value_text
from llava_recipes.screen import cell, console, say


class _Prompt(Prompt):
    """Has no markup in its message, which our console would show as it is written."""

    illegal_choice_message = "Please select one of the available options"


def ask_template() -> str:
    """Ask for the name of a template."""
    screen = console()
    for name, purpose in TEMPLATES.items():
        screen.print(cell(f"  {name:<10}", style="bold"), cell(purpose))
    return _Prompt.ask("template", choices=list(TEMPLATES), default=DEFAULT_TEMPLATE, console=screen)


def ask_wishes(given: Wishes) -> Wishes:
    """Ask for every wish that is missing; an empty answer leaves the template's value."""
    text = template_text(given.template)
    wishes = given
    if given.language_model is None:
        default = _default(text, "language_model")
        wishes = replace(wishes, language_model=_ask("language model (hub id or folder)", default))
    if given.vision_tower is None:
        default = _default(text, "vision_tower")
        wishes = replace(wishes, vision_tower=_ask("vision tower (hub id or folder)", default))
    if not given.data:
        data = _ask("data file (JSON or JSONL; empty for the template's)", "")
        wishes = replace(wishes, data=(data,) if data else ())
        if data and not given.images:
            images = _ask("its image folder (empty to search for it)", "")
            wishes = replace(wishes, images=(images,) if images else ())
    return wishes


def ask_output(default: str) -> str:
    """Ask for the file to write."""
    while True:
        answer = Prompt.ask("write to", default=default, console=console())
        if not os.path.exists(answer):
            return answer
        say(f"{answer} already exists")


def _ask(question: str, default: str) -> str | None:
    answer = Prompt.ask(question, default=default, show_default=bool(default), console=console()).strip()
    # An answer that changes nothing leaves the template's line, comment included, as it is.
    return None if answer in ("", default) else answer


def _default(text: str, part: str) -> str:
    """The template's source of a model; empty if it is built from a config."""
    path = ("model", part)
    return value_text(text, (*path, "source")) or value_text(text, path) or ""
