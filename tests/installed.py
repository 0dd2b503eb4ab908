"""Which versions are installed: those of the tested set, or others that pyproject.toml allows."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

_PINS = dict(
    line.split("==")
    for line in (Path(__file__).parent.parent / "constraints.txt").read_text("utf-8").splitlines()
    if "==" in line
)


def only_with_the_tested(name: str) -> pytest.MarkDecorator:
    """For what is written down from one version of a library and may differ in others."""
    pinned, installed = _PINS[name], version(name).partition("+")[0]
    reason = f"written down from {name} {pinned}; {installed} is installed"
    return pytest.mark.skipif(pinned != installed, reason=reason)
