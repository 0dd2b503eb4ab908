"""Values of shell words: variables, patterns, arithmetic, and commands whose output follows from their words.

Nothing is executed; what only a shell could tell is a problem in the value's place.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llava_recipes.errors import Mark, Problem, RecipeError
from llava_recipes.migrate.shell_syntax import (
    ARITHMETIC,
    Computed,
    Parameter,
    Part,
    Plain,
    Word,
    read_quoted,
    read_statements,
)
from llava_recipes.recipe.renames import did_you_mean

MAX_CHARACTERS = 20_000
MAX_KEPT_CHARACTERS = 2_000_000
MAX_PATTERN_TEXT = 2_000
MAX_PATTERN = 200
MAX_SUM_CHARACTERS = 500
MAX_SUM_DEPTH = 30
MAX_OPERANDS = 10_000
MAX_DEEP = 8
"""How many substitutions inside each other are computed."""

_TOKEN = re.compile(r"[0-9]+|[A-Za-z_][A-Za-z0-9_]*|\+\+|--|\S")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
"""A leading zero would make it octal."""
_TIGHTNESS = {"+": 1, "-": 1, "*": 2, "/": 2, "%": 2}
_OF_EXPR = re.compile(r"[-+*/%()]|-?[0-9]+")


class UnknownValue(Exception):
    """A value that cannot be told without running the script."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class NotComputed(Exception):
    """An expression outside of what is computed here, or without a value; the message says why."""


Value = str | tuple[str, ...] | UnknownValue
"""Text, the entries of a list, or why it is not known."""


@dataclass
class Spent:
    """What a script and all that it calls have used of the limits."""

    kept_characters: int = 0
    calls: int = 0
    operands: int = 0


@dataclass
class Variables:
    """The variables of a script as they stand while it is read, and its arguments from `$1` on."""

    file: str
    positional: tuple[str, ...]
    values: dict[str, Value]
    given: frozenset[str]
    """Names of those that come from outside, and win."""
    spent: Spent
    depth: int = 0
    """How deep inside arithmetic and command substitutions."""

    @property
    def folder(self) -> str | None:
        """The folder where the script stands, as far as it is known."""
        value = self.values.get("PWD")
        return value if isinstance(value, str) else None

    def look_up(self, name: str) -> Value | None:
        if name in ("@", "*"):
            return self.positional
        if name == "#":
            return str(len(self.positional))
        if name in ("0", "BASH_SOURCE"):
            return self.file
        if name.isdigit():
            number = int(name[:9])
            return self.positional[number - 1] if number <= len(self.positional) else None
        return self.values.get(name)

    def keep(self, name: str, value: Value, mark: Mark) -> None:
        """Set a variable, unless it is given. Raises RecipeError where too much is kept."""
        if name in self.given:
            return
        if not isinstance(value, UnknownValue):
            self.spent.kept_characters += len(value) if isinstance(value, str) else sum(map(len, value))
        if self.spent.kept_characters > MAX_KEPT_CHARACTERS:
            message = f"the variables hold more than {MAX_KEPT_CHARACTERS:,} characters"
            raise RecipeError.of(message, code="script-too-large", mark=mark)
        self.values[name] = value

    def forget(self, name: str, mark: Mark, why: str) -> None:
        message = f"the value of the variable `{name}` is needed and not known: {why}"
        self.keep(name, _unknown(message, "value-not-computed", mark, f"give it: --var {name}=VALUE"), mark)


def _unknown(
    message: str, code: str, mark: Mark | None, hint: str | None = None, found: str | None = None
) -> UnknownValue:
    return UnknownValue(Problem(message, code=code, mark=mark, found=found, hint=hint))


def expand_text(parts: Sequence[Part], variables: Variables) -> str:
    """The text of an assignment's value: never split."""
    text = ""
    for part in parts:
        text = _bounded(text + " ".join(_texts(part, variables)), parts)
    return text


def expand_word(word: Word, variables: Variables) -> list[str]:
    """The arguments that a word becomes: none, one, or several where an unquoted value holds spaces."""
    fields: list[str] = []
    current: str | None = None
    for part in word.parts:
        texts = _texts(part, variables)
        if isinstance(part, Plain) or part.quoted:
            for index, text in enumerate(texts):
                if index:
                    fields.append(current or "")
                    current = ""
                current = _bounded((current or "") + text, word.parts)
            continue
        for text in texts:
            pieces = text.split()
            if pieces and current is not None and not text[:1].isspace():
                current = _bounded(current + pieces.pop(0), word.parts)
            for piece in pieces:
                if current is not None:
                    fields.append(current)
                current = piece
            if text[-1:].isspace() and current is not None:
                fields.append(current)
                current = None
    return fields if current is None else [*fields, current]


def _bounded(text: str, parts: Sequence[Part]) -> str:
    if len(text) > MAX_CHARACTERS:
        raise _too_large(f"a value longer than {MAX_CHARACTERS:,} characters", parts)
    return text


def _too_large(message: str, parts: Sequence[Part]) -> UnknownValue:
    mark = next((part.mark for part in parts if not isinstance(part, Plain)), None)
    return _unknown(message, "script-too-large", mark)


def _texts(part: Part, variables: Variables) -> Sequence[str]:
    if isinstance(part, Plain):
        return [part.text]
    if isinstance(part, Computed):
        return [_computed(part, variables)]
    return _parameter(part, variables)


def _known(value: Value) -> Sequence[str]:
    if isinstance(value, UnknownValue):
        raise value
    return value if isinstance(value, tuple) else [value]


def _parameter(part: Parameter, variables: Variables) -> Sequence[str]:
    value, change = variables.look_up(part.name), part.change
    if change.lstrip(":") in ("-", "=", "+", "?"):
        is_set = value is not None and not (change[0] == ":" and value in ("", ()))
        if change[-1] == "+":
            return [expand_text(part.first, variables) if is_set else ""]
        if not is_set and change[-1] != "?":
            return [expand_text(part.first, variables)]
        value, change = value if is_set else None, f"[{part.name}]" if part.name in ("@", "*") else ""
    if value is None:
        raise _unset(part, variables)
    texts = _known(value)
    if change.startswith("length"):
        return [str(len(texts) if change != "length" else len("".join(texts[:1])))]
    if change == "[*]" and part.quoted:
        return [" ".join(texts)]
    if change in ("[@]", "[*]"):
        return texts
    if change.startswith("[") and change != "[":
        return texts[int(change[1:-1]) :][:1] or [""]
    text = "".join(texts[:1])
    return [_changed(text, part, variables) if change else text]


def _unset(part: Parameter, variables: Variables) -> UnknownValue:
    if part.name.isdigit():
        number = len(variables.positional)
        found = f"{number or 'no'} {'argument is' if number < 2 else 'arguments are'} given"
        hint = "give the script's arguments in their order, each with `--arg VALUE`"
        message = f"the script's argument ${part.name} is needed"
        return _unknown(message, "argument-not-given", part.mark, hint, found)
    near = did_you_mean(part.name, variables.values)
    hint = f"{near} Or give it" if near else "give it"
    message = f"nothing in the script sets the variable `{part.name}`"
    return _unknown(message, "variable-not-set", part.mark, f"{hint}: --var {part.name}=VALUE")


def _changed(text: str, part: Parameter, variables: Variables) -> str:
    """A value with a pattern cut off its start or end, or replaced in it."""
    change = part.change
    if change not in ("#", "##", "%", "%%", "/", "//") or _is_anchored(part):
        message = f"the expansion `${{{part.name}{change}…}}` is not evaluated, and its value is needed"
        raise _unknown(message, "expansion-not-evaluated", part.mark, "write the value in its place")
    if len(text) > MAX_PATTERN_TEXT:
        raise _too_large(f"a pattern on a value longer than {MAX_PATTERN_TEXT:,} characters", (part,))
    pattern = _pattern(part.first, variables)
    if change[0] == "/":
        replacement = expand_text(part.second, variables)
        if len(replacement) > MAX_PATTERN_TEXT:
            raise _too_large(f"a replacement longer than {MAX_PATTERN_TEXT:,} characters", (part,))
        if not expand_text(part.first, variables):
            return text
        return pattern.sub(lambda _: replacement, text, count=1 if change == "/" else 0)
    places = range(len(text) + 1)
    if change[0] == "#":
        ends = reversed(places) if change == "##" else places
        return next((text[end:] for end in ends if pattern.fullmatch(text[:end])), text)
    starts = places if change == "%%" else reversed(places)
    return next((text[:start] for start in starts if pattern.fullmatch(text[start:])), text)


def _is_anchored(part: Parameter) -> bool:
    """`${NAME/#…}` and `${NAME/%…}`, which replace at the start or the end alone."""
    first = part.first[0] if part.first else None
    return (
        part.change == "/" and isinstance(first, Plain) and not first.quoted and first.text[:1] in ("#", "%")
    )


def _pattern(parts: Sequence[Part], variables: Variables) -> re.Pattern[str]:
    """A shell pattern as a regular expression; quoted text stands for itself."""
    written = ""
    for part in parts:
        text = expand_text((part,), variables)
        is_literal = not isinstance(part, Plain) or part.quoted
        written += re.sub(r"[*?[]", r"[\g<0>]", text) if is_literal else text
    if len(written) > MAX_PATTERN:
        raise _too_large(f"a pattern longer than {MAX_PATTERN} characters", parts)
    # Without the end that fnmatch asks for, which is spelled in two ways.
    return re.compile(fnmatch.translate(written)[:-2], re.DOTALL)


def _computed(part: Computed, variables: Variables) -> str:
    """The value of arithmetic or of a command substitution, where it follows from values that are known."""
    why = ""
    if part.source and variables.depth < MAX_DEEP:
        inside = replace(variables, depth=variables.depth + 1)
        try:
            if part.what == ARITHMETIC:
                return str(compute(part.source, inside))
            found = _printed(part.source, inside)
            if found is not None:
                return found.rstrip("\n")
        except NotComputed as reason:
            why = str(reason)
        except UnknownValue as unknown:
            if any(value is unknown for value in variables.values.values()):
                raise
            # What is read inside has places of its own, which the script has not.
            raise UnknownValue(replace(unknown.problem, mark=part.mark)) from None
        except RecipeError:
            pass
    message = f"{part.what} is not evaluated, and its value is needed"
    hint = "write the value in its place; a script is read here, never run"
    raise _unknown(message, "value-not-evaluated", part.mark, hint, why or None)


def compute(source: str, variables: Variables) -> int:
    """The value of an arithmetic expression; raises NotComputed, UnknownValue or RecipeError."""
    text = expand_text(read_quoted(source, variables.file), variables)
    return _Sum(text, variables).whole()


class _Sum:
    """Whole numbers with `+ - * / %` and brackets; a variable in it may hold another expression."""

    def __init__(self, text: str, variables: Variables, depth: int = 0) -> None:
        if len(text) > MAX_SUM_CHARACTERS:
            raise NotComputed(f"longer than {MAX_SUM_CHARACTERS} characters")
        self._variables, self._depth = variables, depth
        self._tokens: list[str] = [*_TOKEN.findall(text), ""]
        self._at = 0

    def whole(self) -> int:
        value = self._sum(0, self._depth) if len(self._tokens) > 1 else 0
        if self._tokens[self._at]:
            raise NotComputed(f"`{self._tokens[self._at]}` is not read here")
        return value

    def _next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]

    def _sum(self, tightness: int, depth: int) -> int:
        left = self._operand(depth + 1)
        while _TIGHTNESS.get(self._tokens[self._at], 0) > tightness:
            sign = self._next()
            right = self._sum(_TIGHTNESS[sign], depth + 1)
            if sign in "/%" and right == 0:
                raise NotComputed("a division by zero")
            # Bash cuts off towards zero, Python downwards.
            quotient = (
                abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1) if sign in "/%" else 0
            )
            left = {
                "+": left + right,
                "-": left - right,
                "*": left * right,
                "/": quotient,
                "%": left - quotient * right,
            }[sign]
            if not -(2**63) <= left < 2**63:
                raise NotComputed("a number that needs more than 64 bits")
        return left

    def _operand(self, depth: int) -> int:
        self._variables.spent.operands += 1
        if depth > MAX_SUM_DEPTH or self._variables.spent.operands > MAX_OPERANDS:
            raise NotComputed("nested too deeply, or with too many numbers")
        token = self._next()
        if token in ("-", "+"):
            return self._operand(depth + 1) * (-1 if token == "-" else 1)
        if token == "(":
            inside = self._sum(0, depth + 1)
            if self._next() != ")":
                raise NotComputed("a bracket that is not closed")
            return inside
        if _NUMBER.fullmatch(token):
            return int(token)
        if not token.isidentifier():
            raise NotComputed(f"`{token}` is not read here" if token else "a number is missing at its end")
        value = self._variables.look_up(token)
        if value is None:
            raise NotComputed(f"nothing in the script sets the variable `{token}`")
        return _Sum("".join(_known(value)[:1]), self._variables, depth).whole()


def _printed(source: str, variables: Variables) -> str | None:
    """What a command prints, alone or behind `cd FOLDER &&`; None where only a shell could tell."""
    statements = list(read_statements(source, variables.file))
    for statement in statements:
        words = [text for word in statement.words for text in expand_word(word, variables)]
        is_last = statement is statements[-1]
        if statement.block or statement.ended_by not in ("", "\n", ";", "&&") or not words:
            return None
        if is_last:
            return answer(words, variables) if statement.prints else None
        if words[0] != "cd" or len(words) != 2:
            return None
        folder = absolute(words[1], variables.folder)
        if folder is None:
            return None
        variables = replace(variables, values={**variables.values, "PWD": folder})
    return None


def answer(words: Sequence[str], variables: Variables) -> str | None:
    """What a command prints, without the line break at its end; None for any command that is not known.

    A link is taken for what it says.
    """
    name, *rest = words
    if name == "expr" and rest and all(map(_OF_EXPR.fullmatch, rest)):
        return str(_Sum(" ".join(rest), variables).whole())
    if name == "pwd":
        return variables.folder if rest in ([], ["-P"], ["-L"]) else None
    if name == "echo":
        plain = rest[1:] if rest[:1] == ["-n"] else rest
        return None if any("\\" in word or word[:1] == "-" for word in plain) else " ".join(plain)
    options = [word for word in rest[:-1] if word[:1] == "-" and word != "--"]
    operands = [word for word in rest if word not in (*options, "--")]
    path = operands[0] if operands else ""
    is_alone = len(operands) == 1 and path[:1] != "-"
    if is_alone and path and (name == "realpath" or (name == "readlink" and {"-f", "-m", "-e"} & {*options})):
        return absolute(path, variables.folder)
    bare = path.rstrip("/") or path[:1]
    if options:
        return None
    if name == "dirname" and is_alone:
        return posixpath.dirname(bare).rstrip("/") or ("/" if path[:1] == "/" else ".")
    if name == "basename" and (is_alone or len(operands) == 2):
        last = posixpath.basename(bare) or bare
        return last.removesuffix(operands[1]) if len(operands) == 2 and last != operands[1] else last
    return None


def absolute(path: str, folder: str | None) -> str | None:
    """A path from the root, without `..` in it; None where the working folder is not known."""
    if not path.startswith("/"):
        if folder is None or path.startswith("~"):
            return None
        path = posixpath.join(folder, path)
    # POSIX leaves the meaning of two slashes at the start open; Linux gives them none.
    return "/" + posixpath.normpath(path).lstrip("/")
