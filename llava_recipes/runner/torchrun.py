"""torchrun without its traceback: the workers' own messages say what went wrong."""

from __future__ import annotations

import logging
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from llava_recipes.runner.launch import stop_with_parent
from llava_recipes.screen import guard_streams


def main(argv: list[str]) -> int:
    """Run `-m MODULE ARGUMENT…`, given after torchrun's options, in every process; the highest exit code."""
    stop_with_parent()
    guard_streams(outlives_reader=True)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config, command, arguments = config_from_args(parse_args(argv))
    try:
        elastic_launch(config, command)(*arguments)
    except ChildFailedError as error:
        return max(failure.exitcode for failure in error.failures.values())
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
