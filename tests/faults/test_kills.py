"""A run that is killed at a file event goes on by itself, and learns what it would have learned."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.kills import Ground, kill, whole

POINTS = {"plain": 44, "ddp": 4, "zero2": 6, "zero3": 6}
"""Kills in each mode; `python -m tests.faults.kills matrix MODE` tries all of them."""


@pytest.mark.parametrize("mode", POINTS)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(mode: str, tmp_path: Path) -> None:
    ground = Ground(tmp_path / "ground", mode)
    wanted, num_events = whole(ground)
    events = [number * num_events // POINTS[mode] for number in range(POINTS[mode])]
    trials = [kill(ground, wanted, event, torn=bool(number % 2)) for number, event in enumerate(events)]
    assert [trial for trial in trials if trial.fault] == []
    assert all(trial.what != "not met" for trial in trials)
