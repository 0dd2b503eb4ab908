"""The command line: find the command's own file, run it, turn what happened into an exit code."""

from __future__ import annotations

import argparse
import gc
import importlib
import keyword
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Protocol, cast

from llava_recipes import __version__
from llava_recipes.interpreter import leave_current_folder

COMMANDS = {
    "run": "train what a recipe says",
    "validate": "check recipes without loading anything heavy",
    "plan": "show what a run would do and take: modules, steps, memory, hours, disk",
    "show": "print a recipe with its parents, variables and defaults written out",
    "diff": "compare what two recipes mean: their plans, not their text",
    "preview": "show samples as tokens, and which of them are learned",
    "schema": "print the JSON Schema of recipes or plans",
    "chat": "ask a trained model about pictures, once or in a conversation",
    "generate": "answer a file of questions in batches",
    "eval": "measure a trained model on a file, or on benchmarks",
    "merge": "put a LoRA run's adapters into its weights",
    "export": "write a trained model in a layout that others read",
    "import": "read a checkpoint of the original or of transformers back",
    "demo": "train a tiny model on drawn pictures, start to finish",
    "new": "write a recipe from a template, filled in from your data",
    "list": "show the gallery of recipes, with hardware, time and loss",
    "copy": "copy a recipe of the gallery into a file of your own",
    "explain": "explain a key: type, default, meaning, source, example",
    "migrate": "turn another program's training script or config into a recipe",
    "export-script": "write a recipe as the original's shell command",
    "completion": "print completions for bash, zsh or fish",
}

WITHOUT_TORCH = frozenset(
    {
        *("validate", "plan", "show", "diff", "schema", "new", "list", "copy", "explain"),
        *("migrate", "export-script", "completion"),
    }
)
"""Commands that must stay quick, and so don't begin with a look at every library's version."""

USER_ERROR, USAGE_ERROR, OUR_BUG, INTERRUPTED = 1, 2, 3, 130


class Command(Protocol):
    """What a command's file offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int: ...


def _overview() -> str:
    rows = "\n".join(f"  {name:<13} {purpose}" for name, purpose in COMMANDS.items())
    return f"usage: llava-recipe COMMAND …\n\n{rows}\n\n`llava-recipe COMMAND --help` explains a command."


def module_of(command: str) -> str:
    """The module of a command; one whose name is a word of Python's has a stroke behind it."""
    name = command.replace("-", "_")
    return f"llava_recipes.cli.{name}_" if keyword.iskeyword(name) else f"llava_recipes.cli.{name}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 the user's to fix, 2 usage, 3 our bug.

    Without `argv` the process is the command's own, and is set up for it; a caller's stays as it is.
    """
    if argv is None:
        leave_current_folder()
        _start_fast()
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if words else USAGE_ERROR
    if words[0] == "--version":
        print(f"llava-recipe {__version__}")
        return 0
    if words[0] not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        advice = f"did you mean `{near[0]}`?" if near else f"commands: {', '.join(COMMANDS)}"
        print(f"llava-recipe: unknown command {words[0]!r}; {advice}", file=sys.stderr)
        return USAGE_ERROR
    with _tidy_when_told_to_end():
        return _run(words[0], words[1:])


def _start_fast() -> None:
    # Imports make many objects and hardly any garbage.
    gc.set_threshold(50_000, 20, 20)
    # Pydantic would read the metadata of every installed package, to look for plugins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


@contextmanager
def _tidy_when_told_to_end() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that nothing half-written stays behind."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(name: str, words: Sequence[str]) -> int:
    from llava_recipes.recipe.errors import RecipeError

    try:
        command = cast(Command, importlib.import_module(module_of(name)))
        parser = argparse.ArgumentParser(prog=f"llava-recipe {name}", description=COMMANDS[name])
        command.add_arguments(parser)
        # Options may stand between what has no name: `chat RUN --image FILE PROMPT`.
        arguments = parser.parse_intermixed_args(words)
        if name not in WITHOUT_TORCH:
            from llava_recipes.versions import check_versions

            check_versions()
        return command.run(arguments)
    except RecipeError as error:
        from llava_recipes.recipe.render import render_problems

        print(render_problems(error.problems), file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        import tempfile
        import traceback

        from llava_recipes.versions import version_problem

        with tempfile.NamedTemporaryFile(
            "w", prefix="llava-recipe-", suffix=".log", delete=False, encoding="utf-8"
        ) as log:
            traceback.print_exc(file=log)
        outdated = version_problem()
        if outdated is not None:
            print(f"{outdated} (what failed is in {log.name})", file=sys.stderr)
            return USER_ERROR
        print(
            f"a bug in llava-recipe: {type(error).__name__}: {error}\nthe traceback is in {log.name}",
            file=sys.stderr,
        )
        return OUR_BUG
