"""Problems as text: where, what, the line with carets below, what was found, what to do."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from llava_recipes.errors import Mark, Problem
from llava_recipes.masking import mask
from llava_recipes.screen import shown

MAX_LINE_CHARACTERS = 120
MAX_WORDS_CHARACTERS = 800
"""Longest message, or line of what was found: a value in it may be as long as its file."""


def render_problems(problems: Iterable[Problem]) -> str:
    """The text for a person, one block per problem."""
    return "\n\n".join("\n".join(_lines(problem)) for problem in problems)


def render_briefly(problem: Problem) -> str:
    """One line for a person."""
    return _short(_first_line(problem) + ("" if problem.hint is None else shown(f"; {problem.hint}")))


def _first_line(problem: Problem) -> str:
    word = "warning: " if problem.severity == "warning" else ""
    return shown(_place(problem.mark) + word + problem.message)


def _lines(problem: Problem) -> list[str]:
    lines = [_short(_first_line(problem))]
    text = problem.mark.text if problem.mark is not None and problem.mark.line > 0 else None
    # A line with a secret is not shown at all: hiding the secret would move the carets.
    if problem.mark is not None and text is not None and mask(text) == text:
        lines += _snippet(problem.mark, text)
    for word, text in (("found:", problem.found), ("hint: ", problem.hint)):
        if text is not None:
            first, *rest = text.rstrip("\n").split("\n")
            lines.append(_short(shown(f"{word} {first}")))
            lines += [_short(shown(f"       {line}")) for line in rest]
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
    line = shown(text[cut : cut + MAX_LINE_CHARACTERS]).rstrip()
    before = shown(text[cut:start])
    marked = shown(text[start : start + mark.width])[: MAX_LINE_CHARACTERS - len(before)]
    if cut:
        line, before = "…" + line, "…" + before
    if cut + MAX_LINE_CHARACTERS < len(text):
        line += "…"
    carets = "^" * max(1, _columns(marked))
    return [f"{mark.line:>5} | {line}".rstrip(), f"      | {' ' * _columns(before)}{carets}"]


def _columns(text: str) -> int:
    """The number of terminal columns of a text."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
