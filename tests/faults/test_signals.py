"""A few shots of `python -m tests.faults.signals`: a run that is asked to stop saves, and leaves nobody."""

from __future__ import annotations

import random
import re
import signal
from pathlib import Path

import pytest

from llava_recipes.train.checkpoints import list_checkpoints
from tests.faults.signals import Range, Shot

DRAW = random.Random(0)
MANY = 100_000


def test_a_storm_over_all_processes_is_one_request(tmp_path: Path) -> None:
    """As a scheduler sends it: to the data workers, torchrun and the command too."""
    ground = Range(tmp_path / "range", processes=2, workers=1, steps=MANY)
    ended = ground.shoot(Shot(signal.SIGUSR1, "storm", 0.0, after_lines=2), draw=DRAW)
    assert (ended.code, ended.fault) == (130, "")
    newest = list_checkpoints(ground.runs[0])[0]
    assert f"stopped after step {newest.step} and saved checkpoint-{newest.step}" in ended.said
    assert not ground.runs[1].exists()


def test_a_signal_before_the_first_step_saves_nothing_and_says_so(tmp_path: Path) -> None:
    # Those of the command, torchrun, and the two that have a model to load.
    ground = Range(tmp_path / "range", processes=2)
    ended = ground.shoot(Shot(signal.SIGHUP, "all", 0.1, after_pids=4), draw=DRAW)
    assert (ended.code, ended.fault) == (130, "")
    assert "interrupted before the first step; nothing was saved" in ended.said


def test_a_run_stops_before_its_time_is_over(tmp_path: Path) -> None:
    """Also on a machine so slow that no step is done until then."""
    ground = Range(tmp_path / "range", processes=1, steps=MANY)
    ended = ground.shoot(None, "--max-time", "14s", draw=DRAW)
    assert (ended.code, ended.fault) == (130, "")
    assert "(asked by --max-time)" in ended.said


KILLED = {
    "rank": r"rank [01] \(process \d+\) was killed by SIGKILL",
    "torchrun": r"torchrun \(process \d+\) was killed by SIGKILL",
    "data worker": r"process \d+ of rank [01]: killed by signal: Killed",
}


@pytest.mark.parametrize("target", KILLED)
def test_a_killed_process_is_named_and_nobody_was_asked_to_stop(target: str, tmp_path: Path) -> None:
    """torch sends the others a SIGTERM then; they say what they say to a scheduler's."""
    ground = Range(tmp_path / "range", processes=2, workers=1, steps=MANY)
    ended = ground.shoot(Shot(signal.SIGKILL, target, 0.0, after_lines=5), draw=DRAW)
    assert ended.fault.startswith("exit code 1:"), ended
    assert re.search(KILLED[target], ended.said), ended.said
    assert "--resume" in ended.said
    assert "Traceback" not in ended.said, ended.said
    assert "asked by" not in ended.said
