"""Print problems: where, the line with a caret, what was found, what to do."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from llava_recipes.recipe.errors import Mark, Problem

MAX_LINE_CHARACTERS = 120
MAX_WORDS_CHARACTERS = 800
"""Of a message, or a line of what was found: a value in it may be as long as its file."""


def render_problems(problems: Iterable[Problem]) -> str:
    """The text for a person, one block per problem."""
    return "\n\n".join("\n".join(_lines(problem)) for problem in problems)


def _lines(problem: Problem) -> list[str]:
    word = "warning: " if problem.severity == "warning" else ""
    lines = [_printable(_place(problem.mark) + word + _short(problem.message))]
    if problem.mark is not None and problem.mark.line > 0 and problem.mark.text is not None:
        lines += _snippet(problem.mark, problem.mark.text)
    for word, text in (("found:", problem.found), ("hint: ", problem.hint)):
        if text is not None:
            first, *rest = map(_short, text.splitlines() or [""])
            lines.append(_printable(f"{word} {first}"))
            lines += [_printable(f"       {line}") for line in rest]
    return lines


def _short(text: str) -> str:
    return text if len(text) <= MAX_WORDS_CHARACTERS else text[:MAX_WORDS_CHARACTERS] + " …"


def _place(mark: Mark | None) -> str:
    if mark is None:
        return ""
    if mark.row is not None:
        return f"{mark.file}: row {mark.row:,}: "
    return f"{mark.file}:{mark.line}:{mark.column}: " if mark.line > 0 else f"{mark.file}: "


def _snippet(mark: Mark, text: str) -> list[str]:
    start = mark.column - 1
    cut = max(0, start - MAX_LINE_CHARACTERS // 2) if len(text) > MAX_LINE_CHARACTERS else 0
    shown = _printable(text[cut : cut + MAX_LINE_CHARACTERS]).rstrip()
    before = _printable(text[cut:start])
    marked = _printable(text[start : start + mark.width])[: MAX_LINE_CHARACTERS - len(before)]
    if cut:
        shown, before = "…" + shown, "…" + before
    if cut + MAX_LINE_CHARACTERS < len(text):
        shown += "…"
    carets = "^" * max(1, _columns(marked))
    return [f"{mark.line:>5} | {shown}".rstrip(), f"      | {' ' * _columns(before)}{carets}"]


def _columns(text: str) -> int:
    """Terminal columns that a text takes."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def _printable(text: str) -> str:
    """Nothing that moves the cursor, colours the terminal or turns the text around."""
    return "".join(letter if letter.isprintable() else "→" if letter == "\t" else "�" for letter in text)
