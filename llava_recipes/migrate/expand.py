"""Fill in words with the values of variables, as a shell would; what only a shell could tell is a problem."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llava_recipes.migrate.arithmetic import NotComputed, evaluate
from llava_recipes.migrate.statements import read_statements
from llava_recipes.migrate.substitution import absolute, answer
from llava_recipes.migrate.word_parts import ARITHMETIC, Operator, Parameter, Part, Plain, Unread, Word
from llava_recipes.migrate.words import read_quoted, read_words
from llava_recipes.recipe.errors import Problem, RecipeError
from llava_recipes.recipe.spelling import did_you_mean

MAX_CHARACTERS = 20_000
MAX_PATTERN_TEXT = 2_000
MAX_DEEP = 8
"""How many substitutions inside each other are computed."""

_FOLLOWED = frozenset({"&&", ";", "\n", ">", ">&", "&>"})
"""What may stand between and behind the commands of a substitution."""


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
    depth: int = 0
    """How deep inside arithmetic and command substitutions."""


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
                code="script-too-large",
                mark=mark,
            )
        )
    return text


def _values(part: Part, scope: Scope) -> list[str]:
    if isinstance(part, Plain):
        return [part.text]
    if isinstance(part, Unread):
        return [_computed(part, scope)]
    return _parameter(part, scope)


def _computed(part: Unread, scope: Scope) -> str:
    """The value of arithmetic or of a command substitution, where it follows from values that are known."""
    why = ""
    if part.source and scope.depth < MAX_DEEP:
        inside = replace(scope, depth=scope.depth + 1)
        try:
            if part.what == ARITHMETIC:
                return str(compute(part.source, inside))
            found = _substituted(part.source, inside)
        except NotComputed as reason:
            found, why = None, str(reason)
        except UnknownValue as unknown:
            if any(value is unknown for value in scope.variables.values()):
                raise
            # What is read inside has places of its own, which the script has not.
            raise UnknownValue(replace(unknown.problem, mark=part.mark)) from None
        except RecipeError:
            found = None
        if found is not None:
            return found.rstrip("\n")
    raise UnknownValue(
        Problem(
            f"{part.what} is not evaluated, and its value is needed",
            code="value-not-evaluated",
            mark=part.mark,
            found=why or None,
            hint="write the value in its place; a script is read here, never run",
        )
    )


def compute(source: str, scope: Scope) -> int:
    """The value of an arithmetic expression; raises NotComputed, UnknownValue or RecipeError."""
    return evaluate(
        expand_text(read_quoted(source, scope.file), scope), lambda name: _number_text(name, scope)
    )


def _number_text(name: str, scope: Scope) -> str | None:
    value = _look_up(name, scope)
    return None if value is None else "".join(_known(value)[:1])


def _substituted(source: str, scope: Scope) -> str | None:
    """What a command prints, alone or behind `cd FOLDER &&`; None where only a shell could tell."""
    statements = list(read_statements(source, scope.file))
    operators = {word.text for word in read_words(source, scope.file) if isinstance(word, Operator)}
    if not operators <= _FOLLOWED or any(statement.block for statement in statements):
        return None
    folder = working_folder(scope)
    for statement in statements:
        words = [text for word in statement.words for text in expand_word(word, scope)]
        if statement is statements[-1]:
            return answer(words, folder=folder)
        folder = absolute(words[1], folder) if words[:1] == ["cd"] and len(words) == 2 else None
        if folder is None:
            return None
    return None


def working_folder(scope: Scope) -> str | None:
    """The folder where the script stands, as far as it is known."""
    value = scope.variables.get("PWD")
    return value if isinstance(value, str) else None


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
    if part.change.startswith("length"):
        is_count = isinstance(value, tuple) and part.change[6:] in ("[@]", "[*]")
        return [str(len(values) if is_count else len(values[0] if values else ""))]
    if part.change.startswith("[") and part.change[1:-1].isdecimal():
        return values[int(part.change[1:-1]) :][:1] or [""]
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
    if name in ("0", "BASH_SOURCE"):
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
                code="argument-not-given",
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
            code="variable-not-set",
            mark=part.mark,
            hint=f"{near} Or {hint}" if near else hint,
        )
    )


def _changed(text: str, part: Parameter, scope: Scope) -> str:
    change = part.change
    if len(text) > MAX_PATTERN_TEXT and change not in ("^^", ",,"):
        message = f"a pattern on a value longer than {MAX_PATTERN_TEXT:,} characters"
        raise UnknownValue(Problem(message, code="script-too-large", mark=part.mark))
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
            raise UnknownValue(Problem(message, code="script-too-large", mark=part.mark))
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
            code="expansion-not-evaluated",
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
            Problem("a pattern longer than 200 characters", code="script-too-large", mark=mark)
        )
    translated = fnmatch.translate(written)
    return re.compile(translated.removesuffix(r"\Z"), re.DOTALL)
