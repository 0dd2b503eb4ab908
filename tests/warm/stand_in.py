"""What a test starts in place of Python: `stand_in.py SOCKET PROGRAM [-u] [-P] -m MODULE ARGUMENT…`.

Runs under `python -IS`, with nothing but the standard library, in a hundredth of a second.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

READ_AT_IMPORT = (
    *("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "OMP_", "MKL_", "KMP_"),
    *("HF_", "TRANSFORMERS_", "TOKENIZERS_", "CUDA_VISIBLE", "DS_", "BNB_", "TQDM_", "TORCH_HOME"),
    *("HOME", "XDG_"),
)
"""Variables that begin so matter while libraries are imported: another value needs another process."""

SAFE_PATH = "PYTHONSAFEPATH"
"""Matters to the path alone, which a forked process is given anew."""

_PATH = "PYTHONPATH"
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

IMPORTED = "TESTS_WARM_IMPORT"
"""Names modules that a process imports before it runs its own."""

_FORWARDED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCONT")
_LIMITS = sorted(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
_EVERY_S = 0.5


def import_wanted() -> None:
    """Import what IMPORTED names, in a process that is about to run a module of its own."""
    for name in os.environ.get(IMPORTED, "").split():
        importlib.import_module(name)


def at_import(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that a server must have been started with."""
    given_anew = {SAFE_PATH, _PATH} if _names_only_root(environ) else {SAFE_PATH}
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(READ_AT_IMPORT) and name not in given_anew
    }


def own_path(environ: Mapping[str, str]) -> list[str]:
    """What PYTHONPATH adds to the path of a process that can be forked from any server."""
    return [_ROOT] if environ.get(_PATH) and _names_only_root(environ) else []


def _names_only_root(environ: Mapping[str, str]) -> bool:
    """Whether PYTHONPATH adds nothing but this checkout, from which the server imports anyway."""
    path = environ.get(_PATH, "")
    return not path or set(path.split(os.pathsep)) == {_ROOT}


def parse(words: list[str]) -> dict[str, Any] | None:
    """What to run; None for what the real interpreter has to do."""
    options = set()
    rest = list(words)
    while rest and rest[0] in ("-u", "-P"):
        options.add(rest.pop(0))
    if len(rest) < 2 or rest[0] != "-m":
        return None
    return {"argv": rest[1:], "options": sorted(options)}


def _open_streams() -> list[int]:
    """Descriptors of the standard streams; nothing in place of a closed one."""
    descriptors = []
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            number = os.open(os.devnull, os.O_RDWR)
        descriptors.append(number)
    return descriptors


def _wait(connection: socket.socket) -> int:
    """The exit code of what was started, negative for a signal."""
    parent = os.getppid()

    def forward(number: int, frame: FrameType | None) -> None:
        connection.send(bytes([number]))

    for name in _FORWARDED:
        signal.signal(getattr(signal, name), forward)
    # A run starts its processes with signals held back until they are ready for them.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    while not select.select([connection], [], [], _EVERY_S)[0]:
        if os.getppid() != parent:
            # Closing the connection ends the process that was started.
            return 1
    answer = connection.recv(64)
    if not answer:
        sys.exit("tests.warm: the server is gone; its log is beside its socket")
    code: int = json.loads(answer)
    return code


def main(socket_path: str, program: str, *words: str) -> int:
    request = parse(list(words))
    with open(os.path.join(os.path.dirname(socket_path), "environ.json")) as file:
        served = json.load(file)
    if request is None or at_import(os.environ) != served:
        os.execv(sys.executable, [sys.executable, *words])
    umask = os.umask(0o077)
    os.umask(umask)
    request |= {"cwd": os.getcwd(), "environ": dict(os.environ), "umask": umask, "executable": program}
    request["held_back"] = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    request["limits"] = {number: resource.getrlimit(number) for number in _LIMITS}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(socket_path)
        socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], _open_streams())
        return _wait(connection)


if __name__ == "__main__":
    exit_code = main(*sys.argv[1:])
    if exit_code < 0:
        if -exit_code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-exit_code, signal.SIG_DFL)
        os.kill(os.getpid(), -exit_code)
    os._exit(exit_code & 0xFF)
