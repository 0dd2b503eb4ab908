"""Text of others inside Markdown: shown as it was written, never read as markup."""

from __future__ import annotations

import re

from llava_recipes.screen import shown

_SPECIAL = re.compile(r"[\\`*_\[\]|~#]")
_INSIDE_A_WORD = re.compile(r"(?<=\w)\\_(?=\w)")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_BACKTICKS = re.compile(r"`+")


def one_line(text: str) -> str:
    """White space and control characters as single spaces."""
    return shown(" ".join(text.split()))


def inline(text: str) -> str:
    """Text in a line, a heading or a cell of a table."""
    escaped = _SPECIAL.sub(r"\\\g<0>", one_line(text))
    escaped = "".join(_HTML.get(letter, letter) for letter in escaped)
    # An underscore inside a word starts no emphasis.
    return _INSIDE_A_WORD.sub("_", escaped)


def code(text: str) -> str:
    """Text as code in a line, outside of tables."""
    line = one_line(text)
    fence = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{space}{line}{space}{fence}"


def code_block(text: str, language: str) -> str:
    """Text as a block of code, in a fence longer than any inside it."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.strip()}\n{fence}\n"


def _longest_run(text: str) -> int:
    return max((len(found) for found in _BACKTICKS.findall(text)), default=0)
