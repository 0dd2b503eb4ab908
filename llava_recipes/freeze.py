"""Decide from names alone what trains.

A glob names modules by dotted segments. `*` stays inside one segment, `**` spans any number of them,
`{30..39}` is a range of whole numbers, both ends included. A matched module brings everything under it,
and a glob may also name a single parameter.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

_PIECE = re.compile(r"\*|\{(\d{1,9})\.\.(\d{1,9})\}|[^*{]+|\{")
# The dots inside a range do not part segments.
_SEGMENT = re.compile(r"(?:\{\d+\.\.\d+\}|[^.])*")


@dataclass(frozen=True)
class Decision:
    """What trains and what does not: together the whole model, with no name in both."""

    trainable: tuple[str, ...]
    frozen: tuple[str, ...]
    unmatched: tuple[str, ...]
    """Globs that match no module."""


@dataclass(frozen=True)
class _Segment:
    """One segment of a glob: its shape, and the bounds of each number in it."""

    shape: re.Pattern[str]
    bounds: tuple[tuple[int, int], ...]

    def accepts(self, text: str) -> bool:
        found = self.shape.fullmatch(text)
        return found is not None and all(
            low <= int(number) <= high
            for number, (low, high) in zip(found.groups(), self.bounds, strict=True)
        )


def _parse_segment(text: str) -> _Segment:
    shape, bounds = "", []
    for piece in _PIECE.finditer(text):
        if piece[0] == "*":
            shape += "[^.]*"
        elif piece[1] is not None:
            shape += "(0|[1-9][0-9]{0,8})"
            bounds.append((int(piece[1]), int(piece[2])))
        else:
            shape += re.escape(piece[0])
    return _Segment(re.compile(shape), tuple(bounds))


def split_glob(glob: str) -> tuple[str, ...]:
    """The dotted segments of a glob; a range such as `{30..39}` stays whole."""
    segments, start = [], 0
    while start <= len(glob):
        found = _SEGMENT.match(glob, start)
        assert found is not None, "the pattern also matches nothing at all"
        segments.append(found[0])
        start = found.end() + 1
    return tuple(segments)


@lru_cache(maxsize=1024)
def _parse(glob: str) -> tuple[_Segment | None, ...]:
    """The segments of a glob; None stands for `**`."""
    return tuple(None if text == "**" else _parse_segment(text) for text in split_glob(glob))


def _after_spans(segments: tuple[_Segment | None, ...], places: Iterable[int]) -> set[int]:
    """The places reached when every `**` may stand for nothing."""
    reached = set()
    for place in places:
        reached.add(place)
        while place < len(segments) and segments[place] is None:
            place += 1
            reached.add(place)
    return reached


@lru_cache(maxsize=16_384)
def match_glob(glob: str, name: str) -> bool:
    """Whether the glob matches this parameter or a module that holds it."""
    segments = _parse(glob)
    places = _after_spans(segments, {0})
    for text in name.split("."):
        following = set()
        for place in places:
            if place == len(segments):
                continue
            segment = segments[place]
            if segment is None:
                following.add(place)
            elif segment.accepts(text):
                following.add(place + 1)
        places = _after_spans(segments, following)
        if len(segments) in places:
            return True
    return False


def decide(
    names: Iterable[str], *, freeze: Literal["all", "none"] | tuple[str, ...], trainable: tuple[str, ...]
) -> Decision:
    """Which of these parameters train, in the order given.

    `freeze` freezes everything, nothing, or what its globs match; what `trainable` matches trains anyway.
    """
    globs = dict.fromkeys((*(freeze if isinstance(freeze, tuple) else ()), *trainable))
    unmatched = set(globs)
    trains: list[str] = []
    frozen: list[str] = []
    for name in names:
        matched = {glob for glob in globs if match_glob(glob, name)}
        unmatched -= matched
        held = not matched.isdisjoint(freeze) if isinstance(freeze, tuple) else freeze == "all"
        (frozen if held and matched.isdisjoint(trainable) else trains).append(name)
    return Decision(tuple(trains), tuple(frozen), tuple(glob for glob in globs if glob in unmatched))


def summarize_modules(names_trainable: Collection[str], names_all: Collection[str]) -> tuple[str, ...]:
    """The shortest list of modules that hold exactly the trainable names, in the order of `names_all`."""
    trains = set(names_trainable)
    mixed: set[str] = set()
    for name in names_all:
        if name not in trains:
            mixed.update(_prefixes(name))
    modules: dict[str, None] = {}
    for name in names_all:
        if name in trains:
            modules[next((prefix for prefix in _prefixes(name) if prefix not in mixed), name)] = None
    return tuple(modules)


@lru_cache(maxsize=16_384)
def _prefixes(name: str) -> tuple[str, ...]:
    """The modules that hold a parameter, from its root on, and the parameter itself."""
    segments = name.split(".")
    return tuple(".".join(segments[:end]) for end in range(1, len(segments) + 1))
