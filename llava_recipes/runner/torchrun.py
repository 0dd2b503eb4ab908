"""torchrun without its traceback, and without its limit of 30 s for saving after a signal."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from torch.distributed.elastic.multiprocessing.api import PContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from llava_recipes.exit_codes import USER_ERROR
from llava_recipes.runner.channel import ChannelLost, Line
from llava_recipes.runner.descendants import descendants
from llava_recipes.runner.reports import killed_message
from llava_recipes.screen import guard_streams
from llava_recipes.stop_signals import STOP_SIGNALS

_HEARD_S = 0.2
_AT_ONCE_S = 2


def main(argv: list[str]) -> int:
    """Run `-m MODULE`, given after torchrun's options, in every process; the highest exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    guard_streams(outlives_reader=True)
    try:
        line = Line(os.environ, rank=None)
    except ChannelLost:
        return USER_ERROR
    line.listen(on_stop=lambda reason: None, on_lost=_end_after_workers)
    threading.Thread(target=_pass_on, args=(line,), name="signals", daemon=True).start()
    _announce_end(line)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # Its folder of logs, which nobody reads, would be a reason to fail.
    config, command, arguments = config_from_args(parse_args([f"--log-dir={os.devnull}", *argv]))
    try:
        elastic_launch(config, command)(*arguments)
    except ChildFailedError as error:
        for rank, failure in _killed(error.failures).items():
            line.tell(killed_message(f"rank {rank}", failure.pid, -failure.exitcode))
        codes = [failure.exitcode for failure in error.failures.values()]
        return max(code if code >= 0 else 128 - code for code in codes)
    return 0


def _pass_on(line: Line) -> None:
    """Pass stop signals on to the command, which asks the processes to stop.

    They stay held back in this process, and in the processes it starts until these are ready: torch's own
    handlers would kill them 30 s later, in the middle of saving.
    """
    while True:
        number = signal.sigwait(STOP_SIGNALS)
        line.tell({"kind": "asked", "reason": signal.Signals(number).name})


def _announce_end(line: Line) -> None:
    """Tell the command before torch ends the other processes after a failure: by a SIGTERM of its own.

    Nobody has asked the run to stop then, and what has failed is the cause.
    """
    close = PContext.close

    def announced(context: PContext, *arguments: Any, **options: Any) -> None:
        if any(map(_runs, context.pids().values())):
            line.tell({"kind": "ending"})
            # It travels another way than what the processes tell of that signal.
            time.sleep(_HEARD_S)
        close(context, *arguments, **options)

    setattr(PContext, "close", announced)  # noqa: B010  # mypy knows it as a method


def _runs(pid: int) -> bool:
    """Whether a process still exists; one that has ended does until it is waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _killed(failures: Mapping[int, ProcessFailure]) -> dict[int, ProcessFailure]:
    """The processes that a signal has killed, by rank; not those that torch killed long after a failure."""
    first = min(failure.timestamp for failure in failures.values())
    return {
        rank: failure
        for rank, failure in failures.items()
        if failure.exitcode < 0 and failure.timestamp - first <= _AT_ONCE_S
    }


def _end_after_workers() -> None:
    """The command is gone: the processes save and end by themselves, and so does this one then."""
    while descendants(os.getpid()):
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
