"""A run that hangs ends, and names where; a run that is only suspended or busy goes on."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from llava_recipes.data.reading import Reading, process_state
from llava_recipes.runner import hangs
from llava_recipes.runner.channel import Channel, Peer
from llava_recipes.runner.hangs import HangWatch
from llava_recipes.train import watch as watching
from llava_recipes.train.stopping import DATA, SAVING, STEP, Stop
from llava_recipes.train.watch import Watch
from tests.faults.hangs import SITES, hang_at


class Pretended(Channel):
    """The command's end, with training processes that a test makes up."""

    def __init__(self, *peers: Peer) -> None:
        self.pretended, self.num_seen, self.noted = list(peers), len(peers), list[dict[str, Any]]()

    def ranks(self) -> list[Peer]:
        return self.pretended

    def note(self, message: dict[str, Any]) -> None:
        self.noted.append(message)


def peer(rank: int, pid: int, **status: Any) -> Peer:
    told = {"phase": STEP, "waits_for": STEP, "idle_s": 0.0, "limit_s": 60.0, "stacks": None, **status}
    return Peer(socket.socket(), rank, pid, heard_s=0.0, status=told)


def problem_of(channel: Pretended) -> dict[str, Any]:
    ((problem,),) = [message["problems"] for message in channel.noted]
    return dict(problem)


def test_the_process_that_the_others_wait_for_is_named_first(tmp_path: Path) -> None:
    reading = peer(1, 2**22 + 1, phase=DATA, waits_for="sample 7", idle_s=70.0)
    channel = Pretended(peer(0, 2**22 + 2, idle_s=69.0), reading)
    look = HangWatch(channel, num_processes=2, timeout_s=None, folder=tmp_path)
    assert look.has_hung(0.1)
    problem = problem_of(channel)
    assert problem["code"] == "run-hangs" and "70 s" in problem["message"]
    assert problem["found"].startswith("rank 1 (process 4194305) waits for sample 7\nrank 0 ")
    assert "hang-rank0.txt, hang-rank1.txt" in problem["hint"]
    assert "waits for sample 7" in (tmp_path / "hang-rank1.txt").read_text()
    for each in channel.pretended:
        each.connection.close()


def test_who_waits_for_one_that_advances_does_not_hang(tmp_path: Path) -> None:
    """As where each image of a batch takes nearly as long as a process may be idle."""
    waiting, reading = peer(0, 2**22 + 2, idle_s=70.0), peer(1, 2**22 + 1, phase=DATA, idle_s=50.0)
    elsewhere = [50.0]
    for others, expected in (([reading], False), ([], False)):
        channel = Pretended(waiting, *others)
        look = HangWatch(
            channel,
            num_processes=1,
            timeout_s=None,
            folder=tmp_path,
            elsewhere=lambda still_s: elsewhere[0],
        )
        assert look.has_hung(0.1) is expected
    elsewhere[0] = 60.0
    assert look.has_hung(0.1)
    # One that only computes may wait for the other, as NCCL does it.
    reading.status |= {"phase": SAVING, "idle_s": 0.0, "still_s": 60.0}
    channel = Pretended(waiting, reading)
    assert HangWatch(channel, num_processes=1, timeout_s=None, folder=tmp_path).has_hung(0.1)
    for each in channel.pretended:
        each.connection.close()


def test_a_silent_process_hangs_but_not_while_the_command_itself_was_suspended(tmp_path: Path) -> None:
    talking, silent = peer(0, 2**22 + 2, idle_s=3.0), peer(1, 2**22 + 1)
    channel = Pretended(talking, silent)
    look = HangWatch(channel, num_processes=2, timeout_s=None, folder=tmp_path)
    # An hour on the clock, of which this process saw a second.
    talking.heard_s = silent.heard_s = 3600.0
    assert not look.has_hung(1.0)
    for second in range(55):
        talking.heard_s += 1
        assert not look.has_hung(1.0), second
    silent.status["limit_s"] = 55.0
    assert look.has_hung(1.0)
    assert problem_of(channel)["found"].startswith("rank 1 (process 4194305) is stuck and does not react")
    for each in channel.pretended:
        each.connection.close()


def test_processes_that_never_start_are_missed(tmp_path: Path) -> None:
    channel = Pretended()
    look = HangWatch(channel, num_processes=2, timeout_s=5.0, folder=tmp_path)
    assert not look.has_hung(119.0)
    assert look.has_hung(1.0)
    assert problem_of(channel)["found"] == "none has started"


def test_only_what_advances_nothing_counts_as_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "TICK_S", 0.02)
    told: list[dict[str, Any]] = []
    ended = threading.Event()

    def tell(status: dict[str, Any]) -> None:
        told.append(status)
        if ended.is_set():
            raise EOFError

    stop, reading = Stop(), Reading()
    stop.readings.append(reading)
    stop.enter(DATA)
    reading.note('sample 3 (id "x"), image a/b.jpg')
    watch = Watch(stop, tell=tell, timeout_s=None)

    def run() -> None:
        with pytest.raises(EOFError):
            watch._run()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: bool(told))
        wait_until(lambda: told[-1]["idle_s"] > 0.2)
        assert told[-1]["waits_for"] == f'{DATA}: sample 3 (id "x"), image a/b.jpg'
        assert told[-1]["limit_s"] == 600.0
        reading.note("")
        wait_until(lambda: told[-1]["idle_s"] < 0.2 and told[-1]["waits_for"] == DATA)
        stop.collective_s = 60.0
        stop.enter(STEP)
        wait_until(lambda: told[-1]["limit_s"] == 50.0)
        # Writing is progress where a checkpoint is saved.
        stop.enter(SAVING)
        monkeypatch.setattr(watching, "_work", lambda: (time.process_time(), 1e9 * time.monotonic()))
        time.sleep(0.3)
        assert told[-1]["idle_s"] == 0.0
    finally:
        ended.set()
        thread.join()


def test_a_stopped_data_worker_is_named() -> None:
    reading = Reading()
    context = get_context("fork")
    child = context.Process(target=time.sleep, args=(600,))
    child.start()
    assert child.pid is not None
    try:
        slot = reading._readers[1]
        slot.pid, slot.what = child.pid, b"sample 5"
        assert reading.describe() == f"sample 5 in data worker 0 (process {child.pid})"
        os.kill(child.pid, signal.SIGSTOP)
        wait_until(lambda: process_state(child.pid or 0) == "T")
        slot.what = b""
        assert reading.describe() == f"data worker 0 (process {child.pid}), which is stopped by a signal"
    finally:
        child.kill()
        child.join()
        child.close()


def test_a_slow_hash_is_no_hang_of_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hangs, "TICK_S", 0.05)
    verdicts = list[str]()
    monkeypatch.setattr(hangs, "_end_command", lambda found, thread, idle_s: verdicts.append(found))
    (file := tmp_path / "weights").write_bytes(bytes(2**20))
    with hangs.watched("hashes", 0.5), file.open("rb", buffering=0) as opened:
        for _ in range(6):
            opened.read(2**16)
            time.sleep(0.2)
        assert verdicts == []
        time.sleep(0.8)
    assert verdicts[0] == f"the command, which hashes, waits for {file}"


class Odd:
    """A value as some library may have it, which cannot be asked for anything."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("not yet")


def test_the_commands_watch_survives_every_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hangs, "TICK_S", 0.01)
    verdicts, died, heard = list[str](), list[object](), threading.Event()

    def hear(into: list[Any], said: object) -> None:
        into.append(said)
        heard.set()

    monkeypatch.setattr(hangs, "_end_command", lambda found, thread, idle_s: hear(verdicts, found))
    monkeypatch.setattr(threading, "excepthook", lambda error: hear(died, error))

    def waits(folder: str) -> None:
        file_odd = Odd()
        file_unready = waits.__code__.co_positions()  # before Python 3.12, of a type without `__class__`
        file_detached = (tmp_path / "detached").open("w")
        file_detached.detach().close()
        # As the watch may find one that another thread is about to make.
        path_incomplete = object.__new__(PurePosixPath)
        heard.wait(60)
        del file_odd, file_unready, path_incomplete

    with hangs.watched("looks", 0.3):
        waits("/data")
    assert not died
    assert verdicts[0] == "the command, which looks, waits for /data"


class Grows:
    """A value that changes the variables of its module when it is asked for its class, as imports do."""

    def __init__(self, module: dict[str, Any]) -> None:
        self.module = module

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        self.module[f"name_{len(self.module)}"] = None
        raise ValueError


def test_a_module_that_is_being_imported_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hangs, "TICK_S", 0.05)
    verdicts = list[str]()
    monkeypatch.setattr(hangs, "_end_command", lambda found, thread, idle_s: verdicts.append(found))
    module: dict[str, Any] = {"sleep": time.sleep}
    module |= {"value": Grows(module), "path": "/models/of/a/module"}
    with hangs.watched("imports", 0.5):
        exec("sleep(1)", module)
    assert verdicts[0] == "the command, which imports, waits for /models/of/a/module"


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["an image, in a data worker", "its folder, in the command"])
def test_a_hang_ends_and_is_named(name: str, tmp_path: Path) -> None:
    ended = hang_at(SITES[name], tmp_path)
    assert ended.faults == (), ended.message
