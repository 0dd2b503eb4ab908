"""YAML 1.2 core schema: what an unquoted word means, and how a value is spelled back.

A number has one spelling everywhere: the shorter one, `2e-5`, `1e-3`, `0.03`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TypeAlias

from llava_recipes.masking import HIDDEN, is_secret_name, mask
from llava_recipes.screen import escape_yaml

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

# Neither of YAML's own characters, nor a colon or a dash where it means something.
# A plain word of another alphabet could not be spelled otherwise where a terminal has no letters for it.
_PLAIN = re.compile(r"[\w./~$](?:[\w./~$@+=()^%-]|:(?=\S)| (?=[\w./(]))*", re.ASCII)
# Numbers with underscores, times, dates and other words for true and false.
_OTHER_IN_YAML_1_1 = re.compile(r"[-+.]*[0-9][0-9._:eETtZ +-]*|0[bx][0-9a-f_]+|(?i:y|n|yes|no|on|off)")
_VARIABLE = re.compile(r"\$\{([\w.-]+)\}")


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


def spell_number(number: float) -> str:
    """A number as a recipe has it, in the shorter of its two forms: 0.9, 1.0, 1e-3, 1.5e-4."""
    if number == 0 or 0.01 <= abs(number) < 1e6 or not math.isfinite(number):
        return repr(float(number))
    # The digits are moved as text: another float between would round them.
    mantissa, _, exponent = f"{Decimal(repr(float(number))).normalize():e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def say_number(number: float, *, digits: int = 6) -> str:
    """A number in a sentence: so many digits at most, and a whole one without `.0`."""
    return spell_number(float(f"{number:.{digits}g}")).removesuffix(".0")


def spell(value: Value, *, in_brackets: bool = False) -> str:
    """The value on one line, as YAML: `1e-3`, `"no"`, `[projector]`, `{r: 128}`.

    `${name}` in a text stays a variable. Secrets are hidden.
    """
    if isinstance(value, dict):
        entries = (
            f"{spell(key, in_brackets=True)}: {spell(each, in_brackets=True)}" for key, each in value.items()
        )
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(spell(each, in_brackets=True) for each in value) + "]"
    if isinstance(value, float):
        return spell_number(value)
    # Outside brackets the braces of a variable mean nothing to YAML.
    if isinstance(value, str) and _is_plain(value if in_brackets else _VARIABLE.sub(r"\1", value)):
        return value
    return escape_yaml(json.dumps(value, ensure_ascii=False))


def _is_plain(text: str) -> bool:
    """Whether every reader of YAML takes the unquoted text for this text."""
    if not _PLAIN.fullmatch(text) or _OTHER_IN_YAML_1_1.fullmatch(text):
        return False
    try:
        return isinstance(resolve_scalar(text), str)
    except ScalarError:
        return False


def spell_value(value: object, *, limit: int = 80) -> str:
    """A value within a message: texts in quotes, secrets hidden, cut after `limit` characters."""
    if isinstance(value, Mapping):
        entries = [
            f"{key}: {HIDDEN if _is_hidden(key, entry) else spell_value(entry, limit=limit)}"
            for key, entry in list(value.items())[:20]
        ]
        spelled = "{" + ", ".join(entries) + "}"
    elif isinstance(value, Sequence) and not isinstance(value, str):
        spelled = "[" + ", ".join(spell_value(entry, limit=limit) for entry in value[:20]) + "]"
    elif isinstance(value, float):
        spelled = spell_number(value)
    else:
        # Before the cut: half a secret is not seen to be one.
        spelled = mask(json.dumps(value, ensure_ascii=False))
    return spelled if len(spelled) <= limit else spelled[: limit - 1] + "…"


def _is_hidden(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, str) and is_secret_name(key)


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
