"""Words of a shell command with their parts kept apart, so that values can be filled in later."""

from __future__ import annotations

from dataclasses import dataclass

from llava_recipes.recipe.errors import Mark


@dataclass(frozen=True)
class Plain:
    """Text as it stands; quoted text is neither split nor read as a pattern."""

    text: str
    quoted: bool


@dataclass(frozen=True)
class Parameter:
    """`$NAME` or `${NAME…}`, with what is done to its value."""

    name: str
    change: str
    """`:-`, `#`, `//` and the like; empty for the value as it is, `[@]` or `[*]` for all of an array, `[2]`
    for one entry of it, and `length` before any of these for how long it is."""
    first: tuple[Part, ...]
    second: tuple[Part, ...]
    quoted: bool
    mark: Mark


@dataclass(frozen=True)
class Unread:
    """Something that is computed where it can be, such as `$((8 / 2))`; else only a shell could tell it."""

    what: str
    quoted: bool
    mark: Mark
    source: str = ""
    """What stands inside the brackets of arithmetic or of a command substitution."""


ARITHMETIC, SUBSTITUTION = "arithmetic", "a command substitution"

Part = Plain | Parameter | Unread


@dataclass(frozen=True)
class Word:
    """One word of a command, and where it stands; `entries` of an array assignment `NAME=(…)`."""

    parts: tuple[Part, ...]
    mark: Mark
    entries: tuple[Word, ...] | None = None

    @property
    def plain(self) -> str | None:
        """The text of a word that holds nothing but plain, unquoted text."""
        if self.entries is None and all(isinstance(part, Plain) and not part.quoted for part in self.parts):
            return "".join(part.text for part in self.parts if isinstance(part, Plain))
        return None


@dataclass(frozen=True)
class Operator:
    """What separates commands: `;`, `&&`, `|`, a line break, a bracket, a redirection."""

    text: str
    mark: Mark


def written(word: Word) -> str:
    """A word nearly as it is written, to be shown; quotes are left out."""
    return "".join(map(_written, word.parts))


def _written(part: Part) -> str:
    if isinstance(part, Plain):
        return part.text
    if isinstance(part, Parameter):
        return f"${{{part.name}{'…' if part.change else ''}}}"
    if not part.source:
        return "$…"
    return f"$(({part.source}))" if part.what == ARITHMETIC else f"$({part.source})"
