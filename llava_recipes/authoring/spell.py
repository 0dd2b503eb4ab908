"""Spell a value as a person would type it into a recipe."""

from __future__ import annotations

import json
import re
from decimal import Decimal

from llava_recipes.recipe.scalars import Value, resolve_scalar
from llava_recipes.screen import escape_yaml

# Neither of YAML's own characters, nor a colon or a dash where it means something.
# A plain word of another alphabet could not be spelled otherwise where a terminal has no letters for it.
_PLAIN = re.compile(r"[\w./~$](?:[\w./~$@+=()^%-]|:(?=\S)| (?=[\w./(]))*")
_VARIABLE = re.compile(r"\$\{([\w.-]+)\}")


def spell(value: Value, *, in_brackets: bool = False) -> str:
    """The value on one line, as YAML: `1e-3`, `"no"`, `[projector]`, `{r: 128}`."""
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(
                f"{spell(key, in_brackets=True)}: {spell(entry, in_brackets=True)}"
                for key, entry in value.items()
            )
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(spell(entry, in_brackets=True) for entry in value) + "]"
    if isinstance(value, float):
        return spell_number(value)
    # Outside brackets the braces of a variable mean nothing to YAML.
    if isinstance(value, str) and _is_plain(value if in_brackets else _VARIABLE.sub(r"\1", value)):
        return value
    return escape_yaml(json.dumps(value, ensure_ascii=False))


def spell_number(number: float) -> str:
    """A number in the shorter of its two forms: 0.9, 1e-3, 1.5e-4."""
    if number == 0 or 0.01 <= abs(number) < 1e6:
        return repr(number)
    # The digits are moved as text: another float between would round them.
    mantissa, _, exponent = f"{Decimal(repr(number)).normalize():e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _is_plain(text: str) -> bool:
    if not text.isascii() or text != text.strip() or not _PLAIN.fullmatch(text):
        return False
    return isinstance(_resolved(text), str) and text not in ("yes", "no", "on", "off", "y", "n")


def _resolved(text: str) -> Value:
    try:
        return resolve_scalar(text)
    except ValueError:
        return None
