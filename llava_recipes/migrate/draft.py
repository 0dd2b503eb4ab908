"""A recipe in the making: its values so far, and what became of everything that the other program said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from llava_recipes.recipe.errors import KeyPath, Mark, Problem
from llava_recipes.recipe.scalars import Value, spell_value

Kind = Literal["mapped", "default", "needless", "lost"]

MODEL, STAGE = "model", "stage"

_SEVERITY: Mapping[Kind, int] = MappingProxyType({"needless": 0, "default": 1, "mapped": 2, "lost": 3})


@dataclass(frozen=True)
class Entry:
    """What became of one setting of the other program.

    `mapped`    it has a key of its own in the recipe
    `default`   the other program was left to its default, which the recipe now says
    `needless`  it has no place in a recipe, and nothing is lost by that
    `lost`      it has no place in a recipe, and the run differs
    """

    kind: Kind
    name: str
    value: str
    key: str = ""
    remark: str = ""
    mark: Mark | None = None


@dataclass
class Draft:
    """One stage and the model it trains, as values of a recipe under `model` and `stage`."""

    name: str = ""
    values: dict[str, Value] = field(default_factory=lambda: {MODEL: {}, STAGE: {}})
    comments: dict[KeyPath, str] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    num_processes: int | None = None
    program: str = ""
    """The program that trained, as the report names it."""

    def put(self, path: KeyPath, value: Value, comment: str | None = None) -> None:
        """Set a value, and make the mappings around it."""
        place: Value = self.values
        for key in path[:-1]:
            if isinstance(place, list):
                assert isinstance(key, int)
                place = place[key]
            else:
                assert isinstance(place, dict) and isinstance(key, str)
                place = place.setdefault(key, {})
        last = path[-1]
        assert isinstance(place, dict) and isinstance(last, str)
        place[last] = value
        if comment is not None:
            self.comments[path] = comment

    def read(self, *path: str) -> Value:
        """A value set before, or None."""
        place: Value = self.values
        for key in path:
            place = place.get(key) if isinstance(place, dict) else None
        return place

    def mapped(
        self,
        name: str,
        shown: str,
        path: KeyPath,
        value: Value,
        *,
        remark: str = "",
        mark: Mark | None = None,
    ) -> None:
        """A setting that has its key."""
        self.put(path, value)
        self.tell_mapped(name, shown, path, remark=remark, mark=mark)

    def tell_mapped(
        self, name: str, shown: str, path: KeyPath, *, remark: str = "", mark: Mark | None = None
    ) -> None:
        """A setting that has its key, whose value is there already."""
        self.entries.append(Entry("mapped", name, shown, spell_path(path), remark, mark))

    def default(
        self,
        name: str,
        path: KeyPath,
        value: Value,
        *,
        remark: str = "",
        comment: str = "left out there: its default",
    ) -> None:
        """A setting that was left out: the recipe says what it was."""
        self.put(path, value, comment)
        shown = value if isinstance(value, str) else spell_value(value)
        self.entries.append(Entry("default", name, shown, spell_path(path), remark))

    def needless(self, name: str, shown: str, why: str, mark: Mark | None = None) -> None:
        """A setting that nothing is lost without."""
        self.entries.append(Entry("needless", name, shown, "", why, mark))

    def lost(
        self, name: str, shown: str, why: str, mark: Mark | None = None, *, path: KeyPath | None = None
    ) -> None:
        """A setting without which the run differs; `path` says where the nearest that recipes have stands."""
        key = spell_path(path) if path is not None else ""
        self.entries.append(Entry("lost", name, shown, key, why, mark))

    def settle(self) -> None:
        """Tell each setting in one section: where a part of it is lost, it is lost, with the key it has."""
        kinds: dict[str, Kind] = {}
        for entry in self.entries:
            worst = kinds.get(entry.name)
            if worst is None or _SEVERITY[entry.kind] > _SEVERITY[worst]:
                kinds[entry.name] = entry.kind
        keys = {entry.name: entry.key for entry in self.entries if entry.key}
        self.entries = [
            replace(entry, key=entry.key or (keys.get(entry.name, "") if entry.kind == "lost" else ""))
            for entry in self.entries
            if entry.kind == kinds[entry.name]
        ]

    def is_told(self, name: str) -> bool:
        """Whether the report has a line for a setting."""
        return any(entry.name == name for entry in self.entries)


def spell_path(path: KeyPath) -> str:
    """A path inside a draft as it is written about: `data.sources[0].images`, `model.projector.type`."""
    shown = ""
    for key in path[1:] if path[0] == STAGE else path:
        shown += f"[{key}]" if isinstance(key, int) else f".{key}" if shown else key
    return shown
