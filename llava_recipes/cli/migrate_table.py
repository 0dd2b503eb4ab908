"""The report of a migration on a terminal: in columns that fit it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llava_recipes.migrate.combine import Migration
from llava_recipes.migrate.report import TITLES, printable, stage_title

_STYLES = {"mapped": "green", "default": "yellow", "needless": "dim", "lost": "bold red"}


def show_report(migration: Migration, file: str, console: Console) -> None:
    """Print what became of every setting, long values folded inside their column."""
    for (name, entries), program in zip(migration.stages, migration.programs, strict=True):
        console.print(Text(stage_title(file, name, entries), style="bold"))
        if program:
            console.print(Text(f"  program: {printable(program)}"))
        for kind, title in TITLES:
            chosen = [entry for entry in entries if entry.kind == kind]
            if not chosen:
                continue
            console.print()
            console.print(Text(f"  {title}", style=_STYLES[kind]))
            table = Table.grid(padding=(0, 2, 0, 0))
            table.add_column(no_wrap=True)
            table.add_column(overflow="fold")
            table.add_column(overflow="fold")
            for entry in chosen:
                says = " – ".join(printable(part) for part in (entry.key, entry.remark) if part)
                table.add_row(
                    Text(f"    {printable(entry.name)}", style="cyan"),
                    Text(printable(entry.value)),
                    Text(says),
                )
            console.print(table)
        console.print()
