"""The command line: find the command's module, run it, turn the outcome into an exit code."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import keyword
import math
import os
import re
import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

from llava_recipes import __version__
from llava_recipes.exit_codes import INTERRUPTED, OUR_BUG, USAGE_ERROR, USER_ERROR
from llava_recipes.interpreter import is_own_process, leave_current_folder
from llava_recipes.screen import (
    OutputLost,
    drop_rest,
    flush_streams,
    guard_streams,
    say,
    say_lines,
    shown,
    write_log,
)
from llava_recipes.stop_signals import wanted_signals

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

COMMANDS = {
    "run": "train the stages of a recipe",
    "slurm": "write a Slurm job that trains a recipe and continues when it is cut",
    "validate": "check recipes, without loading anything heavy",
    "plan": "show what a run does and costs: modules, steps, memory, hours, disk",
    "show": "print a recipe with its parents, variables and defaults written out",
    "diff": "compare two recipes by their plans, not by their text",
    "preview": "show samples as tokens, and which of them are learned",
    "schema": "print the JSON Schema of recipes, their bases or plans",
    "chat": "ask a trained model about images, once or in a conversation",
    "generate": "answer a file of questions in batches",
    "eval": "measure a trained model on a file or on benchmarks",
    "merge": "merge the adapters of a LoRA run into its weights",
    "export": "write a trained model for transformers, vLLM, llama.cpp or LLaVA",
    "import": "convert a checkpoint of LLaVA or transformers for use in recipes",
    "demo": "train a tiny model on drawn images, start to finish",
    "new": "write a recipe from a template, filled in from your data",
    "list": "list the recipes of the gallery, with their hardware and time",
    "copy": "copy a recipe of the gallery to a file of your own",
    "explain": "explain a key: type, default, meaning, source, example",
    "migrate": "turn another program's training script or config into a recipe",
    "export-script": "write a recipe as a shell command of the original LLaVA",
    "completion": "print the completion script for bash, zsh or fish",
}

WITHOUT_TORCH = frozenset(
    {
        *("validate", "plan", "show", "diff", "schema", "new", "list", "copy", "explain"),
        *("migrate", "export-script", "completion", "slurm"),
    }
)
"""Commands that must stay quick, and so don't check the version of every library first."""

_AT_ONCE_S = 1.0
"""An error that follows Ctrl-C so soon is taken for what it led to."""


class CommandModule(Protocol):
    """What the module of a command defines."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int: ...


def _overview() -> str:
    rows = "\n".join(f"  {name:<13} {purpose}" for name, purpose in COMMANDS.items())
    return f"usage: llava-recipe COMMAND …\n\n{rows}\n\n`llava-recipe COMMAND --help` explains one of them."


def module_of(command: str) -> str:
    """The module of a command; its name ends in `_` where it is a keyword of Python."""
    name = command.replace("-", "_")
    return f"llava_recipes.cli.{name}_" if keyword.iskeyword(name) else f"llava_recipes.cli.{name}"


class Paragraphs(argparse.HelpFormatter):
    """Help whose every line is wrapped by itself; after `  label   ` a row stays in its column."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = []
        for line in text.splitlines():
            label = re.match(r"(?:  \S.*?  +)?", line)
            hang = " " * (label.end() if label else 0)
            lines += textwrap.wrap(line, width, subsequent_indent=hang, break_on_hyphens=False) or [""]
        return "\n".join(lines)


class Parser(argparse.ArgumentParser):
    """A parser whose messages, which quote the command line, are printed as all other text is."""

    # Newer versions of Python color their help with characters that `say_lines` would escape.
    color = False

    def error(self, message: str) -> NoReturn:
        super().error(shown(message))

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        say_lines(message, to_stderr=file is not sys.stdout, end="")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, one of exit_codes.py or 0.

    Without `argv` it reads the process's own arguments and sets the process up; with it, the process is the
    caller's and stays as it is.
    """
    if argv is not None:
        return _obey(list(argv))
    leave_current_folder()
    _start_fast()
    if "_ARGCOMPLETE" in os.environ:
        from llava_recipes.cli.completion import offer

        offer(COMMANDS, module_of)
    guard_streams()
    try:
        code = _obey(sys.argv[1:])
        flush_streams()
        return code
    except OutputLost as lost:
        return _without_output(lost)


def _without_output(lost: OutputLost) -> int:
    """End when nothing can be printed any more: quietly when the reader has left, as after `| head`."""
    drop_rest(lost.stream)
    if lost.reader_left:
        return 0
    with contextlib.suppress(OutputLost):
        say(f"llava-recipe: the output cannot be written: {lost}", to_stderr=True)
        return USER_ERROR
    drop_rest(sys.stderr)
    return USER_ERROR


def _obey(words: Sequence[str]) -> int:
    if words and words[0].startswith(("--local_rank=", "--local-rank=")) and "LOCAL_RANK" in os.environ:
        # The deepspeed launcher repeats the variable before the command.
        words = words[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        say_lines(_overview())
        return 0 if words else USAGE_ERROR
    if words[0] == "--version":
        say(f"llava-recipe {__version__}")
        return 0
    if words[0] not in COMMANDS:
        from llava_recipes.recipe.renames import did_you_mean

        advice = did_you_mean(words[0], COMMANDS) or f"commands: {', '.join(COMMANDS)}"
        say(f"llava-recipe: unknown command {words[0]!r}; {advice}", to_stderr=True)
        return USAGE_ERROR
    return _run(words[0], words[1:])


def _start_fast() -> None:
    # Imports make many objects and hardly any garbage.
    gc.set_threshold(50_000, 20, 20)
    # Pydantic would read the metadata of every installed package to find plugins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


@contextlib.contextmanager
def _interrupted_by(numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Let signals end a command as Ctrl-C does, so that nothing half-written stays behind."""
    asked_s: dict[int, float] = {}

    def end(number: int, frame: FrameType | None) -> None:
        asked_s[number] = time.monotonic()
        # Ctrl-C may stop an answer alone.
        if number != signal.SIGINT and is_own_process():
            # The same request may come as several signals: a later one must not change how this one ends.
            for each in numbers:
                signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, end) for number in numbers if number != signal.SIGINT
    }
    # In the background of a shell Ctrl-C is ignored from the start.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, end)
    try:
        yield
    except Exception as error:
        at_once = time.monotonic() - asked_s.pop(signal.SIGINT, -math.inf) < _AT_ONCE_S
        if at_once or asked_s:
            # Code that was not written in Python may turn an interruption into an error of its own.
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            # A command may have left another one for what comes after its end.
            if signal.getsignal(number) is end:
                signal.signal(number, handler)


def _call(name: str, words: Sequence[str]) -> int:
    command = cast(CommandModule, importlib.import_module(module_of(name)))
    parser = Parser(f"llava-recipe {name}", description=COMMANDS[name], formatter_class=Paragraphs)
    command.add_arguments(parser)
    # Options may stand between positional arguments: `chat RUN --image FILE PROMPT`.
    arguments = parser.parse_intermixed_args(words)
    if name not in WITHOUT_TORCH:
        from llava_recipes.versions import check_versions

        check_versions()
    return command.run(arguments)


def _run(name: str, words: Sequence[str]) -> int:
    from llava_recipes.errors import RecipeError

    try:
        # `run` saves at all of them; until it is ready for that, there is nothing to save.
        with _interrupted_by(wanted_signals() if name == "run" else (signal.SIGTERM,)):
            return _call(name, words)
    except RecipeError as error:
        from llava_recipes.render import render_problems

        say_lines(render_problems(error.problems), to_stderr=True)
        return USER_ERROR
    except KeyboardInterrupt:
        say("interrupted", to_stderr=True)
        return INTERRUPTED
    except OutputLost:
        raise
    except MemoryError as error:
        detail = f": {error}" if str(error) else ""
        say(f"llava-recipe {name}: not enough memory{detail}", to_stderr=True)
        return USER_ERROR
    except Exception as error:
        import traceback

        from llava_recipes.files import is_fault_of_place
        from llava_recipes.versions import version_problem

        if is_fault_of_place(error):
            say(f"llava-recipe {name}: {error}", to_stderr=True)
            return USER_ERROR
        if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
            names = f"this locale can't encode {error.object[error.start : error.end]!r} in a file name"
            say(f"llava-recipe {name}: {names}; set PYTHONUTF8=1 or LC_ALL=C.UTF-8", to_stderr=True)
            return USER_ERROR
        file = write_log("".join(traceback.format_exception(error)))
        outdated = version_problem()
        if outdated is not None:
            say(f"{outdated} (the traceback is in {file})", to_stderr=True)
            return USER_ERROR
        what = f"{type(error).__name__}: {error}"
        say(f"a bug in llava-recipe: {what}", f"the traceback is in {file}", to_stderr=True)
        return OUR_BUG
