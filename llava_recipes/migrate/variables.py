"""The variables of a script as they stand while it is read."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from llava_recipes.migrate.arithmetic import NotComputed
from llava_recipes.migrate.expand import (
    Scope,
    UnknownValue,
    Variable,
    compute,
    expand_text,
    expand_word,
    working_folder,
)
from llava_recipes.migrate.statements import Statement
from llava_recipes.migrate.substitution import absolute
from llava_recipes.migrate.word_parts import Parameter, Part, Plain, Unread, Word
from llava_recipes.recipe.errors import Mark, Problem, RecipeError

MAX_KEPT_CHARACTERS = 2_000_000

_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<adds>\+?)=")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_SETS = re.compile(
    r"\s*(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*"
    r"(?:(?P<step>\+\+|--)\s*$|(?P<change>(?:\*|/|%|\+|-|<<|>>)?=)(?!=)(?P<value>.*))",
    re.DOTALL,
)
"""Arithmetic that sets a variable."""


@dataclass
class Spent:
    """What a script and all that it calls have used of the limits."""

    kept_characters: int = 0
    calls: int = 0


class Variables:
    """What a script's variables and arguments are; `given` are those that come from outside, and win."""

    def __init__(
        self,
        file: str,
        positional: tuple[str, ...],
        values: dict[str, Variable],
        given: frozenset[str],
        spent: Spent,
    ) -> None:
        self._file, self.positional, self.values = file, positional, values
        self.given, self._spent = given, spent

    def copied(self, file: str, positional: tuple[str, ...]) -> Variables:
        """The variables of a script that this one starts: what it sets stays its own."""
        return Variables(file, positional, dict(self.values), self.given, self._spent)

    def shared(self, file: str, positional: tuple[str, ...]) -> Variables:
        """The variables of a script that this one reads in with `source`: what it sets is set here too."""
        return Variables(file, positional or self.positional, self.values, self.given, self._spent)

    def count_call(self) -> int:
        """How many scripts have been called, with this one."""
        self._spent.calls += 1
        return self._spent.calls

    def unset(self, name: str) -> None:
        """Forget that a variable was set, unless it is given."""
        if name not in self.given:
            self.values.pop(name, None)

    def shift(self, count: int | None) -> None:
        """Drop that many arguments from the front; all of them where the number is not known."""
        self.positional = self.positional[count:] if count is not None else ()

    def scope(self) -> Scope:
        return Scope(self.values, self.positional, self._file)

    def keep_defaults(self, words: tuple[Word, ...]) -> None:
        """`: ${NAME:=value}` sets what is not set yet."""
        for part in (part for word in words[1:] for part in word.parts):
            if isinstance(part, Parameter) and part.change in (":=", "="):
                try:
                    self.keep(part.name, expand_text((part,), self.scope()), part.mark)
                except UnknownValue as unknown:
                    self.values[part.name] = unknown

    def visible_devices(self, before: tuple[Word, ...]) -> str | None:
        """`before` are the assignments in front of a command, which hold for it alone."""
        word = next((word for word in before if assigned_name(word) == _VISIBLE), None)
        if word is None:
            value = self.values.get(_VISIBLE)
            return value if isinstance(value, str) else None
        try:
            return expand_text(_value_parts(word), self.scope())
        except UnknownValue:
            return ""

    def change_folder(self, words: tuple[Word, ...], statement: Statement) -> None:
        if "PWD" in self.given:
            return
        path = None
        if words[0].plain == "cd" and len(words) > 1 and not statement.block:
            try:
                path = absolute("".join(expand_word(words[1], self.scope())), working_folder(self.scope()))
            except UnknownValue:
                path = None
        if path is None:
            self.forget("PWD", words[0].mark, f"`{words[0].plain}` sets it, to what is not known")
        else:
            self.values["PWD"] = path

    def set_sum(self, word: Word, statement: Statement) -> None:
        """`let NAME=…`, and `((NAME = …))`: the variable's value, or that it is not known."""
        part = word.parts[0] if len(word.parts) == 1 else None
        try:
            source = part.source if isinstance(part, Unread) else expand_text(word.parts, self.scope())
        except UnknownValue:
            return
        found = _SETS.match(source)
        if found is None:
            return
        name, change, rest = found["name"], found["change"] or "", found["value"]
        value: int | None = None
        if not statement.block and name not in self.given:
            expression = f"{name} {change[:-1]} ({rest})" if change[:-1] else rest
            if found["step"]:
                expression = f"{name} {found['step'][0]} 1"
            try:
                value = compute(expression, self.scope())
            except (NotComputed, UnknownValue, RecipeError):
                value = None
        if value is None:
            self.forget(name, word.mark, "arithmetic sets it, to what is not known")
        else:
            self.keep(name, str(value), word.mark)

    def assign(self, word: Word, statement: Statement) -> None:
        name = assigned_name(word)
        if name in self.given:
            given = self.values.get(name)
            if word.entries is not None and isinstance(given, str):
                # What the script uses as a list is given in one text.
                self.values[name] = tuple(given.split())
            return
        if statement.block:
            self.forget(name, word.mark, f"it is set inside {statement.block}, which is not followed")
            return
        adds = "+=" in head_of(word)
        scope = self.scope()
        value: Variable
        try:
            if word.entries is not None:
                value = tuple(text for entry in word.entries for text in expand_word(entry, scope))
            else:
                value = expand_text(_value_parts(word), scope)
            before = self.values.get(name) if adds else None
            if isinstance(before, UnknownValue):
                value = before
            elif isinstance(before, tuple):
                value = before + (value if isinstance(value, tuple) else (value,))
            elif before is not None:
                value = (before, *value) if isinstance(value, tuple) else before + value
        except UnknownValue as unknown:
            value = unknown
            if unknown.problem.code == "value-not-evaluated" and "--var" not in (unknown.problem.hint or ""):
                hint = f"give it: --var {name}=VALUE; a script is read here, never run"
                value = UnknownValue(replace(unknown.problem, hint=hint))
        self.keep(name, value, word.mark)

    def keep(self, name: str, value: Variable, mark: Mark) -> None:
        if name in self.given:
            return
        if not isinstance(value, UnknownValue):
            self._spent.kept_characters += sum(map(len, value)) if isinstance(value, tuple) else len(value)
        if self._spent.kept_characters > MAX_KEPT_CHARACTERS:
            message = f"the variables hold more than {MAX_KEPT_CHARACTERS:,} characters"
            raise RecipeError(Problem(message, code="script-too-large", mark=mark))
        self.values[name] = value

    def forget(self, name: str, mark: Mark, why: str) -> None:
        if name and name not in self.given:
            message = f"the value of the variable `{name}` is needed and not known: {why}"
            hint = f"give it: --var {name}=VALUE"
            self.values[name] = UnknownValue(
                Problem(message, code="value-not-computed", mark=mark, hint=hint)
            )


def head_of(word: Word) -> str:
    """What stands before the first quote or parameter of a word."""
    first = word.parts[0] if word.parts else None
    return first.text if isinstance(first, Plain) and not first.quoted else ""


def assigned_name(word: Word) -> str:
    found = _ASSIGNMENT.match(head_of(word))
    return found["name"] if found else ""


def _value_parts(word: Word) -> tuple[Part, ...]:
    first, *rest = word.parts
    assert isinstance(first, Plain), "an assignment starts with its name"
    return (Plain(first.text.partition("=")[2], quoted=False), *rest)
