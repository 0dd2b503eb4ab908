"""The guard of tests/conftest.py sees what a test leaves behind, and puts back what can be."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.leaks import Surroundings
from tests.processes import ROOT


def _into_a_folder_that_goes() -> None:
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)


RESTORED: dict[str, tuple[str, Callable[[], object]]] = {
    "another folder": ("working folder", lambda: os.chdir("/proc/self/fdinfo")),
    "a folder that is gone": ("working folder", _into_a_folder_that_goes),
    "a variable": ("os.environ", lambda: os.environ.__setitem__("LEFT_BEHIND", "1")),
    "a variable changed": ("os.environ", lambda: os.environ.__setitem__("OMP_NUM_THREADS", "7")),
    "a variable gone": ("os.environ", lambda: os.environ.__delitem__("OMP_NUM_THREADS")),
    "a folder of modules": ("sys.path", lambda: sys.path.append("/nowhere")),
    "a signal handler": ("signal handlers", lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN)),
    "umask": ("umask", lambda: os.umask(0o007)),
    "dtype": ("torch", lambda: torch.set_default_dtype(torch.float64)),
    "threads of torch": ("torch", lambda: torch.set_num_threads(torch.get_num_threads() + 1)),
    "no gradients": ("torch", lambda: torch.set_grad_enabled(False)),
    "device": ("torch", lambda: torch.set_default_device("meta")),
    "deterministic": ("torch", lambda: torch.use_deterministic_algorithms(True)),
}


@pytest.mark.parametrize("name", RESTORED)
def test_what_is_left_behind_is_named_and_put_back(name: str) -> None:
    thing, leave = RESTORED[name]
    before = Surroundings.now()
    leave()
    (difference,) = before.differences(Surroundings.now())
    before.restore()
    assert difference.startswith(f"{thing}: ")
    assert before.differences(Surroundings.now()) == []


def test_a_process_is_named_until_it_is_waited_for() -> None:
    before = Surroundings.now()
    code = "print('running', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        assert before.differences(Surroundings.now()) == [f"child processes: {sys.executable} -c {code}"]
        child.stdin.write("\n")
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert before.differences(Surroundings.now()) == ["child processes: a zombie"]
    assert before.differences(Surroundings.now()) == []


def test_a_thread_is_named() -> None:
    before = Surroundings.now()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="left behind")
    thread.start()
    try:
        assert before.differences(Surroundings.now()) == ["threads: left behind"]
    finally:
        end.set()
        thread.join()


def _calls(file: Path) -> list[ast.Call]:
    """Calls that start a process."""
    return [
        node
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "subprocess"
        and node.func.attr in ("run", "Popen", "call", "check_call", "check_output")
    ]


def test_whatever_starts_a_process_names_its_folder() -> None:
    """It would else stand wherever pytest was started."""
    calls = [(file, call) for file in sorted((ROOT / "tests").rglob("*.py")) for call in _calls(file)]
    assert len(calls) >= 5
    nameless = [
        (file.name, call.lineno) for file, call in calls if "cwd" not in {k.arg for k in call.keywords}
    ]
    assert nameless == []
