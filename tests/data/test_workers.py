"""Workers of a data loader under signals: those for the whole run, their own end, and a dead parent."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from llava_recipes.data.workers import worker_options

FOR_THE_RUN = ["INT", "TERM", "HUP", "USR1", "USR2", "XCPU"]
LIMIT_S = 20.0


class Slow:
    """Samples that each take a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> int:
        time.sleep(self.seconds)
        return index


def loader_of(
    seconds: float, seed: Callable[[int], None] | None = None, how: str = "fork"
) -> DataLoader[Any]:
    dataset: Any = Slow(seconds)
    options = worker_options(2, seed=seed, context=multiprocessing.get_context(how))
    return DataLoader(dataset, batch_size=2, num_workers=2, **options)


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, f"still alive: {list(filter(is_alive, pids))}"
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_signal_to_the_run_does_not_end_workers(how: str) -> None:
    batches: Any = iter(loader_of(0.05, how=how))
    pids = [str(worker.pid) for worker in batches._workers]
    found = []
    # The first comes before their first instruction.
    for name in FOR_THE_RUN:
        subprocess.run(["kill", f"-{name}", *pids], cwd="/", check=True)
        found += next(batches).tolist()
    assert found == list(range(12)) and next(batches, None) is None
    assert [worker.exitcode for worker in batches._workers] == [0, 0]


def test_the_process_they_work_for_ends_workers() -> None:
    """As Python does at its exit, which waits for them."""
    batches: Any = iter(loader_of(60.0))
    for worker in batches._workers:
        worker.terminate()
        worker.join(LIMIT_S)
        assert worker.exitcode == 0


def _load(pids: Connection) -> None:
    batches: Any = iter(loader_of(60.0))
    pids.send([worker.pid for worker in batches._workers])
    next(batches)


def test_workers_end_with_the_process_they_work_for() -> None:
    """Also in the middle of a sample that takes long."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    parent = multiprocessing.get_context("fork").Process(target=_load, args=(sender,))
    parent.start()
    pids = receiver.recv()
    time.sleep(0.2)
    assert all(map(is_alive, pids))
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    wait_until_gone(pids)


def test_workers_are_seeded_as_before() -> None:
    numbers = multiprocessing.get_context("fork").SimpleQueue()
    assert list(map(len, loader_of(0.0, seed=numbers.put))) == [2] * 6
    assert sorted(numbers.get() for _ in range(2)) == [0, 1]


def test_a_loader_without_workers_needs_nothing() -> None:
    assert worker_options(0) == {}


def test_a_long_name_of_the_temporary_folder_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Slurm's for a job: no socket in it can have a name, and workers pass tensors on through one."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setitem(vars(multiprocessing.current_process())["_config"], "tempdir", str(long))
    batches: Any = iter(loader_of(0.0))
    assert next(batches).tolist() == [0, 1]
    assert list(long.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="sockets without a file are Linux's")
def test_the_temporary_folder_may_be_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place := tmp_path / "place").mkdir()
    monkeypatch.setitem(vars(multiprocessing.current_process())["_config"], "tempdir", str(place))
    batches: Any = iter(loader_of(0.0))
    next(batches)
    shutil.rmtree(place)
    assert len(list(batches)) == 5
