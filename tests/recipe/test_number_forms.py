"""Numbers as other programs, languages and word processors spell them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.recipe.scalars import numbers_meant, resolve_scalar
from llava_recipes.recipe.value_hints import number_hint
from tests.laws import examples

RATE = ("stages", 0, "train", "learning_rate")
STEPS = ("stages", 0, "train", "max_steps")
RATIO = ("stages", 0, "train", "warmup_ratio")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1,5e-4", ["1.5e-4"]),
        ("0,001", ["0.001"]),
        ("1,000", ["1000", "1.0"]),
        ("558,128", ["558128", "558.128"]),
        ("1,000,000", ["1000000"]),
        ("1.000,5", ["1000.5"]),
        ("1,000.5", ["1000.5"]),
        ("1 000", ["1000"]),
        ("1\u202f000", ["1000"]),
        ("1'000", ["1000"]),
        ("1_000", ["1000"]),
        ("1e-3f", ["1e-3"]),
        ('"2e-5"', ["2e-5"]),
        ("2e-5,", ["2e-5"]),
        (".5", ["0.5"]),
        ("5.", ["5"]),
        ("3%", ["0.03"]),
        ("0,5%", ["5e-3"]),
        ("0x10", ["16"]),
        ("010", ["10"]),
        ("1k", ["1000", "1024"]),
        ("2e\u20135", ["2e-5"]),
        ("2e\u22125", ["2e-5"]),
        ("\uff11e-3", ["1e-3"]),
        ("2\u00d710\u207b\u2075", ["2e-5"]),
        ("2x10^-5", ["2e-5"]),
        ("10**-3", ["1e-3"]),
        ("1\u0435-3", ["1e-3"]),
        ("1e", []),
        ("yes", []),
        ("1,00,000", []),
        ("1.5.2", []),
        ("--1", []),
        ("", []),
        (",", []),
        ("9" * 200, []),
        ("1e400", []),
    ],
)
def test_what_a_text_may_mean(text: str, meant: list[str]) -> None:
    assert list(numbers_meant(text)) == meant


@examples(400)
@given(number=st.decimals(0, 10**6, places=4, allow_nan=False))
def test_a_decimal_comma_changes_no_number(number: object) -> None:
    text = str(number)
    assert [float(each) for each in numbers_meant(text.replace(".", ","))] == [float(text)]


@examples(400)
@given(number=st.integers(1_000_000, 10**12), separator=st.sampled_from([",", ".", " ", "'", "_", "\u00a0"]))
def test_thousands_in_groups_are_one_number(number: int, separator: str) -> None:
    assert numbers_meant(f"{number:,}".replace(",", separator)) == (str(number),)


@examples(600)
@given(text=st.text(alphabet="0123456789.,eE-+_ 'xkf%\u2013\uff11", max_size=12))
def test_what_is_proposed_is_a_number_of_yaml(text: str) -> None:
    for number in numbers_meant(text):
        value = resolve_scalar(number)
        assert isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize(
    ("path", "text", "wanted", "hint"),
    [
        (RATE, "1,5e-4", "a number", "write 1.5e-4, without quotes or separators"),
        (RATE, "1,000", "a number", "write 1000 or 1.0, whichever is meant"),
        (RATE, "0", "a number", None),
        (RATIO, "3%", "a number", "write 0.03, without quotes or separators"),
        (RATIO, "300%", "a number", None),
        (STEPS, "558,128", "a whole number", "write 558128, without quotes or separators"),
        (STEPS, "2k", "a whole number", "write 2000 or 2048, whichever is meant"),
        (STEPS, "1,000", "a whole number", "write 1000 or 1, whichever is meant"),
        (STEPS, "1,5", "a whole number", None),
        (STEPS, "1e3", "a whole number", "write 1000, without quotes or separators"),
        (STEPS, "1e300", "a whole number", None),
    ],
)
def test_only_what_the_key_takes_is_proposed(
    path: tuple[str | int, ...], text: str, wanted: str, hint: str | None
) -> None:
    assert number_hint(path, text, wanted) == hint
