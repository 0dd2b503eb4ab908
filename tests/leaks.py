"""What a test must leave as it found it, since other tests come after it in the same process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.warm import client

_THEIR_HANDLERS = (
    # Set with a process's first data loader that has workers, once and for all.
    "torch.utils.data._utils.signal_handling",
    # Set for each test, and taken away at its end or where it fails.
    "pytest_timeout",
)
_MAY_END = ("child processes", "threads")
# Python starts it with the first lock that processes share, and ends it itself.
_TRACKER = "multiprocessing.resource_tracker"
# Ours, started with the first chat template that is rendered; it serves until this process ends.
_RENDERER = "llava_recipes.data.render_process"
# pytest says in one which test is running; torch and DeepSpeed set the others when they are imported.
_THEIR_VARIABLES = {"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "PYTORCH_NVML_BASED_CUDA_CHECK"}


@dataclass(frozen=True)
class Surroundings:
    """State of this process, by what it is called in a message."""

    state: dict[str, Any]

    @classmethod
    def now(cls) -> Surroundings:
        return cls({name: look() for name, look in _LOOKS.items()})

    def differences(self, later: Surroundings) -> list[str]:
        """One line for each thing that is not as it was. Processes and threads may have ended."""
        found = []
        for name, was in self.state.items():
            there = later.state[name]
            if name in _MAY_END:
                new = {key: there[key] for key in there if there[key] != was.get(key)}
                found += [f"{name}: {', '.join(new.values())}"] if new else []
            elif was is not None and was != there:
                found.append(f"{name}: {_spell(was, there)}")
        return found

    def restore(self) -> None:
        """Put back what can be, so that the tests after it don't fail for this one."""
        os.chdir(self.state["working folder"])
        os.umask(self.state["umask"])
        sys.path[:] = self.state["sys.path"]
        environ = self.state["os.environ"]
        for name in set(os.environ) - set(environ) - _THEIR_VARIABLES:
            del os.environ[name]
        os.environ.update(environ)
        handlers = _handlers()
        for number, handler in self.state["signal handlers"].items():
            if handlers[number] != handler:
                signal.signal(number, handler)
        held, found = self.state["torch"], _torch()
        if held is not None and held != found:
            import torch

            torch.set_default_dtype(held["default dtype"])
            torch.set_num_threads(held["number of threads"])
            torch.set_grad_enabled(held["gradients"])
            torch.use_deterministic_algorithms(held["deterministic"])
            if held["default device"] != torch.get_default_device():
                torch.set_default_device(None)


def may_end(difference: str) -> bool:
    """Whether waiting may make a difference go: a process or thread that is ending."""
    return difference.startswith(_MAY_END)


def _spell(was: Any, found: Any) -> str:
    """Of collections what is new, gone or other; of all else both values."""
    if isinstance(was, dict) and isinstance(found, dict):
        names = [name for name in {**was, **found} if was.get(name) != found.get(name)]
        return ", ".join(f"{name} was {was.get(name)!r}, is {found.get(name)!r}" for name in names)
    return f"was {was!r}, is {found!r}"


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "a folder that is gone"


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _handlers() -> dict[int, Any]:
    found: dict[int, Any] = {}
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        handler = signal.getsignal(number)
        is_theirs = getattr(handler, "__module__", None) in _THEIR_HANDLERS
        found[number] = signal.SIG_DFL if is_theirs else handler
    return found


def _torch() -> dict[str, Any] | None:
    """What holds for all of torch; None until it is imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "number of threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _children() -> dict[int, str]:
    """Processes that this one has started and that are still there, zombies too."""
    found = {}
    for file in Path("/proc/self/task").glob("*/children"):
        # A thread may have ended since it was listed.
        with suppress(FileNotFoundError, ProcessLookupError):
            for pid in map(int, file.read_text().split()):
                found[pid] = _command(pid)
    server = client.server_pid()
    lasting = (_TRACKER, _RENDERER)
    return {
        pid: command
        for pid, command in found.items()
        if pid != server and not any(name in command for name in lasting)
    }


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "gone"
    return b" ".join(words).decode("utf-8", "replace").strip() or "a zombie"


def _threads() -> dict[int, str]:
    return {thread.ident or 0: thread.name for thread in threading.enumerate()}


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _THEIR_VARIABLES}


_LOOKS: dict[str, Callable[[], Any]] = {
    "working folder": _folder,
    "umask": _umask,
    "os.environ": _environ,
    "sys.path": lambda: list(sys.path),
    "signal handlers": _handlers,
    "torch": _torch,
    "child processes": _children,
    "threads": _threads,
}
