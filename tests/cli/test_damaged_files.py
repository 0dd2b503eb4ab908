"""A damaged file is its owner's to fix: whatever is wrong with it, no command ends in a bug of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.processes import python, run_process

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 600.0
PARTS = 2
PER_FILE = 12
MOST_FAULTS_SHOWN = 40


@pytest.mark.parametrize("part", range(PARTS))
def test_a_damaged_file_ends_in_0_or_1_and_is_named(part: int, tmp_path: Path) -> None:
    words = map(str, (tmp_path / "ground", PER_FILE, part, PARTS))
    done = run_process([*python("tests.damage.campaign"), *words], cwd=ROOT, timeout_s=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout.splitlines()[-1])
    assert reported["num_trials"] >= 1_000 / PARTS
    faults = reported["faults"]
    assert not faults, "\n".join([f"{len(faults)} faults", *faults[:MOST_FAULTS_SHOWN]])
