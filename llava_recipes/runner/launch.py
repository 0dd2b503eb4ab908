"""Start the training processes of a stage on this node and wait for them."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from llava_recipes.interpreter import python_environment, python_words
from llava_recipes.runner.channel import Channel
from llava_recipes.runner.descendants import adopting, descendants, kill_descendants, reap
from llava_recipes.runner.hangs import HangWatch
from llava_recipes.runner.interruption import Interruption
from llava_recipes.runner.reports import Reports, Request, killed_message
from llava_recipes.runner.world import without_launcher
from llava_recipes.stop_signals import held_back

_TICK_S = 0.1
_PATIENCE_S = 30.0
"""How long a process that was asked to stop may say nothing; saving is never cut."""
_POINTLESS_S = 10.0
"""How long it may go on where processes of another command have failed: none gets further without them."""
_LAST_WORDS_S, _TO_DIE_S = 5.0, 20.0


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
    if not has_gpu():
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def has_gpu() -> bool:
    """Whether a GPU's driver exists: known without importing torch."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


@dataclass(frozen=True)
class Answer:
    """What became of a stage's processes: their exit code, and what they reported."""

    code: int
    reports: Reports
    cut_short: str | None
    """Why they were killed although they had not ended: words for a message; or None."""


def run_processes(
    processes: Processes,
    request: Request,
    *,
    uses_deepspeed: bool,
    interruption: Interruption,
    elsewhere: Callable[[float], float] = lambda still_s: math.inf,
) -> Answer:
    """Run the workers to their end; they save and stop once the interruption asks. None of them is left.

    elsewhere  as for HangWatch
    """
    worker, torchrun = "llava_recipes.runner.worker", "llava_recipes.runner.torchrun"
    environment = _environment(processes)
    if processes.by_torchrun:
        argv = [*python_words(torchrun), *_torchrun_options(processes), "-m", worker]
    else:
        argv = python_words(worker)
        if processes.nnodes > 1:
            environment |= _ranks(processes, processes.address, processes.port)
            # The first command keeps the store, not the first process: nobody else can take its port.
            environment["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        elif uses_deepspeed:
            environment |= _ranks(processes, "127.0.0.1", free_port())
    others = frozenset(descendants(os.getpid()))
    channel = Channel(request.to_json())
    environment |= channel.environment
    with closing(channel), adopting(), interruption.ending_processes_first():
        # A session of its own: Ctrl-C reaches this process alone, which then asks the workers once. They have
        # no standard input, so that no library can wait for an answer there.
        with held_back():
            child = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            watch = HangWatch(
                channel,
                num_processes=processes.per_node,
                timeout_s=request.hang_timeout_s,
                folder=Path(request.output_dir),
                elsewhere=elsewhere,
            )
            cut_short = _wait(child, channel, interruption, watch, num_processes=processes.per_node)
        finally:
            _end_all(child, channel, others)
            _hear(channel, interruption)
        reports = Reports.read(channel)
        code = -signal.SIGKILL if child.returncode is None else child.returncode
        if cut_short is None and code < 0 and not reports.is_done:
            who = "torchrun" if processes.by_torchrun else f"rank {processes.node_rank}"
            channel.note(killed_message(who, child.pid, -code))
            reports = Reports.read(channel)
        return Answer(code, reports, cut_short)


def _wait(
    child: subprocess.Popen[bytes],
    channel: Channel,
    interruption: Interruption,
    watch: HangWatch,
    *,
    num_processes: int,
) -> str | None:
    """Wait for the processes to end. Returns why they must be killed, or None when they have ended."""
    waited_s = left_s = 0.0
    before_s = time.monotonic()
    while True:
        ranks = channel.ranks()
        if child.poll() is not None:
            if not ranks:
                return None
            # torchrun was killed: nobody waits for them, and what they have learned is saved.
            channel.stop("torchrun is gone")
        interruption.seconds_left()
        _hear(channel, interruption)
        if interruption.is_repeated:
            return "a second signal"
        if interruption.reason is not None:
            channel.stop(interruption.reason)
        elif interruption.is_pointless:
            channel.stop("a failure elsewhere")
        now_s = time.monotonic()
        # Being suspended is no reason to lose patience.
        elapsed_s, before_s = min(now_s - before_s, 1.0), now_s
        if watch.has_hung(elapsed_s):
            return "a hang"
        left_s = left_s + elapsed_s if channel.num_seen >= num_processes and not ranks else 0.0
        if left_s >= _PATIENCE_S:
            # All have left and said what became of them; torchrun is stuck, or stopped by a signal.
            return None
        if channel.is_stopping and not any(peer.is_saving for peer in ranks):
            waited_s += elapsed_s
            if not channel.num_seen:
                return "a request before it had begun"
            if interruption.is_pointless and waited_s >= _POINTLESS_S:
                return "a failure elsewhere"
            heard_s = min((peer.heard_s for peer in ranks), default=now_s)
            if waited_s >= _PATIENCE_S and now_s - heard_s >= _PATIENCE_S:
                return f"a training process did not react for {_PATIENCE_S:g} s"
        else:
            waited_s = 0.0
        time.sleep(_TICK_S)


def _hear(channel: Channel, interruption: Interruption) -> None:
    """Take over what a process was asked that this one was not."""
    for _, message in channel.of_kind("asked"):
        interruption.ask(str(message.get("reason")))


def _end_all(child: subprocess.Popen[bytes], channel: Channel, others: frozenset[int]) -> None:
    """Kill what still runs of a stage, wait for it, and read the last words."""
    for peer in channel.peers():
        kill_descendants(peer.pid)
        with suppress(ProcessLookupError):
            os.kill(peer.pid, signal.SIGKILL)
    kill_descendants(os.getpid(), except_for=others)
    # One that waits for a dead disk in the kernel may outlive even that.
    with suppress(subprocess.TimeoutExpired):
        child.wait(_TO_DIE_S)
    for pid in descendants(os.getpid()):
        if pid not in others:
            reap(pid)
    deadline = time.monotonic() + _LAST_WORDS_S
    while channel.peers() and time.monotonic() < deadline:
        time.sleep(0.01)


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
    if not has_gpu() or processes.local_size == 1:
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
    # Without it every process of every run says that DDP found no unused parameters, which is no fault.
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    num_here = max(processes.per_node, processes.local_size)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_here)))
    if not has_gpu():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    elif processes.world_size == 1:
        # A process that trains alone and sees several GPUs would split each batch over all of them.
        visible = environment.get("CUDA_VISIBLE_DEVICES", "0")
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    return environment


def _torchrun_options(processes: Processes) -> list[str]:
    # Static, for who takes part is known: torch's way to find out takes a second and computes all that time.
    place = ["--rdzv-backend=static", "--rdzv-id=run", f"--node-rank={processes.node_rank}"]
    if processes.nnodes > 1:
        # The nodes have met and are numbered.
        place.append(f"--rdzv-endpoint={processes.address}:{processes.port}")
    else:
        # Without an address processes look for each other under this machine's name, which need not be known.
        place += [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1"]
    return [f"--nnodes={processes.nnodes}", f"--nproc-per-node={processes.per_node}", *place]


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
