"""One training process, `python -m llava_recipes.runner.worker`, started by the command `run`.

It can be asked to stop from its beginning: torch and transformers are imported where they are needed.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import signal
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.exit_codes import OUR_BUG, USER_ERROR
from llava_recipes.runner.channel import ChannelLost, Line
from llava_recipes.runner.descendants import kill_descendants
from llava_recipes.runner.lock import join
from llava_recipes.runner.reports import Request, Result, problems_message
from llava_recipes.runner.write_failure import reporting_write_failures
from llava_recipes.screen import flush_streams, guard_streams, say
from llava_recipes.train.stopping import Stop, StoppedBeforeStep, is_of_peers
from llava_recipes.train.watch import Watch

_DATA_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? (\d[\d, ]*)\) (?:is (killed by signal: [^.]+)|exited unexpectedly)"
)
_HEARSAY_S = 3.0


class Worker:
    """A training process and its line to the command that started it."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.request = Request.from_json(line.request)
        self._is_first = os.environ.get("RANK", "0") == "0"
        self.stop: Stop = Stop(tell=line.tell, say=self._say, leave=self._leave_at_once)
        self.watch = Watch(self.stop, tell=line.tell, timeout_s=self.request.hang_timeout_s)
        self._is_leaving = False

    def run(self) -> int:
        """Train, and report the result, the problems or the traceback; returns the exit code."""
        try:
            self._begin()
            return self._train()
        except StoppedBeforeStep:
            # Handlers raise it once: what follows is not interrupted.
            self._say_stopped()
            self._leave_at_once()
            raise AssertionError("unreachable") from None

    def _begin(self) -> None:
        self.line.listen(on_stop=self.stop.obey, on_lost=lambda: self.stop.ask(LAUNCHER_GONE))
        self.watch.start()
        self.stop.watch(seconds_left=self.request.seconds_left if self._is_first else None)

    def _train(self) -> int:
        try:
            result = self._trained()
        except RecipeError as error:
            self.line.tell(problems_message(error))
            return USER_ERROR
        except Exception as error:
            if self._is_leaving:
                # Torch raises it in this thread, for the data workers that another one is killing.
                self._leave_at_once()
            problem = data_worker_died(error) or limit_reached(error)
            if problem is not None:
                self.line.tell(problems_message(RecipeError(problem)))
                return USER_ERROR
            if self._is_of_others(error):
                self._say_stopped(met=error)
                self._leave_at_once()
            self.line.tell({"kind": "bug", "traceback": traceback.format_exc()})
            return OUR_BUG
        self.line.tell({"kind": "result", "result": result.to_json()})
        return 0

    def _trained(self) -> Result:
        try:
            with reporting_write_failures(Path(self.request.output_dir), stage=("stages", 0)):
                join(Path(self.request.output_dir), self.request.lock)
                return _train(self.request, self.stop)
        except Exception as error:
            if self.stop.is_unwinding:
                # Code that was not written in Python may turn an interruption into an error of its own.
                raise StoppedBeforeStep from error
            raise

    def _is_of_others(self, error: Exception) -> bool:
        """Whether an error only says that another process has left first, being asked to stop."""
        if not is_of_peers(f"{type(error).__name__} {error}"):
            return False
        deadline = time.monotonic() + (_HEARSAY_S if self.request.has_other_commands else 0.0)
        # The request may still be on its way from another node.
        while self.stop.reason is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.stop.reason is not None

    def _say(self, line: str) -> None:
        if self._is_first:
            say(line)

    def _say_stopped(self, *, met: Exception | None = None) -> None:
        if self.stop.reason is not None:
            # This process may end before the thread has passed it on that hears of signals.
            self.stop.ask(self.stop.reason)
        self.line.tell(self.stop.report(met=None if met is None else f"{type(met).__name__}: {met}"))

    def _leave_at_once(self) -> None:
        self._is_leaving = True
        if threading.current_thread() is threading.main_thread():
            # Torch's handler raises an error for each data worker that is killed here.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        flush_streams()
        kill_descendants(os.getpid())
        self.line.close()
        # torchrun ends the others where one fails.
        os._exit(0)


def data_worker_died(error: BaseException) -> Problem | None:
    """The problem where a process that reads data was killed, or None for other errors."""
    match = _DATA_WORKER.search(str(error)) if isinstance(error, RuntimeError) else None
    if match is None:
        return None
    pid, how = match.group(1), match.group(2) or "it ended by itself"
    often = "the machine ran out of memory: lower dataloader_num_workers"
    if "Bus error" in how:
        often = (
            "/dev/shm is too small: enlarge it (`docker run --shm-size=16g`), or lower dataloader_num_workers"
        )
    return Problem(
        "a data worker was killed",
        code="data-worker-died",
        path=("stages", 0, "train", "dataloader_num_workers"),
        found=f"process {pid} of rank {os.environ.get('RANK', '0')}: {how}",
        hint=f"often {often}; `--resume` continues from the last checkpoint",
    )


_LIMITS = (
    (
        "too many open files",
        re.compile(r"too many open files", re.IGNORECASE),
        "raise the limit (`ulimit -n 65536`), or lower dataloader_num_workers",
    ),
    (
        "no more processes or threads can be started",
        re.compile(r"can't start new thread|resource temporarily unavailable|pthread_create", re.IGNORECASE),
        "raise `ulimit -u`, or the container's limit (`docker run --pids-limit`), or lower "
        "dataloader_num_workers",
    ),
    (
        "the machine has no more memory for this process",
        re.compile(
            r"^MemoryError|(can't|cannot|unable to) (allocate|mmap)|bad_alloc|could not create a primitive",
            re.IGNORECASE,
        ),
        "ask for more memory, raise `ulimit -v`, or lower dataloader_num_workers",
    ),
)


def limit_reached(error: BaseException) -> Problem | None:
    """The problem where the system gave a process no more files, processes or memory; None otherwise."""
    if not isinstance(error, (OSError, RuntimeError, MemoryError)):
        return None
    text = f"{type(error).__name__}: {error}"
    for message, form, advice in _LIMITS:
        # torch says with a RuntimeError what the system's number means.
        if form.search(text):
            return Problem(
                message,
                code="system-limit-reached",
                path=("stages", 0),
                found=text.splitlines()[0],
                hint=f"{advice}; `--resume` continues from the last checkpoint",
            )
    return None


LAUNCHER_GONE = "the command that started it is gone"


def main() -> int:
    """Train the stage that the command which started this process requests."""
    # Training goes on when its reader, such as a pager, is closed.
    guard_streams(outlives_reader=True)
    try:
        line = Line(os.environ, rank=int(os.environ.get("RANK", "0")))
    except ChannelLost as lost:
        say(f"a training process cannot reach the command that started it: {lost}", to_stderr=True)
        return USER_ERROR
    worker = Worker(line)
    _leave(worker.run(), worker.stop)


def _train(request: Request, stop: Stop) -> Result:
    _quiet_libraries(is_first_process=os.environ.get("RANK", "0") == "0")
    from llava_recipes.plan.types import Plan
    from llava_recipes.runner.run_folder import write_results
    from llava_recipes.train.stage import train_stage

    plan = Plan.model_validate_json(request.plan)
    output_dir = Path(request.output_dir)
    resume_from = Path(request.resume_from) if request.resume_from else None
    trained = train_stage(plan, 0, output_dir=output_dir, resume_from=resume_from, run=request.run, stop=stop)
    result = Result(
        trained.num_steps,
        trained.stopped_early,
        trained.last_loss,
        trained.seconds,
        trained.eval_loss,
        trained.warnings,
    )
    if not trained.is_first_process:
        return result
    if not trained.stopped_early:
        write_results(plan, trained, output_dir)
    how = "stopped" if trained.stopped_early else "done"
    rows = [
        (how, f"step {trained.num_steps:,} in {trained.seconds:,.1f} s"),
        ("loss", "–" if trained.last_loss is None else f"{trained.last_loss:.4f}"),
    ]
    if trained.num_skipped:
        samples = "1 sample" if trained.num_skipped == 1 else f"{trained.num_skipped:,} samples"
        rows.append(("skipped", f"{samples} with a bad image"))
    if trained.eval_loss is not None:
        rows.append(("validation", f"loss {trained.eval_loss:.4f}"))
    trained.reporter.finish((*rows, ("written to", str(output_dir))))
    return result


def _quiet_libraries(*, is_first_process: bool) -> None:
    """Keep the warnings of the first process alone, and of libraries those that a user can act on."""
    if not is_first_process:
        warnings.simplefilter("ignore")
    # DeepSpeed calls deprecated names of torch.distributed.
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed\.")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It warns at import of a missing CPU kernel, also where nothing is quantized.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _leave(code: int, stop: Stop) -> NoReturn:
    """End the process as soon as everything is written and its exit handlers have run.

    Taking the interpreter apart would take seconds, and under ZeRO-3 on a CPU sometimes aborts.
    """
    import torch.distributed as dist

    if code == 0 and dist.is_available() and dist.is_initialized():
        try:
            # Nobody leaves before the others are done, or without knowing that one was asked to stop.
            stop.agree()
        except RuntimeError:
            # Another process failed first, and reports why itself.
            code = USER_ERROR
    # Those of trackers of experiments say that the run is complete.
    atexit._run_exitfuncs()
    flush_streams()
    os._exit(code)


if __name__ == "__main__":
    raise SystemExit(main())
