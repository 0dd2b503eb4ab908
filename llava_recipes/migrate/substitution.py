"""Commands whose output follows from their words: `basename`, `dirname`, `pwd`, `realpath` and the like."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from llava_recipes.migrate.arithmetic import NotComputed, evaluate

_READS_LINKS = ("realpath", "readlink")
_EXPR_SIGNS = frozenset({"+", "-", "*", "/", "%", "(", ")"})


def answer(words: Sequence[str], *, folder: str | None) -> str | None:
    """What a command prints, without the line break at its end; None for any command that is not known.

    folder  the working folder, where it is known; a link is taken for what it says
    """
    if not words:
        return None
    name, *rest = words
    arguments = rest[1:] if rest[:1] == ["--"] else rest
    if name == "pwd" and rest in ([], ["-P"], ["-L"]):
        return folder
    if name in _READS_LINKS and arguments and arguments[-1]:
        options, path = arguments[:-1], arguments[-1]
        is_path = name == "realpath" or "-f" in options or "-m" in options or "-e" in options
        return absolute(path, folder) if is_path and all(word[:1] == "-" for word in options) else None
    if name == "echo":
        plain = rest[1:] if rest[:1] == ["-n"] else rest
        return None if any("\\" in word or word[:1] == "-" for word in plain) else " ".join(plain)
    if name == "dirname" and len(arguments) == 1 and arguments[0][:1] != "-":
        return _folder_of(arguments[0])
    if name == "basename" and arguments and arguments[0][:1] != "-":
        return _last_name(arguments) if len(arguments) <= 2 else None
    if name == "expr":
        return _sum(rest)
    return None


def absolute(path: str, folder: str | None) -> str | None:
    """A path from the root, without `..` in it; None where the working folder is not known."""
    if not path.startswith("/"):
        if folder is None or path.startswith("~"):
            return None
        path = posixpath.join(folder, path)
    # POSIX leaves the meaning of two slashes at the start open; Linux gives them none.
    return "/" + posixpath.normpath(path).lstrip("/")


def _folder_of(path: str) -> str:
    bare = path.rstrip("/")
    if not bare:
        return "/" if path else "."
    before, slash, _ = bare.rpartition("/")
    return (before.rstrip("/") or "/") if slash else "."


def _last_name(arguments: Sequence[str]) -> str:
    path = arguments[0]
    name = path.rstrip("/").rpartition("/")[2] or ("/" if path else "")
    suffix = arguments[1] if len(arguments) > 1 else ""
    return name.removesuffix(suffix) if suffix and name != suffix else name


def _sum(words: Sequence[str]) -> str | None:
    if not words or any(word not in _EXPR_SIGNS and not word.lstrip("-").isdecimal() for word in words):
        return None
    # What `expr` takes for decimal, arithmetic would take for octal.
    numbers = [word if word in _EXPR_SIGNS else str(int(word)) for word in words if len(word) < 20]
    try:
        return str(evaluate(" ".join(numbers), lambda _: None)) if len(numbers) == len(words) else None
    except NotComputed:
        return None
