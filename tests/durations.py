"""How long each test function takes: recorded by `make durations`, and read to find out which tests are slow.

A function takes what all its cases take on an idle machine, and what setting up its fixtures takes, those of
its module or session included: it may be the only one that needs them.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest

SLOW_S = 0.6
"""A test function that takes longer is slow: `make quick` leaves it out, to stay under a minute."""

FILE_S = 15.0
"""A file that takes longer is slow as a whole: its tests share what they train and import."""

QUICK_S = 40.0
"""What `make quick` may take for recorded tests; the thousands below `FLOOR_S` take twice as much."""

FLOOR_S = 0.5
"""What takes less isn't recorded."""

FILE = Path(__file__).with_suffix(".json")
_ROOT = Path(__file__).parent.parent
_FUNCTION = re.compile(r"^def (test_\w+)\(", re.MULTILINE)
_SHARED = "seconds of shared fixtures"
_PAID = "seconds of shared fixtures set up here"


def recorded() -> dict[str, float]:
    """Seconds of each recorded test function, by `tests/…/test_x.py::test_y`."""
    seconds: dict[str, float] = json.loads(FILE.read_text("utf-8"))
    return seconds


@cache
def _slow() -> frozenset[str]:
    """Slow functions, and slow files."""
    found = recorded()
    files: dict[str, float] = defaultdict(float)
    for function, seconds in found.items():
        files[_file(function)] += seconds
    return frozenset(
        [name for name, seconds in found.items() if seconds > SLOW_S]
        + [name for name, seconds in files.items() if seconds > FILE_S]
    )


def is_slow(function: str) -> bool:
    return function in _slow() or _file(function) in _slow()


def _file(function: str) -> str:
    return function.partition("::")[0]


def functions_in(file: Path) -> frozenset[str]:
    """The test functions of a file, which isn't imported."""
    name = file.relative_to(_ROOT).as_posix()
    return frozenset(f"{name}::{function}" for function in _FUNCTION.findall(file.read_text("utf-8")))


def all_functions() -> frozenset[str]:
    return frozenset().union(*map(functions_in, (_ROOT / "tests").rglob("test_*.py")))


def record(seconds: Mapping[str, float]) -> None:
    """Write down what test functions took; others that still exist keep what is recorded of them."""
    kept = {name: taken for name, taken in recorded().items() if name in all_functions() - seconds.keys()}
    found = {name: round(taken, 1) for name, taken in seconds.items() if taken >= FLOOR_S}
    FILE.write_text(json.dumps(dict(sorted({**kept, **found}.items())), indent=1) + "\n", "utf-8")


class Clock:
    """A plugin of pytest that sums up what test functions take, whichever process runs them."""

    def __init__(self) -> None:
        self._own: dict[str, float] = defaultdict(float)
        self._shared: dict[str, dict[str, float]] = defaultdict(dict)
        self._set_up: dict[str, float] = {}
        self._set_up_here: set[str] = set()

    def seconds(self) -> dict[str, float]:
        return {name: own + sum(self._shared[name].values()) for name, own in self._own.items()}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
        began = time.perf_counter()
        value = yield
        if fixturedef.scope != "function":
            name = _name(fixturedef)
            self._set_up[name] = time.perf_counter() - began
            self._set_up_here.add(name)
        return value

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Function, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "setup":
            used = set(map(_name, _fixtures(item))) & self._set_up.keys()
            report.user_properties += [
                (_SHARED, {name: self._set_up[name] for name in used}),
                (_PAID, sum(self._set_up[name] for name in self._set_up_here)),
            ]
            self._set_up_here.clear()
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        function = report.nodeid.partition("[")[0]
        properties = dict(report.user_properties)
        self._own[function] += report.duration - float(str(properties.get(_PAID, 0)))
        shared = properties.get(_SHARED)
        if isinstance(shared, dict):
            self._shared[function].update(shared)


def _fixtures(item: pytest.Function) -> Iterable[pytest.FixtureDef[object]]:
    return (found[-1] for found in item._fixtureinfo.name2fixturedefs.values())


def _name(fixture: pytest.FixtureDef[object]) -> str:
    """Tells a shared fixture, and its parameter, from others."""
    parameter = None if fixture.cached_result is None else fixture.cached_result[1]
    return f"{fixture.baseid} {fixture.argname} {parameter!r}"
