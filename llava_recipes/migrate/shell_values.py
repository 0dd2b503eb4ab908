"""The values of shell words: variables, patterns, arithmetic, and commands about paths.

Nothing is executed; a value that is not known without a shell raises UnknownValue.
"""

from __future__ import annotations

import ast
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
"""The number of nested substitutions that are computed."""

_TOKEN = re.compile(r"\w+|\+\+|--|\*\*|\S")
_OPERAND = re.compile(r"0|[1-9][0-9]{0,17}|[A-Za-z_][A-Za-z0-9_]*")
"""A number or a variable; a leading zero would make a number octal."""
_SIGNS = "+-*/%()"
_OF_EXPR = re.compile(r"[-+*/%()]|-?[0-9]+")


class UnknownValue(Exception):
    """A value that isn't known without running the script."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class NotComputed(Exception):
    """An expression that has no value or is not supported; the message says why."""


Value = str | tuple[str, ...] | UnknownValue
"""Text, the entries of a list, or why it is not known."""


@dataclass
class Spent:
    """What a script and those that it calls have used of the limits."""

    kept_characters: int = 0
    calls: int = 0
    operands: int = 0


@dataclass
class Variables:
    """A script's variables while it is read, and its arguments from `$1` on."""

    file: str
    positional: tuple[str, ...]
    values: dict[str, Value]
    given: frozenset[str]
    """Names of variables from outside, which replace the script's."""
    spent: Spent
    depth: int = 0
    """The nesting of arithmetic and command substitutions."""

    @property
    def folder(self) -> str | None:
        """The working folder, if it is known."""
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
        """Set a variable, unless it is given. Raises RecipeError if the values become too large."""
        if name in self.given:
            return
        if not isinstance(value, UnknownValue):
            self.spent.kept_characters += len(value) if isinstance(value, str) else sum(map(len, value))
        if self.spent.kept_characters > MAX_KEPT_CHARACTERS:
            message = f"the variables contain more than {MAX_KEPT_CHARACTERS:,} characters"
            raise RecipeError.of(message, code="script-too-large", mark=mark)
        self.values[name] = value

    def forget(self, name: str, mark: Mark, why: str) -> None:
        """Make a variable unknown."""
        message = f"the value of the variable `{name}` is needed but not known: {why}"
        self.keep(name, _unknown(message, "value-not-computed", mark, f"add --var {name}=VALUE"), mark)


def _unknown(
    message: str, code: str, mark: Mark | None, hint: str | None = None, found: str | None = None
) -> UnknownValue:
    return UnknownValue(Problem(message, code=code, mark=mark, found=found, hint=hint))


def expand_text(parts: Sequence[Part], variables: Variables) -> str:
    """The text of an assignment's value, which is not split."""
    text = ""
    for part in parts:
        text = _bounded(text + " ".join(_texts(part, variables)), parts)
    return text


def expand_word(word: Word, variables: Variables) -> list[str]:
    """The arguments that a word becomes: none, one, or several if an unquoted value contains spaces."""
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
        hint = "pass the script's arguments in order, each as `--arg VALUE`"
        message = f"the script's argument ${part.name} is needed"
        return _unknown(message, "argument-not-given", part.mark, hint, found)
    near = did_you_mean(part.name, variables.values)
    hint = f"{near} Or add" if near else "add"
    message = f"nothing in the script sets the variable `{part.name}`"
    return _unknown(message, "variable-not-set", part.mark, f"{hint} --var {part.name}=VALUE")


def _changed(text: str, part: Parameter, variables: Variables) -> str:
    """A value with a pattern removed from its start or end, or replaced in it."""
    change = part.change
    if change not in ("#", "##", "%", "%%", "/", "//") or _is_anchored(part):
        message = f"the expansion `${{{part.name}{change}…}}` is needed but not evaluated"
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
    """A shell pattern as a regular expression; quoted text is literal."""
    written = ""
    for part in parts:
        text = expand_text((part,), variables)
        is_literal = not isinstance(part, Plain) or part.quoted
        written += re.sub(r"[*?[]", r"[\g<0>]", text) if is_literal else text
    if len(written) > MAX_PATTERN:
        raise _too_large(f"a pattern longer than {MAX_PATTERN} characters", parts)
    # Without fnmatch's end of string, which versions of Python write as \Z or \z.
    return re.compile(fnmatch.translate(written)[:-2], re.DOTALL)


def _computed(part: Computed, variables: Variables) -> str:
    """The value of arithmetic or of a command substitution that follows from known values."""
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
            # Places inside of the substitution aren't places in the script.
            raise UnknownValue(replace(unknown.problem, mark=part.mark)) from None
        except RecipeError:
            pass
    message = f"the value of {part.what} is needed but not evaluated"
    hint = "write the value in its place; scripts are read, never run"
    raise _unknown(message, "value-not-evaluated", part.mark, hint, why or None)


def compute(source: str, variables: Variables) -> int:
    """The value of an arithmetic expression; raises NotComputed, UnknownValue or RecipeError."""
    return _sum_of(expand_text(read_quoted(source, variables.file), variables), variables)


def _sum_of(text: str, variables: Variables, depth: int = 0) -> int:
    """The value of integers with `+ - * / %` and parentheses, and of variables that contain such text."""
    if len(text) > MAX_SUM_CHARACTERS:
        raise NotComputed(f"longer than {MAX_SUM_CHARACTERS} characters")
    tokens = _TOKEN.findall(text)
    other = next((token for token in tokens if not _OPERAND.fullmatch(token) and token not in _SIGNS), None)
    if other is not None:
        raise NotComputed(f"`{other}` is not supported here")
    try:
        # A name may be a keyword of Python.
        named = " ".join(f"_{token}" if token.isidentifier() else token for token in tokens)
        return _value_of(ast.parse(named or "0", mode="eval").body, variables, depth)
    except SyntaxError:
        raise NotComputed("this is not a complete expression") from None
    except (MemoryError, RecursionError):
        raise NotComputed("nested too deeply") from None


def _value_of(node: ast.expr, variables: Variables, depth: int) -> int:
    variables.spent.operands += 1
    if depth > MAX_SUM_DEPTH or variables.spent.operands > MAX_OPERANDS:
        raise NotComputed("nested too deeply, or with too many numbers")
    match node:
        case ast.Constant(int() as value):
            return value
        case ast.Name(name):
            known = variables.look_up(name[1:])
            if known is None:
                raise NotComputed(f"nothing in the script sets the variable `{name[1:]}`")
            return _sum_of("".join(_known(known)[:1]), variables, depth + 1)
        case ast.UnaryOp(sign, operand):
            value = _value_of(operand, variables, depth + 1)
            return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left_node, sign, right_node):
            left, right = (_value_of(side, variables, depth + 1) for side in (left_node, right_node))
        case _:
            raise NotComputed("this is not a complete expression")
    if isinstance(sign, ast.Add | ast.Sub):
        value = left + right if isinstance(sign, ast.Add) else left - right
    elif isinstance(sign, ast.Mult):
        value = left * right
    elif right == 0:
        raise NotComputed("a division by zero")
    else:
        # Bash rounds toward zero, Python down.
        quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
        value = quotient if isinstance(sign, ast.Div) else left - quotient * right
    if not -(2**63) <= value < 2**63:
        raise NotComputed("a number that needs more than 64 bits")
    return value


def _printed(source: str, variables: Variables) -> str | None:
    """What a command prints, alone or after `cd FOLDER &&`; None if that isn't known without a shell."""
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
    """What a command prints, without the final line break; None for an unknown command.

    Symbolic links are not resolved.
    """
    name, *rest = words
    if name == "expr" and rest and all(map(_OF_EXPR.fullmatch, rest)):
        return str(_sum_of(" ".join(rest), variables))
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
    """An absolute path without `..`; None if the working folder is not known."""
    if not path.startswith("/"):
        if folder is None or path.startswith("~"):
            return None
        path = posixpath.join(folder, path)
    # On Linux two slashes at the start mean the same as one.
    return "/" + posixpath.normpath(path).lstrip("/")
