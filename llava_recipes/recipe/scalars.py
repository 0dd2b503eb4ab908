"""YAML 1.2 core schema: what an unquoted word means."""

from __future__ import annotations

import re
from typing import TypeAlias

Value: TypeAlias = bool | int | float | str | list["Value"] | dict[str, "Value"] | None

MAX_NUMBER_CHARACTERS = 100
LARGEST_WHOLE_NUMBER = 2**63 - 1

_WORDS: dict[str, bool | None] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True,
    "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_WHOLE = {
    10: re.compile(r"[-+]?[0-9]+"),
    8: re.compile(r"0o[0-7]+"),
    16: re.compile(r"0x[0-9a-fA-F]+"),
}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class ScalarError(ValueError):
    """A word that YAML can read but a recipe cannot use."""


def resolve_scalar(text: str) -> bool | int | float | str | None:
    """Give the value of an unquoted YAML word; raises ScalarError for numbers out of range."""
    if text in _WORDS:
        return _WORDS[text]
    if _NOT_FINITE.fullmatch(text):
        raise ScalarError("infinity and NaN are not allowed in a recipe")
    base = next((base for base, pattern in _WHOLE.items() if pattern.fullmatch(text)), None)
    if base is None and not _FLOAT.fullmatch(text):
        return text
    if len(text) > MAX_NUMBER_CHARACTERS:
        raise ScalarError(f"a number of {len(text):,} characters is too long to be meant")
    if base is not None:
        whole = int(text.removeprefix("0o").removeprefix("0x"), base)
        if abs(whole) > LARGEST_WHOLE_NUMBER:
            raise ScalarError("the number is larger than 64 bits can hold")
        return whole
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ScalarError("the number is larger than a float can hold")
    return number


def check_text(text: str) -> None:
    """Refuse control characters, which no name or path of a recipe needs; raises ScalarError."""
    found = _CONTROL.search(text)
    if found:
        raise ScalarError(f"the text holds the control character U+{ord(found.group()):04X}")


def kind_of(value: object) -> str:
    """Name the kind of a value in the words of the messages."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "a mapping"
