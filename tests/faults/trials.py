"""What the trials share: a short recipe, a count of faults, and the surroundings of those run by hand."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.processes import ROOT
from tests.tiny import FIXTURES, stage1_values
from tests.warm import client


def short_values(
    run: Path, *, max_steps: int, deepspeed: str | dict[str, Any] = "none", **train: Any
) -> dict[str, Any]:
    """A recipe of some steps over 22 samples, of which a device takes two at a time."""
    values = stage1_values(run, max_steps=max_steps, per_device_train_batch_size=2, **train)
    stage = values["stages"][0]
    del stage["train"]["num_train_epochs"]
    stage["data"]["sources"][0]["annotations"] = str(FIXTURES / "stage1_22.json")
    stage["deepspeed"] = deepspeed
    return values


@dataclass(frozen=True)
class Tried:
    """A trial, the kinds it is counted under, and its fault: empty where all was well.

    `counts` is False for one in which nothing was broken.
    """

    what: object
    kinds: Sequence[str]
    fault: str
    counts: bool = True


def count_faults(num_trials: int, name: str, attempt: Callable[[], Tried]) -> int:
    """Try until so many trials count, print each fault and what was tried; the exit code."""
    counts: Counter[str] = Counter()
    started_s, number = time.monotonic(), 0
    while number < num_trials:
        tried = attempt()
        counts.update(tried.kinds)
        if not tried.counts:
            continue
        number += 1
        counts["faults"] += bool(tried.fault)
        if tried.fault:
            print(f"{number}: {tried.what}: {tried.fault}", flush=True)
        if number % 20 == 0:
            print(f"{number}, {counts['faults']} faults", flush=True)
    seconds = time.monotonic() - started_s
    print(f"{num_trials} {name}, {counts['faults']} faults, {seconds:.0f} s: {dict(counts)}")
    return int(counts["faults"] > 0)


def run_by_hand(main: Callable[..., int]) -> NoReturn:
    """Run a module's `main` with the words of the command line, in the surroundings of every test."""
    import tests.conftest  # noqa: F401  # offline, on the CPU, one thread

    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        code = main(*sys.argv[1:])
    finally:
        client.leave()
    raise SystemExit(code)
