"""Integer arithmetic of a shell, `$((…))`, on values that are known. Nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

MAX_CHARACTERS = 500
MAX_DEEP = 30
_LARGEST = 2**63

_TOKEN = re.compile(
    r"\s*(?:(?P<number>0[xX][0-9a-fA-F]+|[0-9]+)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<sign>\*\*|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%()<>?:!]))"
)
_LEVELS = (("||",), ("&&",), ("==", "!="), ("<=", ">=", "<", ">"), ("<<", ">>"), ("+", "-"), ("*", "/", "%"))
"""Operators from the loosest to the tightest."""

LookUp = Callable[[str], str | None]
"""From a variable's name to its text; None where it is not set, and an exception where it is not known."""


class NotComputed(Exception):
    """An expression outside of what is computed here, or without a value; the message says why."""


def evaluate(text: str, look_up: LookUp) -> int:
    """The value of an expression. Raises NotComputed."""
    return _Evaluation(text, look_up, 0, _Budget()).value()


@dataclass
class _Budget:
    """How many operands an expression and the variables in it may still have."""

    operands: int = 2_000


class _Evaluation:
    def __init__(self, text: str, look_up: LookUp, depth: int, budget: _Budget) -> None:
        if len(text) > MAX_CHARACTERS or depth > MAX_DEEP:
            raise NotComputed(f"longer than {MAX_CHARACTERS} characters, or nested too deeply")
        self._look_up, self._depth, self._budget = look_up, depth, budget
        self._tokens = self._split(text)
        self._at = 0

    def _split(self, text: str) -> list[tuple[str, str]]:
        tokens: list[tuple[str, str]] = []
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if found is None or found.lastgroup is None:
                raise NotComputed(f"`{text[at:].strip()[:20]}` is not read here")
            tokens.append((found.lastgroup, found[found.lastgroup]))
            at = found.end()
        return tokens

    def value(self) -> int:
        if not self._tokens:
            return 0
        result = self._choice(0)
        if self._at < len(self._tokens):
            raise NotComputed(f"`{self._tokens[self._at][1]}` is not read here")
        return result

    def _sign(self) -> str:
        kind, text = self._tokens[self._at] if self._at < len(self._tokens) else ("", "")
        return text if kind == "sign" else ""

    def _choice(self, depth: int) -> int:
        if depth > MAX_DEEP:
            raise NotComputed("nested too deeply")
        condition = self._level(0, depth)
        if self._sign() != "?":
            return condition
        self._at += 1
        first = self._choice(depth + 1)
        if self._sign() != ":":
            raise NotComputed("`?` without `:`")
        self._at += 1
        second = self._choice(depth + 1)
        return first if condition else second

    def _level(self, level: int, depth: int) -> int:
        if level == len(_LEVELS):
            return self._power(depth)
        left = self._level(level + 1, depth)
        while (sign := self._sign()) in _LEVELS[level]:
            self._at += 1
            left = _apply(sign, left, self._level(level + 1, depth))
        return left

    def _power(self, depth: int) -> int:
        base = self._unary(depth)
        if self._sign() != "**":
            return base
        self._at += 1
        if depth > MAX_DEEP:
            raise NotComputed("nested too deeply")
        exponent = self._power(depth + 1)
        if not 0 <= exponent < 64:
            raise NotComputed("an exponent below 0 or above 63")
        return _bounded(base**exponent)

    def _unary(self, depth: int) -> int:
        if depth > MAX_DEEP:
            raise NotComputed("nested too deeply")
        sign = self._sign()
        if sign in ("-", "+", "!"):
            self._at += 1
            value = self._unary(depth + 1)
            return {"-": -value, "+": value, "!": int(not value)}[sign]
        if sign == "(":
            self._at += 1
            value = self._choice(depth + 1)
            if self._sign() != ")":
                raise NotComputed("a bracket that is not closed")
            self._at += 1
            return value
        return self._operand()

    def _operand(self) -> int:
        kind, text = self._tokens[self._at] if self._at < len(self._tokens) else ("", "its end")
        if kind not in ("number", "name"):
            raise NotComputed(f"a number is missing before {text}")
        self._at += 1
        self._budget.operands -= 1
        if self._budget.operands < 0:
            raise NotComputed("more numbers than are computed here")
        if kind == "number":
            if len(text) > 19 or (text.startswith("0") and not text.isdecimal() and text[1] not in "xX"):
                raise NotComputed(f"`{text}` is not read here")
            return _number(text)
        value = self._look_up(text)
        if value is None:
            raise NotComputed(f"nothing in the script sets the variable `{text}`")
        return _Evaluation(value, self._look_up, self._depth + 1, self._budget).value()


def _number(text: str) -> int:
    if text[:2].lower() == "0x":
        return _bounded(int(text, 16))
    if len(text) > 1 and text.startswith("0"):
        # A leading zero makes it octal, as in bash.
        try:
            return int(text, 8)
        except ValueError:
            raise NotComputed(f"`{text}` is no octal number") from None
    return _bounded(int(text))


def _apply(sign: str, left: int, right: int) -> int:
    if sign in ("/", "%"):
        if right == 0:
            raise NotComputed("a division by zero")
        # Bash cuts off towards zero, Python downwards.
        quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
        return quotient if sign == "/" else left - quotient * right
    if sign in ("<<", ">>"):
        if not 0 <= right < 63:
            raise NotComputed("a shift below 0 or above 62")
        return _bounded(left << right if sign == "<<" else left >> right)
    results = {
        "+": left + right,
        "-": left - right,
        "*": left * right,
        "<": int(left < right),
        ">": int(left > right),
        "<=": int(left <= right),
        ">=": int(left >= right),
        "==": int(left == right),
        "!=": int(left != right),
        "&&": int(bool(left and right)),
        "||": int(bool(left or right)),
    }
    return _bounded(results[sign])


def _bounded(value: int) -> int:
    if not -_LARGEST <= value < _LARGEST:
        raise NotComputed("a number that needs more than 64 bits")
    return value
