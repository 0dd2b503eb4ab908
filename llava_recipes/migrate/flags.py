"""The flags of one training command, read as the types that its program gives them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from llava_recipes.migrate.commands import Flag
from llava_recipes.recipe.errors import Problem

_TRUE = frozenset({"yes", "true", "t", "y", "1"})
_FALSE = frozenset({"no", "false", "f", "n", "0"})


class Flags:
    """Each read method gives None for a flag that is not there, and notes a value of the wrong type."""

    def __init__(self, flags: Mapping[str, Flag]) -> None:
        self._flags = flags
        self._read: set[str] = set()
        self.problems: list[Problem] = []

    def __contains__(self, name: str) -> bool:
        return name in self._flags

    def __getitem__(self, name: str) -> Flag:
        return self._flags[name]

    def unread(self) -> list[Flag]:
        """Flags that nobody has asked for, in their order."""
        return [flag for name, flag in self._flags.items() if name not in self._read]

    def take(self, name: str) -> Flag | None:
        """A flag with whatever values it has."""
        self._read.add(name)
        return self._flags.get(name)

    def text(self, name: str) -> str | None:
        flag = self.take(name)
        if flag is None:
            return None
        if len(flag.values) == 1:
            return flag.values[0]
        wanted = "a value" if not flag.values else "one value"
        self._refuse(flag, wanted, "put a value that holds spaces in quotes" if flag.values else None)
        return None

    def texts(self, name: str) -> tuple[str, ...]:
        """One value or several, none where the flag is left out or empty."""
        flag = self.take(name)
        if flag is not None and not flag.values:
            self._refuse(flag, "a value")
        return flag.values if flag is not None else ()

    def number(self, name: str) -> float | None:
        text = self.text(name)
        if text is None:
            return None
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or len(text) > 100:
            self._refuse(self._flags[name], "a number")
            return None
        return number

    def whole(self, name: str) -> int | None:
        text = self.text(name)
        if text is None:
            return None
        if text.lstrip("+-").isascii() and text.lstrip("+-").isdigit() and len(text) < 19:
            return int(text)
        self._refuse(self._flags[name], "a whole number")
        return None

    def switch(self, name: str) -> bool | None:
        """`--flag` alone is true, as in Hugging Face's parser."""
        if name in self._flags and not self._flags[name].values:
            self._read.add(name)
            return True
        text = self.text(name)
        if text is None:
            return None
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        self._refuse(self._flags[name], "True or False")
        return None

    def _refuse(self, flag: Flag, wanted: str, hint: str | None = None) -> None:
        message = f"`--{flag.name}` takes {wanted}"
        self.problems.append(
            Problem(
                message,
                code="value-of-wrong-kind",
                mark=flag.value_mark,
                found=flag.text or "nothing",
                hint=hint,
            )
        )
