"""`llava-recipe completion SHELL`: the script by which a shell completes commands at each tab.

argcomplete's script runs the `llava-recipe` of the PATH, whatever path the line starts with; `offer` answers.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llava_recipes.screen import say_document

if TYPE_CHECKING:
    from llava_recipes.recipe.scalars import Value

EPILOG = """\
Redirect the script to a file that the shell reads, then start a new shell:

  bash  ~/.local/share/bash-completion/completions/llava-recipe
  zsh   _llava-recipe in a folder of $fpath
  fish  ~/.config/fish/completions/llava-recipe.fish"""

PROGRAM = "llava-recipe"
_RECIPE_DESTS = ("a", "b", "file", "files", "recipe")

Completer = Callable[..., Iterable[str]]
"""Called with `prefix` and the arguments parsed so far, `parsed_args`, among others."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="shell to complete in")


def run(arguments: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    script = shellcode(
        [PROGRAM], shell=arguments.shell, complete_arguments=["-o", "nospace"], argcomplete_script=PROGRAM
    )
    say_document(script)
    return 0


def offer(purposes: Mapping[str, str], module_of: Callable[[str], str]) -> None:
    """Answer a tab of the shell and end the process. Imports nothing heavy and runs no command.

    purposes   what each command does, by its name
    module_of  the module of a command
    """
    from argcomplete import autocomplete

    parser = argparse.ArgumentParser(PROGRAM)
    before_cursor = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    words = f"{before_cursor}|".split()[1:-1]
    if not words:
        parser.add_argument("--version", action="version", help="print the version", version="")
        commands = parser.add_subparsers()
        for name, purpose in purposes.items():
            commands.add_parser(name, help=purpose)
    elif words[0] in purposes:
        importlib.import_module(module_of(words[0])).add_arguments(parser)
        for action in parser._actions:
            action.completer = _completer(words[0], action)  # type: ignore[attr-defined]
        # The words of the command start one further to the right.
        os.environ["_ARGCOMPLETE"] = "2"
    autocomplete(parser, always_complete_options="" if words else "long")


def _completer(command: str, action: argparse.Action) -> Completer | None:
    """What offers the values of an action; None leaves them to argcomplete, which knows `choices`."""
    if action.choices is not None:
        return None
    if action.dest == "set":
        return _assignments
    if action.dest == "accept":
        return _acceptable
    if action.dest in ("stage", "from_stage"):
        return _stage_names
    if action.metavar in ("RUN", "CHECKPOINT", "DIR"):
        return _folders
    if action.metavar == "RECIPE" or (action.dest in _RECIPE_DESTS and command != "migrate"):
        return _recipes
    if action.metavar == "FILE" or action.type is Path:
        return _files
    if command in ("copy", "list"):
        return _gallery_names
    return _keys if command == "explain" else _nothing


def _nothing(**_: object) -> Iterable[str]:
    return ()


def _files(*, prefix: str, endings: tuple[str, ...] = ("",), **_: object) -> Iterator[str]:
    """Files with one of the endings, and every folder, which may contain them."""
    folder = prefix[: prefix.rfind("/") + 1]
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder) or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".") and not prefix.removeprefix(folder).startswith("."):
            continue
        if entry.is_dir():
            yield f"{folder}{entry.name}/"
        elif entry.name.endswith(endings):
            yield folder + entry.name


def _folders(*, prefix: str, **_: object) -> Iterator[str]:
    return _files(prefix=prefix, endings=())


def _recipes(*, prefix: str, **_: object) -> Iterator[str]:
    return _files(prefix=prefix, endings=(".yaml", ".yml"))


def _gallery_names(**_: object) -> Iterator[str]:
    from llava_recipes.authoring.gallery import gallery

    return (entry.name for entry in gallery())


def _keys(**_: object) -> Iterator[str]:
    return (path.replace("[]", "") for path in _paths())


def _stage_names(*, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    stages = _values(parsed_args).get("stages")
    named = (
        [stage.get("name") for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
    )
    return [name for name in named if isinstance(name, str)]


def _assignments(*, parsed_args: argparse.Namespace, **_: object) -> Iterator[str]:
    """`KEY=` for every key outside lists, and for those of each stage of the recipe on the line."""
    variables = _values(parsed_args).get("vars")
    yield from (f"vars.{name}=" for name in (variables if isinstance(variables, dict) else ()))
    stages = _stage_names(parsed_args=parsed_args)
    for path in _paths():
        in_stage = path.removeprefix("stages[].")
        if "[]" in in_stage:
            continue
        yield from [f"{path}="] if in_stage == path else (f"stages.{stage}.{in_stage}=" for stage in stages)


def _acceptable(**_: object) -> Iterator[str]:
    """Keys of the model and of a stage whose change `--accept` confirms."""
    from llava_recipes.runner.identity import RULES

    yield from sorted({key for rule in RULES.values() if rule.kind == "learned" for key in rule.keys})


def _paths() -> Iterator[str]:
    from llava_recipes.recipe.keys import all_keys

    return (key.path for key in all_keys())


def _values(parsed_args: argparse.Namespace) -> dict[str, Value]:
    """The recipe on the line with its parents; empty if it can't be read."""
    from llava_recipes.errors import RecipeError
    from llava_recipes.recipe.extends import extend
    from llava_recipes.recipe.source import parse_source, read_file

    given = [getattr(parsed_args, dest, None) for dest in _RECIPE_DESTS]
    file = next((name[0] if isinstance(name, list) else name for name in given if name), "")
    try:
        root = extend(parse_source(read_file(file), file)).root
    except RecipeError:
        return {}
    return root if isinstance(root, dict) else {}
