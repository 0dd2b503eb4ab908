"""Fill in words with the values of variables, as a shell would; what only a shell could tell is a problem."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llava_recipes.migrate.word_parts import Parameter, Part, Plain, Unread, Word
from llava_recipes.recipe.errors import Problem
from llava_recipes.recipe.spelling import did_you_mean

MAX_CHARACTERS = 20_000
MAX_PATTERN_TEXT = 2_000


class UnknownValue(Exception):
    """A value that cannot be told without running the script."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


Variable = str | tuple[str, ...] | UnknownValue
"""Text, the entries of an array, or why it is not known."""


@dataclass(frozen=True)
class Scope:
    """What a word can refer to: variables, and the positional arguments from `$1` on."""

    variables: Mapping[str, Variable]
    positional: Sequence[str]
    file: str


def expand_text(parts: Sequence[Part], scope: Scope) -> str:
    """The text of an assignment's value: never split."""
    text = ""
    for part in parts:
        text = _bounded(text + " ".join(_values(part, scope)), parts)
    return text


def expand_word(word: Word, scope: Scope) -> list[str]:
    """The arguments that a word becomes: none, one, or several where an unquoted value holds spaces."""
    fields: list[str] = []
    current: str | None = None
    for part in word.parts:
        values = _values(part, scope)
        if isinstance(part, Plain) or part.quoted:
            for index, value in enumerate(values):
                if index:
                    fields.append(current or "")
                    current = ""
                current = _bounded((current or "") + value, word.parts)
            continue
        for value in values:
            pieces = value.split()
            if pieces and current is not None and not value[:1].isspace():
                current = _bounded(current + pieces.pop(0), word.parts)
            for piece in pieces:
                if current is not None:
                    fields.append(current)
                current = piece
            if value[-1:].isspace() and current is not None:
                fields.append(current)
                current = None
    return fields if current is None else [*fields, current]


def _bounded(text: str, parts: Sequence[Part]) -> str:
    if len(text) > MAX_CHARACTERS:
        mark = next((part.mark for part in parts if not isinstance(part, Plain)), None)
        raise UnknownValue(
            Problem(
                f"a value longer than {MAX_CHARACTERS:,} characters",
                code="value-longer-than-characters",
                mark=mark,
            )
        )
    return text


def _values(part: Part, scope: Scope) -> list[str]:
    if isinstance(part, Plain):
        return [part.text]
    if isinstance(part, Unread):
        raise UnknownValue(
            Problem(
                f"{part.what} is not evaluated, and its value is needed",
                code="not-evaluated-value-needed",
                mark=part.mark,
                hint="write the value in its place; a script is read here, never run",
            )
        )
    return _parameter(part, scope)


def _parameter(part: Parameter, scope: Scope) -> list[str]:
    value = _look_up(part.name, scope)
    if part.change in (":-", "-", ":=", "=", ":?", "?"):
        if value is None or (part.change.startswith(":") and value in ("", ())):
            if part.change.endswith("?"):
                raise _unset(part, scope)
            return [expand_text(part.first, scope)]
        return _known(value)
    if part.change in (":+", "+"):
        is_set = value is not None and not (part.change == ":+" and value in ("", ()))
        return [expand_text(part.first, scope)] if is_set else [""]
    if value is None:
        raise _unset(part, scope)
    values = _known(value)
    if part.change in ("[@]", "[*]"):
        return [" ".join(values)] if part.quoted and part.change == "[*]" else values
    if isinstance(value, tuple):
        values = values[:1] or [""]
    if part.change == "":
        return values
    return [_changed(text, part, scope) for text in values]


def _known(value: Variable) -> list[str]:
    if isinstance(value, UnknownValue):
        raise value
    return list(value) if isinstance(value, tuple) else [value]


def _look_up(name: str, scope: Scope) -> Variable | None:
    if name in ("@", "*"):
        return tuple(scope.positional)
    if name == "#":
        return str(len(scope.positional))
    if name == "0":
        return scope.file
    if name.isdigit():
        number = int(name[:9])
        return scope.positional[number - 1] if number <= len(scope.positional) else None
    return scope.variables.get(name)


def _unset(part: Parameter, scope: Scope) -> UnknownValue:
    if part.name.isdigit():
        number = len(scope.positional)
        given = f"{number or 'no'} {'argument is' if number < 2 else 'arguments are'} given"
        return UnknownValue(
            Problem(
                f"the script's argument ${part.name} is needed",
                code="script-argument-needed",
                mark=part.mark,
                found=given,
                hint="give the script's arguments in their order, each with `--arg VALUE`",
            )
        )
    hint = f"give it: --var {part.name}=VALUE"
    near = did_you_mean(part.name, scope.variables)
    return UnknownValue(
        Problem(
            f"nothing in the script sets the variable `{part.name}`",
            code="nothing-script-sets-variable",
            mark=part.mark,
            hint=f"{near} Or {hint}" if near else hint,
        )
    )


def _changed(text: str, part: Parameter, scope: Scope) -> str:
    change = part.change
    if len(text) > MAX_PATTERN_TEXT and change not in ("^^", ",,"):
        message = f"a pattern on a value longer than {MAX_PATTERN_TEXT:,} characters"
        raise UnknownValue(Problem(message, code="pattern-value-longer-than-characters", mark=part.mark))
    if change in ("#", "##", "%", "%%"):
        pattern = _pattern(part.first, scope)
        ends = range(len(text) + 1)
        if change.startswith("#"):
            lengths = reversed(ends) if change == "##" else ends
            return next((text[end:] for end in lengths if pattern.fullmatch(text[:end])), text)
        starts = ends if change == "%%" else reversed(ends)
        return next((text[:start] for start in starts if pattern.fullmatch(text[start:])), text)
    if change in ("/", "//", "/#", "/%"):
        pattern = _pattern(part.first, scope)
        replacement = expand_text(part.second, scope)
        if not pattern.pattern:
            return text
        if len(replacement) > MAX_PATTERN_TEXT:
            message = f"a replacement longer than {MAX_PATTERN_TEXT:,} characters"
            raise UnknownValue(Problem(message, code="replacement-longer-than-characters", mark=part.mark))
        if change == "/#":
            found = pattern.match(text)
            return replacement + text[found.end() :] if found else text
        if change == "/%":
            starts = range(len(text) + 1)
            return next(
                (text[:start] + replacement for start in starts if pattern.fullmatch(text[start:])), text
            )
        return pattern.sub(lambda _: replacement, text, count=1 if change == "/" else 0)
    if change in ("^^", ",,"):
        return text.upper() if change == "^^" else text.lower()
    raise UnknownValue(
        Problem(
            f"the expansion `${{{part.name}{change}…}}` is not evaluated, and its value is needed",
            code="expansion-not-evaluated-value-needed",
            mark=part.mark,
            hint="write the value in its place",
        )
    )


def _pattern(parts: Sequence[Part], scope: Scope) -> re.Pattern[str]:
    """A shell pattern as a regular expression; quoted text stands for itself."""
    written = ""
    for part in parts:
        text = expand_text((part,), scope)
        is_literal = not isinstance(part, Plain) or part.quoted
        written += (
            "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text) if is_literal else text
        )
    if len(written) > 200:
        mark = next((part.mark for part in parts if not isinstance(part, Plain)), None)
        raise UnknownValue(
            Problem(
                "a pattern longer than 200 characters", code="pattern-longer-than-200-characters", mark=mark
            )
        )
    translated = fnmatch.translate(written)
    return re.compile(translated.removesuffix(r"\Z"), re.DOTALL)
