"""The values of a recipe: looked up by path, read from an unquoted word as YAML 1.2 does, and spelled again.

A number has one spelling everywhere: the shorter one, `2e-5`, `1e-3`, `0.03`.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TypeAlias

from llava_recipes.errors import KeyPath
from llava_recipes.masking import HIDDEN, is_secret_name, mask
from llava_recipes.screen import escape_yaml

Value: TypeAlias = bool | int | float | str | list["Value"] | dict[str, "Value"] | None
Values: TypeAlias = dict[str, Value]

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

# Without characters that have a meaning in YAML. ASCII alone: only in quotes can others be escaped for a
# terminal that does not have them.
_PLAIN = re.compile(r"[\w./~$](?:[\w./~$@+=()^%-]|:(?=\S)| (?=[\w./(]))*", re.ASCII)
# What YAML 1.1 reads as something else: numbers with underscores, times, dates, other words for booleans.
_OTHER_IN_YAML_1_1 = re.compile(r"[-+.]*[0-9][0-9._:eETtZ +-]*|0[bx][0-9a-f_]+|(?i:y|n|yes|no|on|off)")
_VARIABLE = re.compile(r"\$\{([\w.-]+)\}")

_MINUS = "\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d"
_SUPERSCRIPT = re.compile("[\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
# Letters that look like the `e` and the `x` of a number.
_LOOKALIKES = str.maketrans({"\u0435": "e", "\u0415": "E", "\u0445": "x", "\u00d7": "x", "\u00b7": "x"})
_POWER = re.compile(
    r"(?:(?P<factor>[-+]?[0-9.,]+) ?[x*] ?)?10 ?(?:\^|\*\*) ?[({]?(?P<power>[-+]?[0-9]+)[)}]?"
)
_PARTS = re.compile(r"(?P<sign>[-+]?)(?P<number>[0-9.,' _]+?)(?P<exponent>(?: ?[eE] ?[-+]? ?[0-9]+)?)")
_GROUPED = r"[0-9]{1,3}(?:%s[0-9]{3})+"


def as_mapping(value: Value) -> Values:
    """The mapping itself, or an empty one for anything else, which the schema refuses."""
    return value if isinstance(value, dict) else {}


def as_list(value: Value) -> list[Value]:
    """The list itself, or an empty one for anything else, which the schema refuses."""
    return value if isinstance(value, list) else []


def given_keys(mapping: Values, *keys: str) -> list[str]:
    """Those of the keys that have a value."""
    return [key for key in keys if mapping.get(key) is not None]


def value_at(value: Value, path: KeyPath) -> Value:
    """The value at a path inside a value; None where the path leads nowhere."""
    for segment in path:
        if isinstance(value, dict) and isinstance(segment, str):
            value = value.get(segment)
        elif isinstance(value, list) and isinstance(segment, int) and segment < len(value):
            value = value[segment]
        else:
            return None
    return value


def strings_in(value: Value, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Every string at any depth of a value, with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from strings_in(entry, (*path, index))
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from strings_in(entry, (*path, key))


class ScalarError(ValueError):
    """A word that YAML can read but a recipe cannot use."""


def resolve_scalar(text: str) -> bool | int | float | str | None:
    """The value of an unquoted YAML word. Raises ScalarError for a number out of range."""
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
            raise ScalarError("the number does not fit in 64 bits")
        return whole
    number = float(text)
    if math.isinf(number):
        raise ScalarError("the number does not fit in a float")
    return number


def check_text(text: str) -> None:
    """Raise ScalarError for control characters, which no name or path of a recipe needs."""
    found = _CONTROL.search(text)
    if found:
        raise ScalarError(f"the string contains the control character U+{ord(found.group()):04X}")


def spell_number(number: float) -> str:
    """A number as recipes spell it, in the shorter of its two forms: 0.9, 1.0, 1e-3, 1.5e-4."""
    if number == 0 or 0.01 <= abs(number) < 1e6 or not math.isfinite(number):
        return repr(float(number))
    # The digits are moved as a string: a float in between would round them.
    mantissa, _, exponent = f"{Decimal(repr(float(number))).normalize():e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def say_number(number: float, *, digits: int = 6) -> str:
    """A number in a sentence, with at most `digits` digits; a whole one has no `.0`."""
    return spell_number(float(f"{number:.{digits}g}")).removesuffix(".0")


def spell(value: Value, *, in_brackets: bool = False, portable: bool = False) -> str:
    """The value on one line, as YAML: `1e-3`, `"no"`, `[projector]`, `{r: 128}`.

    portable  write `1.0e-3`, which YAML 1.1 reads as a number too

    `${name}` in a string stays a variable. Secrets are hidden.
    """
    if isinstance(value, dict):
        entries = (
            f"{spell(key, in_brackets=True)}: {spell(each, in_brackets=True, portable=portable)}"
            for key, each in value.items()
        )
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(spell(each, in_brackets=True, portable=portable) for each in value) + "]"
    if isinstance(value, float):
        number = spell_number(value)
        return _with_point(number) if portable else number
    # Outside brackets, braces have no meaning in YAML.
    if isinstance(value, str) and _is_plain(value if in_brackets else _VARIABLE.sub(r"\1", value)):
        return value
    return escape_yaml(json.dumps(value, ensure_ascii=False))


def _with_point(number: str) -> str:
    """`1e-3` as `1.0e-3`, `1e16` as `1.0e+16`: YAML 1.1 wants a point and a sign."""
    digits, e, exponent = number.partition("e")
    if not e:
        return number
    return (
        f"{digits if '.' in digits else digits + '.0'}e{exponent if exponent[0] in '+-' else '+' + exponent}"
    )


def _is_plain(text: str) -> bool:
    """Whether every YAML reader reads the text without quotes as this string."""
    if not _PLAIN.fullmatch(text) or _OTHER_IN_YAML_1_1.fullmatch(text):
        return False
    try:
        return isinstance(resolve_scalar(text), str)
    except ScalarError:
        return False


def spell_value(value: object, *, limit: int = 80) -> str:
    """A value in a message: strings in quotes, secrets hidden, cut after `limit` characters."""
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
        # Before the cut: half a secret is not recognized as one.
        spelled = mask(json.dumps(value, ensure_ascii=False))
    return spelled if len(spelled) <= limit else spelled[: limit - 1] + "…"


def _is_hidden(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, str) and is_secret_name(key)


def kind_of(value: object) -> str:
    """The kind of a value, as messages name it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "a mapping"


def numbers_meant(text: str) -> tuple[str, ...]:
    """The numbers that a string may mean, spelled as YAML: several if it is ambiguous, none if it isn't one.

    A comma is a decimal comma, unless three digits follow.
    """
    plain = _in_ascii(text)
    if not plain or len(plain) > MAX_NUMBER_CHARACTERS:
        return ()
    if plain.endswith("%"):
        return tuple(_spell_meant(float(number) / 100) for number in numbers_meant(plain[:-1]))
    if plain[-1] in "kK":
        return _thousands(plain)
    if plain[-1] in "fF" and re.search(r"[.eE]", plain) and not plain.lower().startswith("0x"):
        plain = plain[:-1]
    power = _POWER.fullmatch(plain)
    if power is not None:
        plain = f"{power['factor'] or '1'}e{int(power['power'])}"
    known = _resolved(plain)
    if known is not None:
        return (_spell_meant(known, plain),)
    parts = _PARTS.fullmatch(plain)
    if parts is None:
        return ()
    sign, exponent = parts["sign"].removeprefix("+"), parts["exponent"].replace(" ", "").replace("E", "e")
    found = []
    for reading in _readings(parts["number"].strip()):
        number = _resolved(f"{sign}{reading}{exponent}")
        if number is not None:
            found.append(_spell_meant(number, f"{sign}{reading}{exponent}"))
    return tuple(dict.fromkeys(found))


def whole(number: str) -> int | None:
    """The whole number that this one equals; None where it has decimals or does not fit in 64 bits."""
    value = resolve_scalar(number)
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    return value if isinstance(value, int) and abs(value) <= LARGEST_WHOLE_NUMBER else None


def _in_ascii(text: str) -> str:
    """The string with look-alike characters replaced by those of ASCII, without quotes and outer spaces."""
    text = _SUPERSCRIPT.sub(
        lambda power: "^" + unicodedata.normalize("NFKC", power.group()), text[: 4 * MAX_NUMBER_CHARACTERS]
    )
    text = unicodedata.normalize("NFKC", text).translate(_LOOKALIKES)
    text = "".join("-" if letter in _MINUS else letter for letter in text)
    text = re.sub("[\u2018\u2019`\u00b4]", "'", text)
    return re.sub(r"\s+", " ", text).strip(" \"'").rstrip(",;")


def _thousands(plain: str) -> tuple[str, ...]:
    """`2k` may mean 2000, or 2048 as a power of two."""
    numbers = [float(number) for number in numbers_meant(plain[:-1])]
    if len(numbers) != 1 or not (numbers[0] * 1_000).is_integer():
        return ()
    return tuple(_spell_meant(round(numbers[0] * factor)) for factor in (1_000, 1_024))


def _readings(number: str) -> list[str]:
    """The decimal numbers that digits with separators may mean."""
    if re.fullmatch(_GROUPED % "[ ']" + r"([.,][0-9]*)?", number) or re.fullmatch(
        r"[0-9]+(_[0-9]+)+([.,][0-9_]*)?", number
    ):
        return [re.sub("[ '_]", "", number).replace(",", ".")]
    if re.fullmatch(r"[0-9]+\.?[0-9]*|\.[0-9]+", number):
        return [number]
    if re.search("[ '_]", number):
        return []
    for thousands, decimal in ((",", "."), (".", ",")):
        end = rf"(?:{re.escape(decimal)}[0-9]*)"
        if re.fullmatch(_GROUPED % re.escape(thousands) + end, number):
            return [number.replace(thousands, "").replace(decimal, ".")]
        if number.count(thousands) > 1 and re.fullmatch(_GROUPED % re.escape(thousands), number):
            return [number.replace(thousands, "")]
    if not re.fullmatch(r"[0-9]*,[0-9]*", number) or number == ",":
        return []
    as_decimal = number.replace(",", ".")
    if re.fullmatch(r"[1-9][0-9]{0,2},[0-9]{3}", number):
        return [number.replace(",", ""), as_decimal]
    return [as_decimal]


def _resolved(text: str) -> int | float | None:
    try:
        value = resolve_scalar(text)
    except ScalarError:
        return None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _spell_meant(number: int | float, written: str = "") -> str:
    """The number as it was written if that is a plain decimal number; else its usual spelling."""
    written = re.sub(r"(\.[0-9]+?)0+$", r"\1", written.removeprefix("+").replace("E", "e"))
    if re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e-?[0-9]+)?", written):
        return written
    if isinstance(number, int) or (number.is_integer() and abs(number) < 1e15):
        return str(int(number))
    return spell_number(float(f"{number:.13g}"))
