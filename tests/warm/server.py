"""A process that has everything imported and is forked for each `python -m MODULE` that a test starts.

`python -m tests.warm.server SOCKET`. A request is one JSON line with three file descriptors beside it; the
answer is one JSON line with the exit code. A client that goes away takes its process along; when the last
one that holds a lease is gone, the server ends.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import inspect
import io
import json
import os
import resource
import runpy
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.warm.stand_in import SAFE_PATH, import_wanted, own_path

# What `llava-recipe run`, its workers and torchrun import before they do anything; never a module that is
# itself started with -m, which would then be run a second time under another name.
PRELOADED = (
    *(f"PIL.{name}ImagePlugin" for name in ("Bmp", "Gif", "Jpeg", "Png", "Ppm")),
    "bitsandbytes",
    "deepspeed",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "encodings.idna",
    "multiprocessing.sharedctypes",
    "numpy.ctypeslib",
    "packaging.requirements",
    "peft",
    "tensorboard",
    "torch.distributed.algorithms.ddp_comm_hooks",
    "torch.distributed.elastic.multiprocessing.api",
    "torch.distributed.elastic.rendezvous.static_tcp_rendezvous",
    "torch.distributed.launcher.api",
    "torch.utils.serialization.config",
    "torch.utils.tensorboard",
    "transformers.integrations.deepspeed",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llama.tokenization_llama",
    "transformers.models.llava.modeling_llava",
    "llava_recipes.cli.main",
    "llava_recipes.cli.run",
    "llava_recipes.model.legacy_config",
    "llava_recipes.recipe.writer",
    "llava_recipes.runner.deep",
    "llava_recipes.runner.execute",
    "llava_recipes.runner.preflight",
    "llava_recipes.train.stage",
)


class Server:
    """Forks a child for every request and reports how it ended."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._children: dict[socket.socket, tuple[int, int]] = {}
        """The process and its pidfd that a connection has asked for."""
        self._leases: set[socket.socket] = set()

    def serve(self) -> Callable[[], None] | None:
        """None when the last lease is gone; in a forked child what it has to run."""
        while True:
            for key, _ in self._selector.select():
                if self._selector.get_map().get(key.fd) is not key:
                    # Done with by an event before it in the same list.
                    continue
                if key.fileobj is self._listener:
                    task = self._accept()
                    if task is not None:
                        return task
                elif isinstance(key.fileobj, socket.socket):
                    self._hear(key.fileobj)
                else:
                    self._report(key.data)
            if not self._leases:
                return None

    def _accept(self) -> Callable[[], None] | None:
        connection, _ = self._listener.accept()
        try:
            request, descriptors = _receive(connection)
        except ConnectionError:
            connection.close()
            return None
        if request is None:
            self._leases.add(connection)
            self._selector.register(connection, selectors.EVENT_READ)
            return None
        _refuse_threads()
        pid = os.fork()
        if pid == 0:
            for open_socket in (*self._children, *self._leases, connection, self._listener):
                open_socket.close()
            for _, pidfd in self._children.values():
                os.close(pidfd)
            self._selector.close()
            return lambda: become(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        pidfd = os.pidfd_open(pid)
        self._children[connection] = (pid, pidfd)
        self._selector.register(connection, selectors.EVENT_READ)
        self._selector.register(pidfd, selectors.EVENT_READ, connection)
        return None

    def _hear(self, connection: socket.socket) -> None:
        """Pass signals on; when the client is gone, end what it has started."""
        try:
            numbers = connection.recv(64)
        except ConnectionResetError:
            numbers = b""
        if connection in self._leases:
            self._leases.discard(connection)
            self._forget(connection)
        elif connection in self._children:
            pid, _ = self._children[connection]
            if not numbers:
                self._selector.unregister(connection)
            for number in numbers or (signal.SIGKILL,):
                os.kill(pid, number)

    def _report(self, connection: socket.socket) -> None:
        pid, pidfd = self._children.pop(connection)
        _, status = os.waitpid(pid, 0)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        # It was killed because the client went away.
        with suppress(OSError):
            connection.sendall(json.dumps(os.waitstatus_to_exitcode(status)).encode())
        self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        if connection in self._selector.get_map():
            self._selector.unregister(connection)
        connection.close()


def become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Turn this forked process into `python -m MODULE ARGUMENT…` as it was asked for."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, request["held_back"])
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    for descriptor in descriptors:
        os.close(descriptor)
    for number, limits in request["limits"].items():
        resource.setrlimit(int(number), tuple(limits))
    unbuffered = "-u" in request["options"] or bool(os.environ.get("PYTHONUNBUFFERED"))
    standard = (sys.stdin, sys.stdout, sys.stderr)
    sys.stdin, sys.stdout, sys.stderr = (_stream(n, each, unbuffered) for n, each in enumerate(standard))
    sys.path[1 : 1 + len(own_path(os.environ))] = own_path(request["environ"])
    os.environ.clear()
    os.environ.update(request["environ"])
    # Found from the environment at first use, which may have been an import.
    tempfile.tempdir = None
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    if "-P" in request["options"] or os.environ.get(SAFE_PATH):
        del sys.path[0]
    else:
        sys.path[0] = request["cwd"]
    sys.executable = request["executable"]
    sys.argv = request["argv"]
    _reseed()
    import_wanted()
    _leave(_run(request["argv"][0]))


def _run(module: str) -> int:
    """Run a module as `python -m` does; its exit code."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _leave(code: int) -> None:
    """End as Python does, but without taking apart what the server has imported, which takes a second."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        code = 120
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(code & 0xFF)


def _receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """A request and the client's standard streams; None for a connection that is a lease."""
    line, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while not line.endswith(b"\n"):
        more = connection.recv(1 << 16)
        if not more:
            raise ConnectionResetError("the client went away in the middle of its request")
        line += more
    request: dict[str, Any] | None = json.loads(line)
    return request, descriptors


def _stream(number: int, as_opened: Any, unbuffered: bool) -> io.TextIOWrapper:
    """A standard stream, in the encoding that Python chose for this environment."""
    raw = os.fdopen(number, "rb" if number == 0 else "wb", closefd=False)
    # As Python opens them: standard error at each line, and no line ends translated.
    return io.TextIOWrapper(
        raw,
        encoding=as_opened.encoding,
        errors=as_opened.errors,
        newline="\n",
        line_buffering=number == 2 or raw.isatty(),
        write_through=unbuffered,
    )


def _reseed() -> None:
    """Children must not share what a fresh process draws from the system; `random` sees to itself.

    What they do share is how texts are hashed, and so the order of a set of texts.
    """
    import numpy
    import torch

    numpy.random.seed()
    torch.seed()


def _refuse_threads() -> None:
    num_threads = len(os.listdir("/proc/self/task"))
    if num_threads != 1:
        names = [thread.name for thread in threading.enumerate()]
        raise RuntimeError(f"{num_threads} threads run where one is forked: {names}")


def preload() -> None:
    """Import what a run imports. What is not installed is left out, as in a run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in PRELOADED:
            try:
                importlib.import_module(name)
            except ImportError as error:
                print(f"not preloaded: {error}", file=sys.stderr)
        import transformers

        # Lazy attributes, which a run asks for one by one.
        for name in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "Trainer", "TrainingArguments"):
            getattr(transformers, name)
    # The first call looks at the file of every module, and torchrun makes one.
    inspect.getmodule(preload.__code__)
    # What libraries take apart at the end is gone with the process.
    for each in weakref.finalize._registry:  # type: ignore[attr-defined]
        each.atexit = False
    gc.collect()
    gc.freeze()


def main(path: str) -> None:
    preload()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        # Whoever waits for the name finds a socket that listens.
        listener.bind(f"{path}.new")
        listener.listen(64)
        os.rename(f"{path}.new", path)
        task = Server(listener).serve()
    if task is None:
        shutil.rmtree(Path(path).parent)
        return
    task()


if __name__ == "__main__":
    main(sys.argv[1])
