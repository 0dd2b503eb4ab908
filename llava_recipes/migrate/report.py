"""What became of every setting, as text for a person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from llava_recipes.masking import HIDDEN, is_secret_name
from llava_recipes.migrate.combine import Migration
from llava_recipes.migrate.draft import Entry, Kind
from llava_recipes.screen import shown

TITLES: tuple[tuple[Kind, str], ...] = (
    ("mapped", "has its key in the recipe"),
    ("default", "left out there, and so at that program's default, which the recipe now says"),
    ("needless", "has no place in a recipe, and nothing is lost"),
    ("lost", "HAS NO PLACE IN A RECIPE: the run differs without it"),
)
MAX_VALUE_CHARACTERS = 60


def report_lines(migration: Migration, file: str) -> Iterator[str]:
    """The report of a whole migration, stage by stage."""
    for (name, entries), program in zip(migration.stages, migration.programs, strict=True):
        yield stage_title(file, name, entries)
        if program:
            yield f"  program: {shown(program)}"
        for kind, title in TITLES:
            chosen = [entry for entry in entries if entry.kind == kind]
            if chosen:
                yield from ("", f"  {title}")
                yield from _table(chosen)
        yield ""


def stage_title(file: str, name: str, entries: Iterable[Entry]) -> str:
    """The file, the stage, and how many settings of each kind."""
    return f"{shown(file)}: stage {name}: {_counts(entries)}"


def value_of(entry: Entry) -> str:
    """What a setting has there; hidden where its name says that it is secret."""
    return HIDDEN if is_secret_name(entry.name.lstrip("-")) else shown(entry.value)


def _counts(entries: Iterable[Entry]) -> str:
    kinds = [entry.kind for entry in entries]
    words = (("mapped", "mapped"), ("default", "defaults"), ("needless", "not needed"), ("lost", "lost"))
    return ", ".join(f"{kinds.count(kind)} {word}" for kind, word in words if kind in kinds)


def _table(entries: Sequence[Entry]) -> Iterator[str]:
    rows = [(shown(entry.name), _short(value_of(entry)), entry.key, shown(entry.remark)) for entry in entries]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, value, key, remark in rows:
        arrow = "->" if key else "  " if widths[2] else ""
        line = f"    {name:<{widths[0]}}  {value:<{widths[1]}}  {arrow} {key:<{widths[2]}}"
        yield f"{line}  {remark}".rstrip()


def _short(text: str) -> str:
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"…{text[1 - MAX_VALUE_CHARACTERS :]}"
