"""Say in plain words why YAML text cannot be read, and where."""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml

from llava_recipes.recipe.errors import Mark, Problem

_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_LEADING_TAB = re.compile(r" *\t")

_IN_OUR_WORDS = (
    (
        "mapping values are not allowed",
        "a `key: value` cannot start here",
        "check the indentation of this line and the one above; put text that holds `: ` in quotes",
    ),
    (
        "could not find expected ':'",
        "a key without a colon",
        "write `key: value`, with a space",
    ),
    (
        "did not find expected key",
        "this line does not fit the mapping around it",
        "line it up with the keys beside it, and close every quote and bracket",
    ),
    (
        "did not find expected '-' indicator",
        "this line does not fit the list around it",
        "begin each entry with `- ` in the same column",
    ),
    (
        "did not find expected ',' or ']'",
        "a list that opens with `[` is not closed",
        "close it, or put the missing `,`",
    ),
    (
        "did not find expected ',' or '}'",
        "a mapping that opens with `{` is not closed",
        "close it, or put the missing `,`",
    ),
    ("found unexpected end of stream", "a quote that is never closed", "close the quote"),
    ("found unexpected document indicator", "a quote that is never closed", "close the quote"),
    (
        "unknown escape character",
        "an escape that YAML does not know",
        r"double the backslash (`\\`), or use single quotes",
    ),
    (
        "found character that cannot start any token",
        "this character cannot begin a value",
        "put the text in quotes",
    ),
    ("did not find expected node content", "a value is missing here", "write a value, or close the bracket"),
    ("found incompatible YAML document", "this version of YAML is not known", "remove the `%YAML` line"),
)

_POINT_BACK = (
    "a key without a colon",
    "a list that opens with `[` is not closed",
    "a mapping that opens with `{` is not closed",
    "a quote that is never closed",
)


def split_lines(text: str) -> list[str]:
    """Split where YAML breaks lines."""
    return _LINE_BREAK.split(text)


def mark_at(file: str, lines: Sequence[str], line: int, column: int, width: int = 1) -> Mark:
    """Make a mark from a place that counts from 0."""
    text = lines[line] if line < len(lines) else ""
    return Mark(file, line + 1, column + 1, max(width, 1), text)


def explain_syntax(error: yaml.YAMLError, file: str, lines: Sequence[str]) -> Problem:
    """Turn YAML's own error into a problem at the place where a person would look."""
    place = getattr(error, "problem_mark", None)
    reason = str(getattr(error, "problem", None) or error)
    line, column = (place.line, place.column) if place is not None else (0, 0)
    if line < len(lines) and (tab := _LEADING_TAB.match(lines[line])):
        return Problem(
            "a tab in the indentation",
            code="yaml-tab",
            mark=mark_at(file, lines, line, tab.end() - 1),
            hint="indent with spaces; YAML forbids tabs there",
        )
    for theirs, ours, hint in _IN_OUR_WORDS:
        if theirs in reason:
            opened = getattr(error, "context_mark", None)
            if opened is not None and ours in _POINT_BACK:
                written = "".join(lines[opened.line : line + 1])
                line, column = opened.line, opened.column
                if "${" in written and "opens with" in ours:
                    hint = f"{hint}; inside brackets, text with `${{…}}` needs quotes"
            return Problem(
                f"bad YAML: {ours}", code="yaml-syntax", mark=mark_at(file, lines, line, column), hint=hint
            )
    return Problem(f"bad YAML: {reason}", code="yaml-syntax", mark=mark_at(file, lines, line, column))
