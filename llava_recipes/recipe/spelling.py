"""Near misses: which known word was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SEPARATORS = re.compile(r"[-_ .]")

_FAR = 3
"""Slips from which a word with one slip more may have been meant as well."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word closest to `word`, or None when none is close enough to be meant.

    A short word may have one slip, a longer one a slip for every four letters; case, dashes and underscores
    are free.
    """
    return next((name for _, name in ranked(word, known)), None)


def ranked(word: str, known: Iterable[str]) -> list[tuple[int, str]]:
    """Every known word that is close enough to be meant, with its distance, the closest first."""
    if len(word) > 200:
        return []
    plain, most = bare(word), max(1, len(word) // 4)
    near = []
    for name in known:
        other = bare(name)
        if name != word and _may_be_near(plain, other, most):
            slips = distance(plain, other, most=most)
            if slips <= most and (slips == 0 or min(len(plain), len(other)) > slips):
                near.append((slips, name))
    return sorted(near)


def nearest_all(word: str, known: Iterable[str]) -> list[str]:
    """The known words that are equally close to `word`; also the next ones where none is really close."""
    near = ranked(word, known)
    least = near[0][0] if near else 0
    return [name for slips, name in near if slips <= least + (least >= _FAR)]


def did_you_mean(word: str, known: Iterable[str], *, quote: str = "`") -> str | None:
    """A hint that names the nearest known words, or None."""
    near = nearest_all(word, known)
    return f"did you mean {' or '.join(f'{quote}{name}{quote}' for name in near)}?" if near else None


def same_digits(word: str, known: Iterable[str]) -> list[str]:
    """The known words with the digits of `word`: for values, `llama2` is no slip of `llama_3`."""
    return [other for other in known if re.findall("[0-9]", other) == re.findall("[0-9]", word)]


def _may_be_near(left: str, right: str, most: int) -> bool:
    """Whether two words need comparing letter by letter: lengths and letters bound their distance."""
    return abs(len(left) - len(right)) <= most and len(set(left) - set(right)) <= most


def distance(left: str, right: str, *, most: int | None = None) -> int:
    """Slips between two words: letters changed, added, left out, or two neighbours swapped.

    Where there are more than `most`, some number above it.
    """
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, last, row = row, before, [i]
        for j, b in enumerate(right, 1):
            slips = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                slips = min(slips, last[j - 2] + 1)
            row.append(slips)
        if most is not None and min(row) > most and min(before) > most:
            return most + 1
    return row[-1]


def bare(word: str) -> str:
    """The word in lower case, without what parts its words."""
    return _SEPARATORS.sub("", word).lower()
