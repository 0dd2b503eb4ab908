"""The commands of a shell script with their words filled in. Nothing is executed.

Variables are followed; conditions, loops and functions are not, so a command inside one may not run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llava_recipes.errors import Mark, Problem, RecipeError
from llava_recipes.migrate.shell_syntax import (
    Computed,
    Parameter,
    Part,
    Plain,
    Word,
    read_statements,
    written,
)
from llava_recipes.migrate.shell_values import (
    NotComputed,
    Spent,
    UnknownValue,
    Value,
    Variables,
    absolute,
    compute,
    expand_text,
    expand_word,
)

MAX_COMMAND_CHARACTERS = 100_000
MAX_CALLS_DEEP = 8
MAX_CALLS = 50

ReadScript = Callable[[str, str], tuple[str, str] | None]
"""From a path in a script, and the script's file, to the file found there and its text."""

_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<adds>\+?)=")
_SETS = re.compile(
    r"\s*(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*"
    r"(?:(?P<step>\+\+|--)\s*$|(?P<change>(?:<<|>>|[-+*/%&|^])?)=(?!=)(?P<value>.*))",
    re.DOTALL,
)
"""Arithmetic that sets a variable."""
_DECLARES = frozenset({"export", "declare", "local", "readonly", "typeset"})
_READS = frozenset({"for", "select", "read", "mapfile", "readarray"})
_SHELLS = frozenset({"bash", "sh", "zsh"})
_RUNS_SCRIPTS = _SHELLS | {"source", "."}


@dataclass(frozen=True)
class Argument:
    """One argument of a command as the program gets it, and the place of its word."""

    text: str
    """As the script writes it if there is a problem."""
    mark: Mark
    problem: Problem | None = None
    """Why its value isn't known without running the script."""
    head: str = ""
    """The text before the first unknown part."""

    @property
    def spelled(self) -> str:
        """The text with `?` for what is not known."""
        return self.text if self.problem is None else f"{self.head}?"


@dataclass(frozen=True)
class Command:
    """A command of the script, filled in."""

    words: tuple[Argument, ...]
    mark: Mark
    block: str
    """`an `if``, `a loop` or `a function` around the command, else empty."""
    visible_devices: str | None
    """The value of CUDA_VISIBLE_DEVICES for this command if the script sets it."""


def walk_commands(
    text: str,
    file: str,
    *,
    positional: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    read_script: ReadScript | None = None,
    started_in: str | None = None,
) -> Iterator[Command]:
    """The commands of a script in their order, with those of called scripts in their place.

    `variables` come from outside and replace those that the script sets. Raises RecipeError for wrong syntax.
    """
    given = dict[str, Value](variables or {})
    start = given if started_in is None else {"PWD": started_in, **given}
    kept = Variables(file, tuple(positional), start, frozenset(given), Spent())
    return _Walk(kept, read_script, (file,)).commands(text)


class _Walk:
    """One script's variables while its commands are listed."""

    def __init__(
        self, variables: Variables, read_script: ReadScript | None, callers: tuple[str, ...]
    ) -> None:
        self._variables, self._read_script, self._callers = variables, read_script, callers

    def commands(self, text: str) -> Iterator[Command]:
        # All statements first, so that wrong syntax is reported before anything else.
        for statement in list(read_statements(text, self._variables.file)):
            words = statement.words
            if words[0].plain in _DECLARES:
                assigned, words = list(filter(_assigned_name, words)), ()
            else:
                assigned = list(itertools.takewhile(_assigned_name, words))
                words = words[len(assigned) :]
            if words:
                yield from self._command(words, statement.block, before=assigned)
            else:
                for word in assigned:
                    self._assign(word, statement.block)

    def _command(self, words: tuple[Word, ...], block: str, *, before: Sequence[Word]) -> Iterator[Command]:
        if self._changes_variables(words, block):
            return
        try:
            called = self._called(words) or self._inner_script(words)
        except UnknownValue as unknown:
            raise RecipeError(unknown.problem) from None
        if called is not None:
            walk, text = called
            if len(walk._callers) > MAX_CALLS_DEEP or self._variables.spent.calls > MAX_CALLS:
                message = f"more than {MAX_CALLS_DEEP} nested calls of scripts, or {MAX_CALLS} in all"
                raise RecipeError.of(message, code="script-too-large", mark=words[0].mark)
            for command in walk.commands(text):
                yield replace(command, block=command.block or block)
            return
        yield Command(self._filled(words), words[0].mark, block, self._visible_devices(before))

    def _changes_variables(self, words: tuple[Word, ...], block: str) -> bool:
        """Apply a command of the shell that changes variables; false for any other command."""
        variables, name = self._variables, words[0].plain
        operands = [word.plain or "" for word in words[1:]]
        if name in _READS or (name == "printf" and operands[:1] == ["-v"]):
            for word in words[1:]:
                if word.plain:
                    variables.forget(word.plain, word.mark, f"`{name}` sets it, and is not evaluated")
        elif name in ("cd", "pushd", "popd"):
            self._change_folder(words, block)
        elif name == "let":
            for word in words[1:]:
                self._set_sum(word, block)
        elif block:
            return False
        elif name == ":":
            self._keep_defaults(words)
        elif name == "unset":
            for operand in set(operands) - variables.given:
                variables.values.pop(operand, None)
        elif name == "shift":
            count = operands[0] if operands else "1"
            # An unknown number drops all of them.
            dropped = int(count) if count.isdecimal() and len(count) < 9 else len(variables.positional)
            variables.positional = variables.positional[dropped:]
        else:
            return False
        return True

    def _filled(self, words: Sequence[Word]) -> tuple[Argument, ...]:
        filled: list[Argument] = []
        num_characters = 0
        for word in words:
            try:
                texts = expand_word(word, self._variables)
            except UnknownValue as unknown:
                filled.append(Argument(written(word), word.mark, unknown.problem, word.head))
                continue
            num_characters += sum(map(len, texts))
            if num_characters > MAX_COMMAND_CHARACTERS:
                message = f"a command longer than {MAX_COMMAND_CHARACTERS:,} characters"
                raise RecipeError.of(message, code="script-too-large", mark=word.mark)
            filled += [Argument(text, word.mark) for text in texts]
        return tuple(filled)

    def _called(self, words: tuple[Word, ...]) -> tuple[_Walk, str] | None:
        """A called script and its text; None if it isn't available. Raises UnknownValue."""
        name, variables = words[0].plain, self._variables
        options = [word for word in words[1:] if not (word.plain or "").startswith("-")]
        if name not in _RUNS_SCRIPTS or self._read_script is None or not options or words[1].plain == "-c":
            return None
        path = "".join(expand_word(options[0], variables))
        found = self._read_script(path, variables.file) if path else None
        if found is None:
            return None
        file, text = found
        arguments = [argument for word in options[1:] for argument in expand_word(word, variables)]
        if file in self._callers:
            message = f"the script {file} calls itself"
            raise RecipeError.of(message, code="script-circular", mark=words[0].mark)
        if name in _SHELLS:
            return self._inside(file, arguments), text
        # A script that is read with `source` sets this script's variables.
        return self._inside(file, arguments or variables.positional, values=variables.values), text

    def _inner_script(self, words: tuple[Word, ...]) -> tuple[_Walk, str] | None:
        """The text of `bash -c '…'`, after any launcher, moved to its place. Raises UnknownValue."""
        for shell, option, script in zip(words, words[1:], words[2:], strict=False):
            if shell.plain in _SHELLS and option.plain in ("-c", "-lc", "-ec"):
                text = " ".join(expand_word(script, self._variables))
                moved = "\n" * (script.mark.line - 1) + " " * script.mark.column + text
                return self._inside(self._variables.file, ()), moved
        return None

    def _inside(self, file: str, arguments: Sequence[str], values: dict[str, Value] | None = None) -> _Walk:
        variables = self._variables
        variables.spent.calls += 1
        values = dict(variables.values) if values is None else values
        inside = replace(variables, file=file, positional=tuple(arguments), values=values)
        return _Walk(inside, self._read_script, (*self._callers, file))

    def _assign(self, word: Word, block: str) -> None:
        name, variables = _assigned_name(word), self._variables
        if name in variables.given:
            given = variables.values.get(name)
            if word.entries is not None and isinstance(given, str):
                # A list is given as one string.
                variables.values[name] = tuple(given.split())
            return
        if block:
            variables.forget(name, word.mark, f"it is set inside {block}, which may not run")
            return
        value: Value
        try:
            if word.entries is not None:
                value = tuple(text for entry in word.entries for text in expand_word(entry, variables))
            else:
                value = expand_text(_value_parts(word), variables)
            if "+=" in word.head and name in variables.values:
                value = _added(variables.values[name], value)
        except UnknownValue as unknown:
            value = unknown
            problem = unknown.problem
            if problem.code.endswith("-not-evaluated") and "--var" not in (problem.hint or ""):
                hint = f"add --var {name}=VALUE; scripts are read, never run"
                value = UnknownValue(replace(problem, hint=hint))
        variables.keep(name, value, word.mark)

    def _keep_defaults(self, words: tuple[Word, ...]) -> None:
        """`: ${NAME:=value}` sets what is not set yet."""
        for part in (part for word in words[1:] for part in word.parts):
            if isinstance(part, Parameter) and part.change in (":=", "="):
                try:
                    value: Value = expand_text((part,), self._variables)
                except UnknownValue as unknown:
                    value = unknown
                self._variables.keep(part.name, value, part.mark)

    def _set_sum(self, word: Word, block: str) -> None:
        """`let NAME=…` and `((NAME = …))`: set the variable, or make it unknown."""
        part = word.parts[0] if len(word.parts) == 1 else None
        source = part.source if isinstance(part, Computed) else self._known_text(word.parts)
        found = _SETS.match(source or "")
        if found is None:
            return
        name, rest = found["name"], f"({found['value']})"
        expression = f"{name} {found['change']} {rest}" if found["change"] else rest
        if found["step"]:
            expression = f"{name} {found['step'][0]} 1"
        try:
            value = None if block else str(compute(expression, self._variables))
        except (NotComputed, UnknownValue, RecipeError):
            value = None
        if value is None:
            self._variables.forget(name, word.mark, "arithmetic sets it to an unknown value")
        else:
            self._variables.keep(name, value, word.mark)

    def _change_folder(self, words: tuple[Word, ...], block: str) -> None:
        is_followed = words[0].plain == "cd" and len(words) > 1 and not block
        target = self._known_text(words[1].parts) if is_followed else None
        path = None if target is None else absolute(target, self._variables.folder)
        if path is None:
            why = f"`{words[0].plain}` sets it to an unknown value"
            self._variables.forget("PWD", words[0].mark, why)
        else:
            self._variables.keep("PWD", path, words[0].mark)

    def _visible_devices(self, before: Sequence[Word]) -> str | None:
        """`before` are the assignments before a command, which count for it alone."""
        name = "CUDA_VISIBLE_DEVICES"
        word = next((word for word in before if _assigned_name(word) == name), None)
        if word is None:
            value = self._variables.values.get(name)
            return value if isinstance(value, str) else None
        return self._known_text(_value_parts(word)) or ""

    def _known_text(self, parts: Sequence[Part]) -> str | None:
        """The text of a word; None if it is not known."""
        try:
            return expand_text(parts, self._variables)
        except UnknownValue:
            return None


def _assigned_name(word: Word) -> str:
    found = _ASSIGNMENT.match(word.head)
    return found["name"] if found else ""


def _value_parts(word: Word) -> tuple[Part, ...]:
    return (Plain(word.head.partition("=")[2], quoted=False), *word.parts[1:])


def _added(before: Value, value: str | tuple[str, ...]) -> Value:
    """The value after `+=`: with more text, or more entries."""
    if isinstance(before, UnknownValue):
        return before
    if isinstance(before, str) and isinstance(value, str):
        return before + value
    return tuple(text for side in (before, value) for text in ((side,) if isinstance(side, str) else side))
