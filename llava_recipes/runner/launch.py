"""Start the training processes of a stage on this node and wait for them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from llava_recipes.interpreter import python_environment, python_words


@dataclass(frozen=True)
class Processes:
    """How many processes train, here and on other nodes. The names are torchrun's."""

    per_node: int
    nnodes: int = 1
    node_rank: int = 0
    rdzv_backend: str = "c10d"
    rdzv_endpoint: str = ""
    rdzv_id: str = ""

    @property
    def world_size(self) -> int:
        return self.per_node * self.nnodes

    def shared_name(self) -> str | None:
        """The name of a run that several nodes start, the same on each of them; None on a single node."""
        return f"{self.rdzv_id} at {self.rdzv_endpoint}" if self.nnodes > 1 else None


def count_local_devices() -> int:
    """The number of GPUs that this process may use, or 1 where there is none: so many processes train."""
    if not _has_gpu():
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _has_gpu() -> bool:
    """Whether a GPU's driver exists: known without importing torch."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


def run_processes(processes: Processes, request_file: Path, *, uses_deepspeed: bool) -> int:
    """Run the workers to their end and return the exit code: 0 when every one succeeded."""
    worker, torchrun = "llava_recipes.runner.worker", "llava_recipes.runner.torchrun"
    environment = _environment(processes)
    if processes.world_size > 1:
        argv = [*python_words(torchrun), *_torchrun_options(processes), "-m", worker, str(request_file)]
    else:
        argv = [*python_words(worker), str(request_file)]
        if uses_deepspeed:
            environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
            environment["MASTER_PORT"] = str(_free_port())
    # A session of its own: Ctrl-C reaches this process alone, which then signals the workers once. They have
    # no standard input, so that no library can wait for an answer there.
    return _wait(subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, start_new_session=True))


def _wait(child: subprocess.Popen[bytes]) -> int:
    """Wait for a child. The first signal makes it save and stop, the second kills it."""
    asked = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.terminate()
        asked = True

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment(processes: Processes) -> dict[str, str]:
    environment = python_environment()
    # DeepSpeed finds ninja on PATH; the environment's own programs come first even when it is not activated.
    # An empty entry would be the current folder.
    usual = [folder for folder in environment.get("PATH", os.defpath).split(os.pathsep) if folder]
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), *usual])
    # Forked data loader processes would each warn about the tokenizer's threads.
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes.per_node)))
    if not _has_gpu():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    elif processes.world_size == 1:
        # A process that trains alone and sees several GPUs would split each batch over all of them.
        visible = environment.get("CUDA_VISIBLE_DEVICES", "0")
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    return environment


def _torchrun_options(processes: Processes) -> list[str]:
    endpoint = processes.rdzv_endpoint or f"127.0.0.1:{_free_port()}"
    # Other backends number the nodes themselves, and warn of a number that is given.
    rank = [f"--node-rank={processes.node_rank}"] if processes.rdzv_backend == "static" else []
    return [
        f"--nnodes={processes.nnodes}",
        f"--nproc-per-node={processes.per_node}",
        *rank,
        f"--rdzv-backend={processes.rdzv_backend}",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-id={processes.rdzv_id or os.getpid()}",
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop_with_parent() -> None:
    """Ask this process to save and stop once its parent is gone; for the processes that a run starts."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
