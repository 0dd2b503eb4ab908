"""Some damages of results and checkpoints are found; `python -m tests.faults.flips` tries thousands."""

from __future__ import annotations

import pytest

from tests.faults.flips import (
    Finished,
    is_found_in_checkpoint,
    is_found_in_results,
    is_refused,
    is_skipped,
    try_all,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("finished"))


def test_every_damaged_result_is_found(run: Finished) -> None:
    lost, passed, num_commands = try_all(
        run, run.results(), 160, 1, is_found=is_found_in_results, by_command=is_refused, sample=160
    )
    assert (lost, passed, num_commands) == ([], [], 1)


def test_every_damaged_checkpoint_is_found(run: Finished) -> None:
    lost, passed, num_commands = try_all(
        run, run.checkpoints(), 160, 1, is_found=is_found_in_checkpoint, by_command=is_skipped, sample=160
    )
    assert (lost, passed, num_commands) == ([], [], 1)
