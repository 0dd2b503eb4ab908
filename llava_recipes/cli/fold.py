"""Runs of layers written as one glob."""

from __future__ import annotations

import re

_LAYER = re.compile(r"(?P<owner>.*\.)(?P<number>0|[1-9][0-9]*)(?P<rest>(\.[^.0-9][^.]*)*)")


def fold_layers(modules: tuple[str, ...]) -> tuple[str, ...]:
    """The same modules with runs of layers written as one glob: `layers.{30..39}`."""
    folded: dict[tuple[str, str, int], list[int]] = {}
    last: dict[tuple[str, str], int] = {}
    for place, name in enumerate(modules):
        found = _LAYER.fullmatch(name)
        if found is None:
            folded[(name, "", place)] = []
            continue
        around, number = (found["owner"], found["rest"]), int(found["number"])
        start = last.get(around)
        run = folded.get((*around, start)) if start is not None else None
        if run is not None and run[-1] + 1 == number:
            run.append(number)
        else:
            last[around] = place
            folded[(*around, place)] = [number]
    return tuple(
        owner + (f"{{{run[0]}..{run[-1]}}}" if len(run) > 1 else "".join(map(str, run))) + rest
        for (owner, rest, _), run in folded.items()
    )
