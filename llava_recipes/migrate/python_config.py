"""Configs of Python assignments, read from their syntax tree. Nothing is executed."""

from __future__ import annotations

import ast
import contextlib
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llava_recipes.errors import Mark, Problem, RecipeError

MAX_NUMBER = 1e15
MAX_CHARACTERS = 10_000
MAX_ENTRIES = 50_000
MAX_DEPTH = 50


class _NotKnown(Exception):
    """A value that follows from running the file alone."""


@dataclass(frozen=True)
class Symbol:
    """The name of something outside the file: a class, a function, a template."""

    name: str


@dataclass(frozen=True)
class Unknown:
    """A value that is not known without running the file, at its place."""

    mark: Mark


PythonValue = (
    bool | int | float | str | None | Symbol | Unknown | list["PythonValue"] | dict[str, "PythonValue"]
)


def spell_python(value: PythonValue) -> str:
    """A value as messages write it; a long or nested one is cut."""
    if isinstance(value, Symbol):
        return value.name
    if isinstance(value, list) and len(value) < 8 and not any(isinstance(x, list | dict) for x in value):
        return "[" + ", ".join(spell_python(entry) for entry in value) + "]"
    return "…" if isinstance(value, Unknown | list | dict) else str(value)


_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


@dataclass(frozen=True)
class PythonConfig:
    """The values of a config's top-level names, and where each was set."""

    values: Mapping[str, PythonValue]
    marks: Mapping[str, Mark]


def read_python_config(text: str, file: str) -> PythonConfig:
    """The assignments of a config file; raises RecipeError if it isn't Python."""
    reader = _Reader(text, file)
    return PythonConfig(reader.read(), reader.marks)


class _Reader:
    def __init__(self, text: str, file: str) -> None:
        self._text, self._file, self._lines = text, file, text.splitlines()
        self._values: dict[str, PythonValue] = {}
        self._num_entries = 0
        self.marks: dict[str, Mark] = {}

    def read(self) -> dict[str, PythonValue]:
        for statement in self._parse().body:
            if isinstance(statement, ast.Assign):
                targets, value = statement.targets, statement.value
            elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
                targets, value = [statement.target], statement.value
            elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
                before = ast.copy_location(ast.Name(statement.target.id, ast.Load()), statement.target)
                sum_of_both = ast.BinOp(before, statement.op, statement.value)
                targets, value = [statement.target], ast.copy_location(sum_of_both, statement)
            elif isinstance(statement, ast.With):
                # mmengine reads parent configs inside `with read_base():`.
                raise RecipeError.of(
                    "parent configs are not read",
                    code="base-configs-not-followed",
                    mark=self._mark(statement),
                    hint="write the values of the parent configs into this file",
                )
            else:
                self._forget(statement)
                continue
            for target in targets:
                self._assign(target, self._value(value, 0))
        return self._values

    def _assign(self, target: ast.expr, value: PythonValue) -> None:
        if isinstance(target, ast.Name):
            self._values[target.id] = value
            self.marks[target.id] = self._mark(target)
        elif isinstance(target, ast.Subscript):
            # `model["freeze_llm"] = True`, also nested.
            owner = self._value(target.value, 0)
            key = target.slice.value if isinstance(target.slice, ast.Constant) else None
            if isinstance(owner, dict) and isinstance(key, str):
                owner[key] = value
            else:
                self._forget(target)
        else:
            self._forget(target)

    def _forget(self, node: ast.AST) -> None:
        """Make unknown whatever a condition, a loop, a call or another kind of target may set."""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return
        for inner in ast.walk(node):
            is_set = isinstance(getattr(inner, "ctx", None), ast.Store | ast.Del)
            is_call = isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute)
            root = inner
            while isinstance(root, ast.Subscript | ast.Attribute | ast.Call):
                root = root.func if isinstance(root, ast.Call) else root.value
            if (
                isinstance(root, ast.Name)
                and (is_set or is_call)
                and (root is inner or root.id in self._values)
            ):
                self._values[root.id] = Unknown(self._mark(root))
                self.marks[root.id] = self._mark(root)

    def _parse(self) -> ast.Module:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse(self._text, self._file)
        except SyntaxError as error:
            line = max(error.lineno or 1, 1)
            text = self._lines[line - 1] if line <= len(self._lines) else ""
            mark = Mark(self._file, line, min(max(error.offset or 1, 1), len(text) + 1), 1, text)
            problem = Problem(f"this is not Python: {error.msg}", code="not-python", mark=mark)
        except (ValueError, MemoryError, RecursionError) as error:
            mark, reason = Mark(self._file, 0, 0), str(error) or "it is nested too deeply"
            message = "this is not Python that can be read"
            problem = Problem(message, code="not-python", mark=mark, found=reason)
        raise RecipeError(problem)

    def _mark(self, node: ast.stmt | ast.expr) -> Mark:
        text = self._lines[node.lineno - 1] if node.lineno <= len(self._lines) else ""
        column = len(text.encode()[: node.col_offset].decode("utf-8", "ignore"))
        same_line = node.end_lineno == node.lineno and node.end_col_offset is not None
        width = (node.end_col_offset or 0) - node.col_offset if same_line else len(text) - column
        return Mark(self._file, node.lineno, column + 1, max(1, width), text)

    def _value(self, node: ast.expr, depth: int) -> PythonValue:
        """The value of an expression; `Unknown` if it isn't known without running the file."""
        self._num_entries += 1
        if self._num_entries > MAX_ENTRIES:
            raise self._too_large(f"more than {MAX_ENTRIES:,} values in one config", node)
        if depth > MAX_DEPTH:
            raise self._too_large(f"nested deeper than {MAX_DEPTH} levels", node)
        try:
            return self._computed(node, depth + 1)
        except _NotKnown:
            return Unknown(self._mark(node))

    def _too_large(self, message: str, node: ast.expr) -> RecipeError:
        return RecipeError.of(message, code="script-too-large", mark=self._mark(node))

    def _computed(self, node: ast.expr, depth: int) -> PythonValue:
        match node:
            case ast.Constant(bool() | int() | float() | str() | None as constant):
                return constant
            case ast.Name(name):
                return self._values[name] if name in self._values else Symbol(name)
            case ast.Attribute(inner, name):
                owner = self._value(inner, depth)
                if isinstance(owner, Symbol):
                    return Symbol(f"{owner.name}.{name}")
            case ast.List(entries) | ast.Tuple(entries):
                return [self._value(entry, depth) for entry in entries]
            case ast.Dict(keys, values):
                names = [key.value for key in keys if isinstance(key, ast.Constant)]
                if len(names) == len(values) and all(isinstance(name, str) for name in names):
                    return {
                        str(name): self._value(value, depth)
                        for name, value in zip(names, values, strict=True)
                    }
            case ast.Call(ast.Name("dict"), [], keywords) if all(keyword.arg for keyword in keywords):
                return {str(keyword.arg): self._value(keyword.value, depth) for keyword in keywords}
            case ast.Call(ast.Name("int" | "float" as name), [argument], []):
                value = self._value(argument, depth)
                if isinstance(value, int | float) and abs(value) <= MAX_NUMBER:
                    return int(value) if name == "int" else float(value)
            case ast.UnaryOp(ast.USub(), operand):
                value = self._value(operand, depth)
                if isinstance(value, int | float):
                    return -value
            case ast.BinOp(left, kind, right):
                return _joined_by(type(kind), self._value(left, depth), self._value(right, depth))
            case ast.JoinedStr(parts):
                return self._formatted(parts, depth)
        raise _NotKnown

    def _formatted(self, parts: list[ast.expr], depth: int) -> str:
        """The text of an f-string without format specifications."""
        text = ""
        for part in parts:
            match part:
                case ast.FormattedValue(inner, conversion=-1, format_spec=None):
                    value = self._value(inner, depth)
                case _:
                    value = self._value(part, depth)
            if not isinstance(value, str | int | float) or len(text) > MAX_CHARACTERS:
                raise _NotKnown
            text += str(value)
        return text


def _joined_by(kind: type[ast.operator], left: PythonValue, right: PythonValue) -> PythonValue:
    """Two strings joined, or the result of arithmetic; raises _NotKnown for anything else or too large."""
    if isinstance(left, str) and isinstance(right, str) and kind is ast.Add:
        if len(left) + len(right) <= MAX_CHARACTERS:
            return left + right
    elif kind in _OPERATORS and isinstance(left, int | float) and isinstance(right, int | float):
        is_small = abs(left) <= MAX_NUMBER and abs(right) <= MAX_NUMBER
        if is_small and (kind is not ast.Pow or (abs(right) <= 20 and abs(left) <= 1e4)):
            with contextlib.suppress(ArithmeticError, ValueError):
                result = _OPERATORS[kind](left, right)
                if isinstance(result, int | float):
                    return result
    raise _NotKnown
