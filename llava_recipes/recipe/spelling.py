"""Near misses: which known word was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SEPARATORS = re.compile(r"[-_ .]")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word closest to `word`, or None when none is close enough to be meant.

    A short word may have one slip, a longer one a slip for every four letters; case, dashes and underscores
    are free.
    """
    if len(word) > 200:
        return None
    bare, most = _bare(word), max(1, len(word) // 4)
    others = ((_bare(other), other) for other in known if other != word)
    ranked = sorted(
        (distance(bare, other, most=most), name) for other, name in others if _may_be_near(bare, other, most)
    )
    if not ranked or ranked[0][0] > most:
        return None
    shortest = min(len(_bare(word)), len(_bare(ranked[0][1])))
    return ranked[0][1] if shortest > ranked[0][0] or ranked[0][0] == 0 else None


def did_you_mean(word: str, known: Iterable[str], *, quote: str = "`") -> str | None:
    """A hint that names the nearest known word, or None."""
    near = nearest(word, known)
    return f"did you mean {quote}{near}{quote}?" if near else None


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


def _bare(word: str) -> str:
    return _SEPARATORS.sub("", word).lower()
