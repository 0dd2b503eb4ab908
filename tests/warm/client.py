"""Where a pytest process gets its server, and how long it keeps it."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from tests.warm.stand_in import IMPORTED, at_import

ROOT = Path(__file__).parents[2]
FRESH = "LLAVA_RECIPES_FRESH"
"""Set to 1, every process is a fresh interpreter: slower, and nothing is shared."""

_START_S = 300.0
_LONGEST_NAME = 107
"""Of a socket, in bytes."""
_session = uuid.uuid4().hex
_lease: socket.socket | None = None
_server: subprocess.Popen[bytes] | None = None


def join(session: str) -> None:
    """Share one server among the pytest processes that name the same session."""
    global _session
    _session = session


def server_pid() -> int | None:
    """The server's process, where this process started it."""
    return None if _server is None else _server.pid


def python() -> str:
    """Program that takes the place of `sys.executable`; starts the server where there is none."""
    global _lease
    if os.environ.get(FRESH) == "1" or not hasattr(os, "pidfd_open"):
        return sys.executable
    folder = Path(tempfile.gettempdir()) / f"llava-recipe-{_session[:16]}"
    if len(os.fsencode(folder / "socket.new")) > _LONGEST_NAME:
        return sys.executable
    if _lease is None:
        folder.mkdir(mode=0o700, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "socket").exists():
                _start(folder)
        _lease = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        _lease.connect(str(folder / "socket"))
        _lease.sendall(b"null\n")
    return str(folder / "python")


def importing(module: str) -> dict[str, str]:
    """Environment with which a started process, and each that it starts, imports a module before its own."""
    if python() != sys.executable:
        return {IMPORTED: module}
    return {IMPORTED: module, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests/warm/fresh"), str(ROOT)])}


def leave() -> None:
    """Give the lease back; the last one ends the server."""
    global _lease, _server
    if _lease is not None:
        _lease.close()
        _lease = None
    if _server is not None:
        try:
            _server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            # Another pytest process still needs it.
            _server.returncode = 0
        _server = None


def _start(folder: Path) -> None:
    global _server
    (folder / "environ.json").write_text(json.dumps(at_import(os.environ)))
    program = folder / "python"
    words = [
        sys.executable,
        "-IS",
        str(ROOT / "tests/warm/stand_in.py"),
        str(folder / "socket"),
        str(program),
    ]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    program.chmod(0o700)
    with (folder / "log").open("wb") as log:
        _server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm.server", str(folder / "socket")],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_S
    while not (folder / "socket").exists():
        if _server.poll() is not None or time.monotonic() > deadline:
            _server.kill()
            raise RuntimeError(f"the warm server did not start:\n{(folder / 'log').read_text()}")
        time.sleep(0.05)
