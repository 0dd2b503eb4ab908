"""The worker processes of a data loader: a signal to the whole run is not for them."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import connection
from multiprocessing.context import (
    BaseContext,
    ForkContext,
    ForkProcess,
    ForkServerContext,
    ForkServerProcess,
    SpawnContext,
    SpawnProcess,
)
from multiprocessing.process import BaseProcess
from typing import Any

_FOR_THE_RUN = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU}
_LOOK_EVERY_S = 1.0
_LONGEST_SOCKET, _LONGEST_END = 107, len("/pymp-12345678/listener-12345678")
_TO_BE_GONE_S = 2.0
"""Longer than a worker needs to see that its parent is gone, and to end."""


def worker_options(
    num_workers: int,
    *,
    seed: Callable[[int], None] | None = None,
    context: BaseContext | None = None,
) -> dict[str, Any]:
    """Keyword arguments of a DataLoader whose workers outlive signals, but not the training process.

    A signal to the whole process group, which stops the run, reaches the workers too. They must
    go on until the training process, which saves a checkpoint first, ends them. `seed` gets each worker's
    number; `context` is the way in which the workers start, or None for the usual one.
    """
    if not num_workers:
        return {}
    _shorten_sockets()
    context = _CONTEXTS[(context or multiprocessing).get_start_method()]
    return {"worker_init_fn": partial(_begin, seed=seed), "multiprocessing_context": context}


def _shorten_sockets() -> None:
    """Let workers pass their tensors on where TMPDIR is so long that no socket in it can have a name.

    Their errors would only be printed, and the samples never come.
    """
    settings: dict[str, Any] = vars(multiprocessing.current_process())["_config"]
    given = settings.get("tempdir") or tempfile.gettempdir()
    if len(os.fsencode(given)) + _LONGEST_END <= _LONGEST_SOCKET or not os.access("/tmp", os.W_OK):
        return
    settings["tempdir"] = tempfile.mkdtemp(prefix="pymp-", dir="/tmp")
    atexit.register(shutil.rmtree, settings["tempdir"], ignore_errors=True)


class _Shielded(BaseProcess):
    """A process that is born with the signals blocked: one may come before its first instruction."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_RUN)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Forked(_Shielded, ForkProcess): ...


class _Served(_Shielded, ForkServerProcess): ...


class _Spawned(_Shielded, SpawnProcess):
    def _bootstrap(self, *args: Any, **options: Any) -> None:
        # As forked ones end: threads of libraries abort the process where an interpreter shuts down.
        os._exit(super()._bootstrap(*args, **options))  # type: ignore[misc]


class _Fork(ForkContext):
    Process = _Forked


class _ForkServer(ForkServerContext):
    Process = _Served


class _Spawn(SpawnContext):
    Process = _Spawned


_CONTEXTS = {"fork": _Fork(), "forkserver": _ForkServer(), "spawn": _Spawn()}


def _nameless(family: str) -> Any:
    """Where a worker hands its tensors over: a socket of Linux without a file, which nobody can clean up."""
    return ("localhost", 0) if family == "AF_INET" else f"\0llava-recipes-{secrets.token_hex(16)}"


def _begin(worker_id: int, *, seed: Callable[[int], None] | None) -> None:
    if sys.platform == "linux":
        vars(connection)["arbitrary_address"] = _nameless
    if seed is not None:
        seed(worker_id)
    signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_RUN)
    parent, owner = os.getppid(), multiprocessing.parent_process()
    sys.excepthook = partial(_complain, parent)
    # A server may have forked this process for the one that it works for.
    senders = {parent} if owner is None or owner.pid is None else {parent, owner.pid}
    threading.Thread(target=_end_with, args=(parent, senders), name="parent-watch", daemon=True).start()


def _complain(parent: int, *error: Any) -> None:
    """Print an error, unless the training process is gone: then it is no news that it doesn't answer."""
    time.sleep(_TO_BE_GONE_S)
    if os.getppid() == parent:
        sys.__excepthook__(*error)


def _end_with(parent: int, senders: set[int]) -> None:
    """End this process once its parent is gone, or when the process that it works for ends it by SIGTERM."""
    while os.getppid() == parent:
        received = signal.sigtimedwait(_FOR_THE_RUN, _LOOK_EVERY_S)
        if received is not None and received.si_signo == signal.SIGTERM and received.si_pid in senders:
            break
    os._exit(0)
