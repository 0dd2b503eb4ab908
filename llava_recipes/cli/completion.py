"""`llava-recipe completion SHELL`: a script that completes commands, options, recipes, templates and keys."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llava_recipes.screen import say_document

if TYPE_CHECKING:
    from llava_recipes.authoring.completion import Command, Value

HOW_TO = """\
bash:  llava-recipe completion bash > ~/.local/share/bash-completion/completions/llava-recipe
zsh:   llava-recipe completion zsh > a file _llava-recipe in a folder of $fpath
fish:  llava-recipe completion fish > ~/.config/fish/completions/llava-recipe.fish"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from llava_recipes.authoring.completion import SHELLS

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HOW_TO
    parser.add_argument("shell", choices=SHELLS, help="for which shell")


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.authoring.completion import script
    from llava_recipes.cli.main import COMMANDS

    say_document(script(arguments.shell, [_describe(name, purpose) for name, purpose in COMMANDS.items()]))
    return 0


def _describe(name: str, purpose: str) -> Command:
    """What a command takes, as its own parser has it."""
    import importlib

    from llava_recipes.authoring.completion import Command, Option, Takes, Value
    from llava_recipes.cli.main import module_of

    parser = argparse.ArgumentParser()
    importlib.import_module(module_of(name)).add_arguments(parser)
    options, operand = [], Value(Takes.NOTHING)
    for action in parser._actions:
        if action.option_strings:
            text = (action.help or "") % {**vars(action), "prog": ""}
            options.append(Option(tuple(action.option_strings), text, _option_value(action)))
        elif action.metavar != "PROMPT":
            operand = _operand(name, action)
    return Command(name, purpose, tuple(options), operand)


def _option_value(action: argparse.Action) -> Value:
    from llava_recipes.authoring.completion import Takes, Value

    if action.nargs == 0:
        return Value(Takes.NOTHING)
    if action.choices is not None:
        return Value(Takes.WORDS, tuple(map(str, action.choices)))
    by_metavar: Mapping[object, Takes] = {
        "FILE": Takes.FILES,
        "RECIPE": Takes.RECIPES,
        "DIR": Takes.FOLDERS,
    }
    if action.dest == "recipe":
        return Value(Takes.RECIPES)
    return Value(Takes.FILES if action.type is Path else by_metavar.get(action.metavar, Takes.ANYTHING))


def _operand(command: str, action: argparse.Action) -> Value:
    from llava_recipes.authoring.completion import Takes, Value

    if action.choices is not None:
        return Value(Takes.WORDS, tuple(map(str, action.choices)))
    if action.metavar in ("RUN", "CHECKPOINT"):
        return Value(Takes.FOLDERS)
    if command in ("copy", "list"):
        from llava_recipes.authoring.gallery import gallery

        return Value(Takes.WORDS, tuple(entry.name for entry in gallery()))
    if command == "explain":
        from llava_recipes.recipe.language import all_keys

        return Value(Takes.WORDS, tuple(".".join(key.names) for key in all_keys()))
    return Value(Takes.FILES if command == "migrate" else Takes.RECIPES)
