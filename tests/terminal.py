"""Programs on a terminal of their own, and what may not reach one."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

_OURS = re.compile(r"\x1b\[[0-9;]*[mABCDGHJK]|\x1b\[\?(?:25|2004)[lh]|\r")
"""Colors and moves that Rich and readline send of themselves."""
_STEERS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

HOSTILE = (
    "\x1b]0;PWN\x07\x1b[45m\x9b45m\x1b]8;;http://evil\x1b\\\u202e\u2066\u061c\u200e\u2028\u2029\u200b\u2060\ufeff"
    "\x7f\x00\r[/nope][link=http://evil]a[/link][red]\n::error::PWN\n##[error]PWN\tz:smile:"
)
"""One of each kind of what could steer a terminal, Rich or a workflow of GitHub."""
PRINTABLE = HOSTILE.translate(dict.fromkeys((*range(9), *range(11, 32), *range(127, 160))))
"""The same without control characters, which neither YAML nor a recipe takes."""


def as_file_name(text: str) -> str:
    """A text as the name of a file, shortened where a file system asks for it."""
    return text.replace("/", "").replace("\0", "")[:110]


def on_terminal(
    argv: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None, text: str = ""
) -> tuple[int, str]:
    """Run a program at a terminal, `text` typed in; gives its exit code and all that it printed."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **(env or {})}
    child = subprocess.Popen(
        list(map(str, argv)), cwd=cwd, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    if text:
        os.write(ours, text.encode())
    printed = b""
    try:
        while piece := os.read(ours, 65536):
            printed += piece
    except OSError:
        # The terminal is gone with its last program.
        pass
    finally:
        os.close(ours)
    return child.wait(), printed.decode("utf-8", "surrogateescape")


def steering(text: str, *, terminal: bool = False, obeys: bool = True) -> set[str]:
    """What in a text would steer who shows it; with `terminal`, what Rich sends of itself is left out.

    Without `obeys` the text is meant for GitHub, and may hold commands.
    """
    found = {"a color of the data"} if "\x1b[45m" in text else set()
    if terminal:
        text = _OURS.sub("", text)
    found |= {
        f"U+{ord(letter):04X}"
        for letter in text
        if unicodedata.category(letter) in _STEERS and letter not in "\n\t"
    }
    if obeys:
        found |= {line for line in text.split("\n") if line.lstrip().startswith("::") or "##[" in line}
    return found
