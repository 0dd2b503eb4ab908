"""One interface to another program's settings: a command's flags, YAML keys, the tree of a Python config.

A program's translation is a table of rows, and functions for what a table cannot express. Each setting is
reported through `Settings`, and `finish` reports the rest, so that each is in exactly one section.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import ClassVar, Literal, NamedTuple

from llava_recipes.errors import Mark, Problem
from llava_recipes.migrate.commands import Flag
from llava_recipes.migrate.draft import Draft, Entry
from llava_recipes.recipe.renames import did_you_mean
from llava_recipes.recipe.scalars import Value, spell_value
from llava_recipes.recipe.source import Document

Kind = Literal["text", "number", "whole", "switch"]

_TRUE = frozenset({"yes", "true", "t", "y", "1"})
_FALSE = frozenset({"no", "false", "f", "n", "0"})


class Row(NamedTuple):
    """A setting that has a key, and the other program's default."""

    name: str
    path: str
    kind: Kind
    default: Value = None
    remark: str = ""
    """On the default."""


class Settings(ABC):
    """The settings of one stage, and the draft that they fill."""

    source: ClassVar[Literal["script", "file"]] = "file"

    def __init__(self) -> None:
        self.draft = Draft(source=self.source)
        self.taken: dict[str, None] = {}
        """Names that the translation has asked for, set or not, in order."""

    @abstractmethod
    def names(self) -> Collection[str]:
        """The names of all settings, in the file's order."""

    @abstractmethod
    def __contains__(self, name: str) -> bool: ...

    @abstractmethod
    def read(self, name: str, kind: Kind) -> Value:
        """The value as a kind; None if it is left out or of another kind."""

    @abstractmethod
    def spell(self, name: str) -> str:
        """The value as the file writes it."""

    @abstractmethod
    def mark(self, name: str) -> Mark | None:
        """The setting's place."""

    def label(self, name: str) -> str:
        """The name as messages write it."""
        return name

    def why_off(self, name: str) -> str:
        """Why a setting counts as left out; empty if it doesn't."""
        return ""

    def translate(self, rows: Iterable[Row]) -> None:
        """Put the settings of a table's rows, or their defaults."""
        for name, path, kind, default, remark in rows:
            value = self.read(name, kind)
            if value is not None:
                self.put(name, path, value)
            elif default is not None and name not in self:
                self.default(name, path, default, remark)

    def put(self, name: str, path: str, value: Value, remark: str = "", *, shown: str | None = None) -> None:
        """Set a key from a setting."""
        self.draft.put(path, value)
        self.mapped(name, path, remark, shown=shown)

    def mapped(self, name: str, path: str, remark: str = "", *, shown: str | None = None) -> None:
        """Report a setting that has a key, whose value is set elsewhere."""
        shown = self.spell(name) if shown is None else shown
        self.draft.entries.append(Entry("mapped", self.label(name), shown, path, remark, self.mark(name)))

    def default(self, name: str, path: str, value: Value, remark: str = "") -> None:
        """State the default of a setting that was left out."""
        self.draft.default(self.label(name), path, value, remark=remark)

    def needless(self, name: str, why: str, *, shown: str | None = None) -> None:
        """Report a setting without which nothing is lost, unless it is left out."""
        self.taken[name] = None
        if name in self or name in self.names() or shown is not None:
            shown = self.spell(name) if shown is None else shown
            self.draft.report("needless", self.label(name), shown, why, self.mark(name))

    def lost(self, name: str, why: str, *, shown: str | None = None, path: str = "") -> None:
        """Report a setting without which the run differs; `path` is the nearest key."""
        self.taken[name] = None
        shown = self.spell(name) if shown is None else shown
        self.draft.entries.append(Entry("lost", self.label(name), shown, path, why, self.mark(name)))

    def left_over(self) -> list[str]:
        """Settings that the translation has not asked for."""
        return [name for name in self.names() if name not in self.taken]

    def finish(self) -> None:
        """Report the settings that nothing was reported of, and each setting in one section."""
        reported = {entry.name for entry in self.draft.entries}
        for name in self.names():
            if self.label(name) in reported:
                continue
            if why := self.why_off(name):
                self.needless(name, why)
            else:
                self.lost(name, "it is not translated")
        self.draft.settle()

    def refuse_conversation(
        self, word: str, known: Iterable[str], mark: Mark | None, *, what: str, found: str
    ) -> None:
        """Add the problem that no template of ours writes a conversation's text; `known` have one."""
        near, names = did_you_mean(word, known), ", ".join(dict.fromkeys(known))
        hint = f"if one of these conversations has the same text, write its name here: {names}"
        self.draft.problems.append(
            Problem(
                f"recipes have no template for {what}",
                code="unknown-conversation",
                mark=mark,
                found=found,
                hint=f"{near} Or, {hint}" if near else hint,
            )
        )


class Flags(Settings):
    """The flags of one command; reading a value of the wrong kind adds a problem."""

    source = "script"

    def __init__(self, flags: Mapping[str, Flag]) -> None:
        super().__init__()
        self._flags = flags

    def __contains__(self, name: str) -> bool:
        return name in self._flags

    def __getitem__(self, name: str) -> Flag:
        return self._flags[name]

    def names(self) -> Collection[str]:
        return self._flags

    def label(self, name: str) -> str:
        return f"--{name}"

    def spell(self, name: str) -> str:
        return self._flags[name].text if name in self._flags else ""

    def mark(self, name: str) -> Mark | None:
        return self._flags[name].mark if name in self._flags else None

    def mapped(self, name: str, path: str, remark: str = "", *, shown: str | None = None) -> None:
        is_alone = shown is None and name in self._flags and not self._flags[name].values
        super().mapped(name, path, remark, shown="True" if is_alone else shown)

    def take(self, name: str) -> Flag | None:
        """A flag with any values; None if it is left out."""
        self.taken[name] = None
        return self._flags.get(name)

    def read(self, name: str, kind: Kind) -> Value:
        readers = {"text": self.text, "number": self.number, "whole": self.whole, "switch": self.switch}
        return readers[kind](name)

    def text(self, name: str) -> str | None:
        """The one value."""
        flag = self.take(name)
        if flag is None:
            return None
        if len(flag.values) == 1:
            return flag.values[0]
        wanted = "a value" if not flag.values else "one value"
        self._refuse(flag, wanted, "put a value that contains spaces in quotes" if flag.values else None)
        return None

    def texts(self, name: str) -> tuple[str, ...]:
        """All values; none if the flag is left out or empty."""
        flag = self.take(name)
        if flag is not None and not flag.values:
            self._refuse(flag, "a value")
        return flag.values if flag is not None else ()

    def number(self, name: str) -> float | None:
        """A finite number."""
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
        """A whole number."""
        text = self.text(name)
        if text is None:
            return None
        if text.lstrip("+-").isascii() and text.lstrip("+-").isdigit() and len(text) < 19:
            return int(text)
        self._refuse(self._flags[name], "a whole number")
        return None

    def switch(self, name: str) -> bool | None:
        """A boolean; `--flag` alone is true, as in Hugging Face's parser."""
        if name in self._flags and not self._flags[name].values:
            self.taken[name] = None
            return True
        text = self.text(name)
        if text is None:
            return None
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        self._refuse(self._flags[name], "True or False")
        return None

    def _refuse(self, flag: Flag, wanted: str, hint: str | None = None) -> None:
        self.draft.problems.append(
            Problem(
                f"`--{flag.name}` takes {wanted}",
                code="value-of-wrong-kind",
                mark=flag.value_mark,
                found=flag.text or "nothing",
                hint=hint,
            )
        )


class Keys(Settings):
    """The top-level keys of a YAML config, whose values have types already."""

    def __init__(self, document: Document) -> None:
        super().__init__()
        assert isinstance(document.root, dict)
        self._document, self._values = document, document.root

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def __getitem__(self, name: str) -> Value:
        return self._values.get(name)

    def names(self) -> Collection[str]:
        return self._values

    def spell(self, name: str) -> str:
        return spell_value(self._values.get(name))

    def why_off(self, name: str) -> str:
        value = self._values.get(name)
        return (
            "it is not set" if value is None else "it is off, which is the default" if value is False else ""
        )

    def mark(self, name: str) -> Mark | None:
        return self._document.locate((name,), on_key=True)

    def take(self, name: str) -> Value:
        """The value as it is."""
        self.taken[name] = None
        return self._values.get(name)

    def read(self, name: str, kind: Kind) -> Value:
        return self.take(name)
