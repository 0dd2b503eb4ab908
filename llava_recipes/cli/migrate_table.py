"""The report of a migration on a terminal, in columns that fit it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from llava_recipes.migrate.draft import TITLES, Migration, stage_title, value_of
from llava_recipes.screen import cell, shown

_STYLES = {"mapped": "green", "default": "yellow", "needless": "dim", "lost": "bold red"}


def show_report(migration: Migration, file: str, console: Console) -> None:
    """Print what happened to every setting, long values folded inside their column."""
    for (name, entries), program in zip(migration.stages, migration.programs, strict=True):
        console.print(cell(stage_title(file, name, entries), style="bold"))
        if program:
            console.print(cell(f"  program: {program}"))
        for kind, title in TITLES:
            chosen = [entry for entry in entries if entry.kind == kind]
            if not chosen:
                continue
            console.print()
            console.print(cell(f"  {title}", style=_STYLES[kind]))
            table = Table.grid(padding=(0, 2, 0, 0))
            table.add_column(no_wrap=True)
            table.add_column(overflow="fold")
            table.add_column(overflow="fold")
            for entry in chosen:
                says = " – ".join(part for part in (entry.key, entry.remark) if part)
                table.add_row(cell(f"    {shown(entry.name)}", style="cyan"), value_of(entry), shown(says))
            console.print(table)
        console.print()
