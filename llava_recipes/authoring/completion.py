"""Completion scripts for bash, zsh and fish, from a description of the commands."""

from __future__ import annotations

import enum
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


class Takes(enum.Enum):
    """What may stand behind an option, or as a command's operand."""

    NOTHING = enum.auto()
    ANYTHING = enum.auto()
    WORDS = enum.auto()
    RECIPES = enum.auto()
    FILES = enum.auto()
    FOLDERS = enum.auto()


@dataclass(frozen=True)
class Value:
    """A kind of value; `words` are the choices of WORDS."""

    takes: Takes
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Option:
    """One option under all its names, `-o` and `--output`."""

    names: tuple[str, ...]
    purpose: str
    value: Value


@dataclass(frozen=True)
class Command:
    """One command, its options, and what its operands are."""

    name: str
    purpose: str
    options: tuple[Option, ...]
    operand: Value


SHELLS = ("bash", "zsh", "fish")
_TOP_OPTIONS = ("--help", "--version")
_NOTE = "# Completions of llava-recipe. Write it anew after an update: llava-recipe completion"


def script(shell: str, commands: Sequence[Command]) -> str:
    """The script to be read by the shell."""
    writers = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    first, *others = writers[shell](commands)
    # zsh wants its own word on the first line.
    head = (first, f"{_NOTE} {shell}") if shell == "zsh" else (f"{_NOTE} {shell}", first)
    return "\n".join((*head, *others)) + "\n"


_BASH_HEAD = """\
_llava_recipe() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
    # bash takes the sign of --option=value for a word of its own.
    if [[ $current == = ]]; then current=; fi
    if [[ $before == = ]]; then before=${COMP_WORDS[COMP_CWORD-2]}; fi
    COMPREPLY=()
"""

_BASH_KINDS = {
    Takes.NOTHING: ":",
    Takes.ANYTHING: ":",
    Takes.RECIPES: "_llava_recipe_files '*.yaml' '*.yml'",
    Takes.FILES: "_llava_recipe_files '*'",
    Takes.FOLDERS: "_llava_recipe_files ''",
}

_BASH_FILES = """\
# Nothing here needs more than bash 3.2. Read line by line, names with spaces and stars stay as they are.
_llava_recipe_add() {
    local line
    while IFS= read -r line; do COMPREPLY+=("$line"); done
}
_llava_recipe_words() {
    local IFS=$'\\n'
    _llava_recipe_add < <(compgen -W "$1" -- "$current")
}
_llava_recipe_files() {
    local pattern
    compopt -o filenames 2>/dev/null
    _llava_recipe_add < <(compgen -d -- "$current")
    for pattern in "$@"; do
        _llava_recipe_add < <(compgen -f -X "!$pattern" -- "$current" | while IFS= read -r file; do
            if [[ ! -d $file ]]; then printf '%s\\n' "$file"; fi
        done)
    done
}
"""


def _bash(commands: Sequence[Command]) -> Iterator[str]:
    yield _BASH_FILES + _BASH_HEAD.rstrip("\n")
    yield "    if (( COMP_CWORD == 1 )); then"
    yield f"        {_bash_words((*(command.name for command in commands), *_TOP_OPTIONS))}"
    yield "        return"
    yield "    fi"
    yield '    case "${COMP_WORDS[1]} $before" in'
    for command in commands:
        for option in command.options:
            if option.value.takes is not Takes.NOTHING:
                cases = "|".join(f"'{command.name} {name}'" for name in option.names)
                yield f"        {cases}) {_bash_value(option.value)}; return ;;"
    yield "    esac"
    yield '    case "${COMP_WORDS[1]} $current" in'
    for command in commands:
        names = tuple(name for option in command.options for name in option.names)
        yield f"        '{command.name} -'*) {_bash_words(names)} ;;"
        yield f"        '{command.name} '*) {_bash_value(command.operand)} ;;"
    yield "    esac"
    yield "}"
    yield "complete -F _llava_recipe llava-recipe"


def _bash_value(value: Value) -> str:
    return _bash_words(value.words) if value.takes is Takes.WORDS else _BASH_KINDS[value.takes]


def _bash_words(words: Iterable[str]) -> str:
    listed = "\\n".join(words)
    return f"_llava_recipe_words $'{listed}'"


_ZSH_KINDS = {
    Takes.ANYTHING: ":value: ",
    Takes.RECIPES: ':recipe:_files -g "*.(yaml|yml)"',
    Takes.FILES: ":file:_files",
    Takes.FOLDERS: ":folder:_files -/",
}


def _zsh(commands: Sequence[Command]) -> Iterator[str]:
    yield "#compdef llava-recipe"
    yield "_llava_recipe() {"
    yield "    if (( CURRENT == 2 )); then"
    yield "        local -a commands=("
    for command in commands:
        yield f"            {_quoted(command.name + ':' + command.purpose)}"
    yield "        )"
    yield "        _describe command commands"
    yield "        return"
    yield "    fi"
    yield "    shift words"
    yield "    (( CURRENT-- ))"
    yield "    case $words[1] in"
    for command in commands:
        specs = [spec for option in command.options for spec in _zsh_specs(option)]
        if command.operand.takes is not Takes.NOTHING:
            specs.append("*" + _zsh_value(command.operand))
        yield f"        {command.name}) _arguments {' '.join(map(_quoted, specs))} ;;"
    yield "    esac"
    yield "}"
    # Read by `source`, the file only defines the function; found in fpath, it is the function.
    yield 'if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _llava_recipe "$@"; '
    yield "else compdef _llava_recipe llava-recipe; fi"


def _zsh_specs(option: Option) -> Iterator[str]:
    purpose = re.sub(r"([\[\]\\])", r"\\\1", option.purpose)
    value = "" if option.value.takes is Takes.NOTHING else _zsh_value(option.value)
    for name in option.names:
        sign = "=" if value and name.startswith("--") else ""
        yield f"*{name}{sign}[{purpose}]{value}"


def _zsh_value(value: Value) -> str:
    return f":choice:({' '.join(value.words)})" if value.takes is Takes.WORDS else _ZSH_KINDS[value.takes]


_FISH_KINDS = {
    Takes.ANYTHING: "-x",
    Takes.RECIPES: "-x -k -a '(__fish_complete_suffix .yaml; __fish_complete_suffix .yml)'",
    Takes.FILES: "-r -F",
    Takes.FOLDERS: "-x -a '(__fish_complete_directories)'",
}


def _fish(commands: Sequence[Command]) -> Iterator[str]:
    yield "complete -c llava-recipe -f"
    for name in _TOP_OPTIONS:
        yield f"complete -c llava-recipe -n __fish_use_subcommand -l {name.removeprefix('--')}"
    for command in commands:
        start = "complete -c llava-recipe -n"
        yield f"{start} __fish_use_subcommand -a {command.name} -d {_quoted(command.purpose)}"
        seen = f"'__fish_seen_subcommand_from {command.name}'"
        for option in command.options:
            names = " ".join(
                f"-l {word[2:]}" if word.startswith("--") else f"-s {word[1:]}" for word in option.names
            )
            value = "" if option.value.takes is Takes.NOTHING else f" {_fish_value(option.value)}"
            yield f"{start} {seen} {names}{value} -d {_quoted(option.purpose)}"
        if command.operand.takes is not Takes.NOTHING:
            # -x and -r speak of an option's value; an operand has none to speak of.
            operand = re.sub(r"^-[xr] ", "", _fish_value(command.operand))
            yield f"{start} {seen} {operand}"


def _fish_value(value: Value) -> str:
    return (
        f"-x -a {_quoted(' '.join(value.words))}" if value.takes is Takes.WORDS else _FISH_KINDS[value.takes]
    )


def _quoted(text: str) -> str:
    return shlex.quote(text)
