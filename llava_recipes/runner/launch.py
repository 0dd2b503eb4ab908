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
from llava_recipes.runner.world import without_launcher


@dataclass(frozen=True)
class Processes:
    """How many processes this command starts, and where they meet those of other commands."""

    per_node: int
    nnodes: int = 1
    """Commands like this one, each on a node of its own unless `local_size` says otherwise."""
    node_rank: int = 0
    address: str = ""
    port: int = 0
    local_rank: int = 0
    local_size: int = 1
    """Commands on this machine, where each starts one process, and this one's number among them."""

    @property
    def world_size(self) -> int:
        return self.per_node * self.nnodes

    @property
    def by_torchrun(self) -> bool:
        """Whether torchrun starts them: a single one of a command needs nobody to watch over it."""
        return self.per_node > 1


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
    if processes.by_torchrun:
        argv = [*python_words(torchrun), *_torchrun_options(processes), "-m", worker, str(request_file)]
    else:
        argv = [*python_words(worker), str(request_file)]
        if processes.nnodes > 1:
            environment |= _ranks(processes, processes.address, processes.port)
            # The first command keeps the store, not the first process: nobody else can take its port.
            environment["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        elif uses_deepspeed:
            environment |= _ranks(processes, "127.0.0.1", free_port())
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


def _ranks(processes: Processes, address: str, port: int) -> dict[str, str]:
    """What torch reads of a process that torchrun does not start."""
    return {
        "RANK": str(processes.node_rank),
        "WORLD_SIZE": str(processes.nnodes),
        "LOCAL_RANK": str(_device_of(processes)),
        "LOCAL_WORLD_SIZE": str(processes.local_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def _device_of(processes: Processes) -> int:
    """The number of the GPU that a command's one process uses, among those that it may see."""
    if not _has_gpu() or processes.local_size == 1:
        return processes.local_rank
    # A launcher that gives each task a GPU of its own shows it no other one.
    return processes.local_rank if count_local_devices() > 1 else 0


def _environment(processes: Processes) -> dict[str, str]:
    environment = without_launcher(python_environment())
    # DeepSpeed finds ninja on PATH; the environment's own programs come first even when it is not activated.
    # An empty entry would be the current folder.
    usual = [folder for folder in environment.get("PATH", os.defpath).split(os.pathsep) if folder]
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), *usual])
    # Forked data loader processes would each warn about the tokenizer's threads.
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    num_here = max(processes.per_node, processes.local_size)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_here)))
    if not _has_gpu():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    elif processes.world_size == 1:
        # A process that trains alone and sees several GPUs would split each batch over all of them.
        visible = environment.get("CUDA_VISIBLE_DEVICES", "0")
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    return environment


def _torchrun_options(processes: Processes) -> list[str]:
    place = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", f"--rdzv-id={os.getpid()}"]
    if processes.nnodes > 1:
        # The nodes have met and are numbered.
        place = [
            f"--node-rank={processes.node_rank}",
            "--rdzv-backend=static",
            f"--rdzv-endpoint={processes.address}:{processes.port}",
            "--rdzv-id=run",
        ]
    return [f"--nnodes={processes.nnodes}", f"--nproc-per-node={processes.per_node}", *place]


def free_port() -> int:
    """A port of this machine that nobody uses now."""
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
