"""Faults that are known and fixed elsewhere: take an entry away when its fix has arrived."""

from __future__ import annotations

LEFT: frozenset[tuple[str, str]] = frozenset(
    {
        # The problem stands at the recipe's `chat_template`, and does not say which file the template is in.
        ("llm/chat_template.jinja", "names no file"),
    }
)
"""The damaged file, and how its fault is called."""
