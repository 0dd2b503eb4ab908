"""One XTuner config, looked up by dotted names, on its way into a draft."""

from __future__ import annotations

from llava_recipes.migrate.draft import Draft
from llava_recipes.migrate.python_config import PythonConfig, PythonValue, Symbol, Unknown
from llava_recipes.recipe.errors import KeyPath, Mark, Problem
from llava_recipes.recipe.scalars import Value


class Reader:
    """The config and the draft that it fills."""

    def __init__(self, config: PythonConfig) -> None:
        self.config, self.draft = config, Draft()

    def look_up(self, name: str) -> PythonValue:
        """The value at a dotted name, None where there is none; a value that is not known is a problem."""
        root, *keys = name.split(".")
        value = self.config.values.get(root)
        for key in keys:
            if not isinstance(value, Unknown):
                value = value.get(key) if isinstance(value, dict) else None
        return self.known(value, name)

    def known(self, value: PythonValue, name: str) -> PythonValue:
        """A value, or None with a problem where only running the config would tell it."""
        if isinstance(value, Unknown):
            self.draft.problems.append(not_known(name, value.mark))
            return None
        return value

    def number(self, name: str) -> int | float | None:
        value = self.look_up(name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def put(self, name: str, path: KeyPath, value: Value, *, default: Value = None, remark: str = "") -> None:
        """A setting of the config under its key, or the value it has there when it is left out."""
        if value is not None:
            self.draft.mapped(name, str(value), path, value, remark=remark, mark=self.mark(name))
        elif default is not None:
            self.draft.default(name, path, default, remark=remark)

    def mark(self, name: str) -> Mark | None:
        return self.config.marks.get(name.partition(".")[0])

    def text(self, name: str) -> str | None:
        value = self.look_up(name)
        return value if isinstance(value, str) else None

    def symbol(self, name: str) -> str:
        value = self.look_up(name)
        return value.name.rpartition(".")[2] if isinstance(value, Symbol) else ""


def not_known(name: str, mark: Mark) -> Problem:
    """The problem with a value that only running the config would tell."""
    return Problem(
        f"the value of `{name}` cannot be told without running the config",
        code="value-not-computed",
        mark=mark,
        hint="write the value in its place",
    )
