"""Ask on a terminal for what the command line of `llava-recipe new` left open."""

from __future__ import annotations

import os
from dataclasses import replace

from rich.prompt import Prompt

from llava_recipes.authoring.new_recipe import TEMPLATES, Wishes, template_text
from llava_recipes.recipe.writer import value_text
from llava_recipes.screen import cell, console, say


class _Prompt(Prompt):
    """Without markup in its words, which our console shows as it is written."""

    illegal_choice_message = "Please select one of the available options"


def ask_template() -> str:
    """Which template, by name."""
    screen = console()
    for name, purpose in TEMPLATES.items():
        screen.print(cell(f"  {name:<10}", style="bold"), cell(purpose))
    return _Prompt.ask("template", choices=list(TEMPLATES), default="pretrain", console=screen)


def ask_wishes(given: Wishes) -> Wishes:
    """The wishes with answers in place of what was not given; an empty answer leaves the template's value."""
    text = template_text(given.template)
    wishes = given
    if given.language_model is None:
        default = _default(text, "language_model")
        wishes = replace(wishes, language_model=_ask("language model (hub id or folder)", default))
    if given.vision_tower is None:
        default = _default(text, "vision_tower")
        wishes = replace(wishes, vision_tower=_ask("vision tower (hub id or folder)", default))
    if not given.data:
        data = _ask("data file (JSON or JSONL; empty: the template's)", "")
        wishes = replace(wishes, data=(data,) if data else ())
        if data and not given.images:
            images = _ask("its image folder (empty: looked for)", "")
            wishes = replace(wishes, images=(images,) if images else ())
    return wishes


def ask_output(default: str) -> str:
    """Under which name to write the recipe."""
    while True:
        answer = Prompt.ask("write to", default=default, console=console())
        if not os.path.exists(answer):
            return answer
        say(f"{answer} is there already")


def _ask(question: str, default: str) -> str | None:
    answer = Prompt.ask(question, default=default, show_default=bool(default), console=console()).strip()
    # An answer that changes nothing leaves the template's line, comment included, as it is.
    return None if answer in ("", default) else answer


def _default(text: str, part: str) -> str:
    """What a template has for a model; empty where it is built from a config."""
    path = ("model", part)
    return value_text(text, (*path, "source")) or value_text(text, path) or ""
