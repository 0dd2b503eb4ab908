"""A damaged file is its owner's to fix: whatever is wrong with it, no command ends in a bug of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.laws import LONG
from tests.processes import python, run_process

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 1700.0
PARTS = 2 if LONG else 1
PER_FILE = 12 if LONG else 5
LEAST_TRIALS = 1_000 if LONG else 400
MOST_FAULTS_SHOWN = 40


@pytest.mark.parametrize("part", range(PARTS))
def test_a_damaged_file_ends_in_0_or_1_and_is_named(part: int, tmp_path: Path) -> None:
    words = map(str, (tmp_path / "ground", PER_FILE, part, PARTS))
    done = run_process([*python("tests.damage.campaign"), *words], cwd=ROOT, timeout_s=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout.splitlines()[-1])
    assert reported["num_trials"] >= LEAST_TRIALS / PARTS
    faults = reported["faults"]
    assert not faults, "\n".join([f"{len(faults)} faults", *faults[:MOST_FAULTS_SHOWN]])
