"""What the training processes find in their environment."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llava_recipes.runner import launch
from llava_recipes.runner.channel import Channel, Line
from llava_recipes.runner.descendants import descendants
from llava_recipes.runner.hangs import HangWatch
from llava_recipes.runner.interruption import Interruption
from llava_recipes.runner.launch import Processes, run_processes
from llava_recipes.runner.reports import Request

PRINT = """
import os, sys
with open(sys.argv[1], "w") as file:
    file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))
"""


def visible_to(processes: Processes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`CUDA_VISIBLE_DEVICES` as a process is given it that is started in a worker's place."""
    start = subprocess.Popen

    def print_instead(argv: list[str], **rest: object) -> subprocess.Popen[bytes]:
        return start([sys.executable, "-c", PRINT, str(folder / "seen")], **rest)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(subprocess, "Popen", print_instead)
    request = Request("", "", None, False, None, None, lock="", run="")
    answer = run_processes(processes, request, uses_deepspeed=False, interruption=Interruption())
    assert answer.code == 0
    return (folder / "seen").read_text()


@pytest.mark.parametrize(
    ("given", "expected"), [(None, "0"), ("2,3", "2"), ("GPU-7a,GPU-8b", "GPU-7a"), ("", "")]
)
def test_one_process_sees_one_gpu(
    given: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "has_gpu", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_to(Processes(per_node=1), tmp_path, monkeypatch) == expected


SHOW = """
import os, sys
with open(sys.argv[1], "w") as file:
    print(sys.flags.safe_path, repr(sys.stdin.read()), os.environ["PATH"].count("::"), file=file)
    print(os.environ["PATH"].endswith(os.pathsep), "" in os.environ["PYTHONPATH"].split(":"), file=file)
"""


@pytest.mark.parametrize("path", [None, "", "/usr/bin::/bin:"])
def test_the_current_folder_and_standard_input_stay_outside(
    path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":/named::")
    monkeypatch.setattr("tests.runner.test_launch.PRINT", SHOW)
    if path is None:
        monkeypatch.delenv("PATH")
    else:
        monkeypatch.setenv("PATH", path)
    shown = visible_to(Processes(per_node=1), tmp_path, monkeypatch)
    assert shown.split() == ["True", "''", "0", "False", "False"]


@pytest.mark.parametrize("processes", [Processes(per_node=2), Processes(per_node=1, nnodes=2)])
def test_several_processes_see_what_they_are_given(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert visible_to(processes, tmp_path, monkeypatch) == "2,3"


class Stuck(subprocess.Popen[bytes]):
    """torchrun, which does not end by itself."""

    def __init__(self) -> None:
        self.returncode = None

    def poll(self) -> int | None:
        return None

    def wait(self, timeout: float | None = None) -> int:
        assert timeout is not None
        raise subprocess.TimeoutExpired("torchrun", timeout)


def test_a_stuck_torchrun_is_not_waited_for_once_its_processes_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_PATIENCE_S", 1.0)
    with closing(Channel({})) as channel:
        for rank in range(2):
            Line(channel.environment, rank=rank).close()
        watch = HangWatch(channel, num_processes=2, timeout_s=None, folder=tmp_path)
        child = Stuck()
        assert launch._wait(child, channel, Interruption(), watch, num_processes=2) is None
        # Nor where it waits in the kernel, and outlives its end.
        launch._end_all(child, channel, frozenset(descendants(os.getpid())))


def test_torchrun_announces_only_the_end_of_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.elastic.multiprocessing.api import PContext

    from llava_recipes.runner import torchrun

    closed, told = list[Any](), list[dict[str, Any]]()
    monkeypatch.setattr(torchrun, "_HEARD_S", 0.0)
    monkeypatch.setattr(PContext, "close", closed.append)
    torchrun._announce_end(cast(Line, SimpleNamespace(tell=told.append)))
    gone = subprocess.Popen(["true"], cwd=tmp_path)
    gone.wait()
    for pids, announced in (({0: gone.pid}, 0), ({0: gone.pid, 1: os.getpid()}, 1)):
        context = SimpleNamespace(pids=pids.copy)
        PContext.close(cast(PContext, context))
        assert (closed.pop(), len(told)) == (context, announced)


def test_processes_of_one_machine_need_no_name_for_it() -> None:
    alone = launch._torchrun_options(Processes(per_node=2))
    assert "--local-addr=127.0.0.1" in alone and "--rdzv-backend=static" in alone
    assert "--local-addr=127.0.0.1" not in launch._torchrun_options(
        Processes(per_node=2, nnodes=2, address="head", port=29500)
    )
