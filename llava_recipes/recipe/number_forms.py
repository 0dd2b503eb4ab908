"""Numbers as people write them elsewhere: which ones a text that is no YAML number may mean."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from llava_recipes.recipe.scalars import LARGEST_WHOLE_NUMBER, ScalarError, resolve_scalar, spell_number

_MINUS: Final = "\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d"
_SUPERSCRIPT: Final = re.compile("[\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
# Letters that look like the `e` and the `x` of a number.
_LOOKALIKES: Final = str.maketrans(
    {"\u0435": "e", "\u0415": "E", "\u0445": "x", "\u00d7": "x", "\u00b7": "x"}
)
_POWER: Final = re.compile(
    r"(?:(?P<factor>[-+]?[0-9.,]+) ?[x*] ?)?10 ?(?:\^|\*\*) ?[({]?(?P<power>[-+]?[0-9]+)[)}]?"
)
_PARTS: Final = re.compile(r"(?P<sign>[-+]?)(?P<number>[0-9.,' _]+?)(?P<exponent>(?: ?[eE] ?[-+]? ?[0-9]+)?)")
_GROUPED: Final = r"[0-9]{1,3}(?:%s[0-9]{3})+"
_THOUSANDS: Final = {"k": (1_000, 1_024), "K": (1_000, 1_024)}
_LONGEST: Final = 100


def numbers_meant(text: str) -> tuple[str, ...]:
    """The numbers that a text may mean, spelled as YAML; several where it can be read in more than one way.

    Empty where it is no number in any spelling. A comma is a decimal comma, unless three digits follow.
    """
    plain = _plain(text)
    if not plain or len(plain) > _LONGEST:
        return ()
    if plain.endswith("%"):
        return tuple(_spell(float(number) / 100) for number in numbers_meant(plain[:-1]))
    if plain[-1] in _THOUSANDS:
        return _thousands(plain)
    if plain[-1] in "fF" and re.search(r"[.eE]", plain) and not plain.lower().startswith("0x"):
        plain = plain[:-1]
    power = _POWER.fullmatch(plain)
    if power is not None:
        plain = f"{power['factor'] or '1'}e{int(power['power'])}"
    known = _resolved(plain)
    if known is not None:
        return (_spell(known, plain),)
    parts = _PARTS.fullmatch(plain)
    if parts is None:
        return ()
    sign, exponent = parts["sign"].removeprefix("+"), parts["exponent"].replace(" ", "").replace("E", "e")
    found = []
    for reading in _readings(parts["number"].strip()):
        number = _resolved(f"{sign}{reading}{exponent}")
        if number is not None:
            found.append(_spell(number, f"{sign}{reading}{exponent}"))
    return tuple(dict.fromkeys(found))


def whole(number: str) -> int | None:
    """A number as a whole one; None where it has decimals, or more digits than fit."""
    value = resolve_scalar(number)
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    return value if isinstance(value, int) and abs(value) <= LARGEST_WHOLE_NUMBER else None


def _plain(text: str) -> str:
    """The text in ASCII where a letter stands for one of ASCII's, without quotes and outer spaces."""
    text = _SUPERSCRIPT.sub(
        lambda power: "^" + unicodedata.normalize("NFKC", power.group()), text[: 4 * _LONGEST]
    )
    text = unicodedata.normalize("NFKC", text).translate(_LOOKALIKES)
    text = "".join("-" if letter in _MINUS else letter for letter in text)
    text = re.sub("[\u2018\u2019`\u00b4]", "'", text)
    return re.sub(r"\s+", " ", text).strip(" \"'").rstrip(",;")


def _thousands(plain: str) -> tuple[str, ...]:
    """`2k`: 2000, or 2048 where powers of two are usual."""
    numbers = [float(number) for number in numbers_meant(plain[:-1])]
    if len(numbers) != 1 or not (numbers[0] * 1_000).is_integer():
        return ()
    return tuple(_spell(round(numbers[0] * factor)) for factor in _THOUSANDS[plain[-1]])


def _readings(number: str) -> list[str]:
    """A row of digits and separators as decimal numbers."""
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


def _spell(number: int | float, written: str = "") -> str:
    """As it was written where that is a plain decimal number; 1.5e-4 and never 0.00015 otherwise."""
    written = re.sub(r"(\.[0-9]+?)0+$", r"\1", written.removeprefix("+").replace("E", "e"))
    if re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e-?[0-9]+)?", written):
        return written
    if isinstance(number, int) or (number.is_integer() and abs(number) < 1e15):
        return str(int(number))
    return spell_number(float(f"{number:.13g}"))
