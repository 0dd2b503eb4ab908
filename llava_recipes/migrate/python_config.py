"""Read a config that is written as Python assignments, from its syntax tree. Nothing is executed."""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llava_recipes.recipe.errors import Mark, Problem, RecipeError

MAX_NUMBER = 1e15
MAX_CHARACTERS = 10_000
MAX_ENTRIES = 50_000


@dataclass(frozen=True)
class Symbol:
    """A name that stands for something outside the file: a class, a function, a template."""

    name: str


@dataclass(frozen=True)
class Unknown:
    """A value that only running the file would tell."""

    mark: Mark


PythonValue = (
    bool | int | float | str | None | Symbol | Unknown | list["PythonValue"] | dict[str, "PythonValue"]
)


def spell_python(value: PythonValue) -> str:
    """A value as it is written about; what is long or holds others is cut."""
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
    """The top-level names of a config with their values, and where each was set."""

    values: Mapping[str, PythonValue]
    marks: Mapping[str, Mark]


def read_python_config(text: str, file: str) -> PythonConfig:
    """The assignments of a config file; raises RecipeError where it is not Python."""
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
                mark = self._mark(statement)
                hint = "write the values of the parent config into one file"
                raise RecipeError(
                    Problem(
                        "a config over other configs is not followed",
                        code="base-configs-not-followed",
                        mark=mark,
                        hint=hint,
                    )
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
            # `model["freeze_llm"] = True`, also deeper inside.
            owner = self._value(target.value, 0)
            key = target.slice.value if isinstance(target.slice, ast.Constant) else None
            if isinstance(owner, dict) and isinstance(key, str):
                owner[key] = value
            else:
                self._forget(target)
        else:
            self._forget(target)

    def _forget(self, node: ast.AST) -> None:
        """Whatever a condition, a loop, a call or a target of another kind may set is not known any more."""
        if isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
        ):
            return
        for inner in ast.walk(node):
            is_set = isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store | ast.Del)
            is_inside = isinstance(inner, ast.Subscript | ast.Attribute) and isinstance(
                inner.ctx, ast.Store | ast.Del
            )
            is_call = isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute)
            if not (is_set or is_inside or is_call):
                continue
            root: ast.AST = inner.func if isinstance(inner, ast.Call) else inner
            while isinstance(root, ast.Subscript | ast.Attribute | ast.Call):
                root = root.func if isinstance(root, ast.Call) else root.value
            if isinstance(root, ast.Name) and (is_set or root.id in self._values):
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
            column = min(max(error.offset or 1, 1), len(text) + 1)
            mark = Mark(self._file, line, column, 1, text)
            raise RecipeError(
                Problem(f"this is not Python: {error.msg}", code="not-python", mark=mark)
            ) from None
        except (ValueError, MemoryError, RecursionError) as error:
            reason = str(error) or "it is nested too deeply"
            mark = Mark(self._file, 0, 0)
            raise RecipeError(
                Problem(
                    "this is not Python that can be read",
                    code="not-python",
                    mark=mark,
                    found=reason,
                )
            ) from None

    def _mark(self, node: ast.stmt | ast.expr) -> Mark:
        text = self._lines[node.lineno - 1] if node.lineno <= len(self._lines) else ""
        column = len(text.encode()[: node.col_offset].decode("utf-8", "ignore"))
        same_line = node.end_lineno == node.lineno and node.end_col_offset is not None
        width = (node.end_col_offset or 0) - node.col_offset if same_line else len(text) - column
        return Mark(self._file, node.lineno, column + 1, max(1, width), text)

    def _value(self, node: ast.expr, depth: int) -> PythonValue:
        self._num_entries += 1
        if self._num_entries > MAX_ENTRIES:
            message = f"more than {MAX_ENTRIES:,} values in one config"
            raise RecipeError(Problem(message, code="script-too-large", mark=self._mark(node)))
        if depth > 50:
            raise RecipeError(
                Problem("nested deeper than 50 levels", code="script-too-large", mark=self._mark(node))
            )
        if isinstance(node, ast.Constant):
            value = node.value
            return (
                value
                if value is None or isinstance(value, bool | int | float | str)
                else Unknown(self._mark(node))
            )
        if isinstance(node, ast.Name):
            return self._values[node.id] if node.id in self._values else Symbol(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._value(node.value, depth + 1)
            return (
                Symbol(f"{owner.name}.{node.attr}")
                if isinstance(owner, Symbol)
                else Unknown(self._mark(node))
            )
        if isinstance(node, ast.List | ast.Tuple):
            return [self._value(entry, depth + 1) for entry in node.elts]
        if isinstance(node, ast.Dict):
            return self._mapping(node, depth)
        if isinstance(node, ast.Call):
            return self._call(node, depth)
        if isinstance(node, ast.BinOp | ast.UnaryOp):
            return self._sum(node, depth)
        if isinstance(node, ast.JoinedStr):
            return self._joined(node, depth)
        return Unknown(self._mark(node))

    def _mapping(self, node: ast.Dict, depth: int) -> PythonValue:
        values: dict[str, PythonValue] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
                return Unknown(self._mark(node))
            values[key.value] = self._value(value, depth + 1)
        return values

    def _call(self, node: ast.Call, depth: int) -> PythonValue:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "dict" and not node.args and all(keyword.arg for keyword in node.keywords):
            return {str(keyword.arg): self._value(keyword.value, depth + 1) for keyword in node.keywords}
        if name in ("int", "float") and len(node.args) == 1 and not node.keywords:
            value = self._value(node.args[0], depth + 1)
            if isinstance(value, int | float) and abs(value) <= MAX_NUMBER:
                return int(value) if name == "int" else float(value)
        return Unknown(self._mark(node))

    def _sum(self, node: ast.BinOp | ast.UnaryOp, depth: int) -> PythonValue:
        if isinstance(node, ast.UnaryOp):
            value = self._value(node.operand, depth + 1)
            if isinstance(node.op, ast.USub) and isinstance(value, int | float):
                return -value
            return Unknown(self._mark(node))
        left, right = self._value(node.left, depth + 1), self._value(node.right, depth + 1)
        if isinstance(left, str) and isinstance(right, str) and isinstance(node.op, ast.Add):
            return left + right if len(left) + len(right) <= MAX_CHARACTERS else Unknown(self._mark(node))
        compute = _OPERATORS.get(type(node.op))
        if compute is None or not isinstance(left, int | float) or not isinstance(right, int | float):
            return Unknown(self._mark(node))
        if abs(left) > MAX_NUMBER or abs(right) > MAX_NUMBER:
            return Unknown(self._mark(node))
        if isinstance(node.op, ast.Pow) and (abs(right) > 20 or abs(left) > 1e4):
            return Unknown(self._mark(node))
        try:
            result = compute(left, right)
        except (ArithmeticError, ValueError):
            return Unknown(self._mark(node))
        return result if isinstance(result, int | float) else Unknown(self._mark(node))

    def _joined(self, node: ast.JoinedStr, depth: int) -> PythonValue:
        text = ""
        for part in node.values:
            is_plain = (
                isinstance(part, ast.FormattedValue) and part.format_spec is None and part.conversion == -1
            )
            value = self._value(
                part.value if is_plain and isinstance(part, ast.FormattedValue) else part, depth + 1
            )
            if not isinstance(value, str | int | float) or len(text) > MAX_CHARACTERS:
                return Unknown(self._mark(node))
            text += str(value)
        return text
