"""`llava-recipe slurm FILE`: write a Slurm job that trains a recipe, and goes on by itself when it is cut."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llava_recipes.cli.options import add_new_file, add_recipe, positive
from llava_recipes.exit_codes import USAGE_ERROR
from llava_recipes.interpreter import python_words
from llava_recipes.screen import say, say_document

if TYPE_CHECKING:
    from llava_recipes.plan.types import Plan

EPILOG = """\
The recipe is checked and planned for all GPUs of the job first. The job trains with `run --resume`: it is \
queued again at its time limit, and when it is preempted, and continues from its last checkpoint.

Submit it with `sbatch JOB`, in the folder where its log belongs."""

_TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_recipe(parser)
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="nodes (default: 1)")
    parser.add_argument(
        "--gpus-per-node", type=_count, required=True, metavar="N", help="GPUs of each node; 0 trains on CPUs"
    )
    parser.add_argument("--time", type=_time, metavar="LIMIT", help="time limit: 4:00:00 or 2-00:00:00")
    parser.add_argument("--partition", type=_value, metavar="NAME", help="Slurm partition")
    parser.add_argument("--account", type=_value, metavar="NAME", help="Slurm account")
    parser.add_argument(
        "--signal-before",
        type=positive,
        default=300,
        metavar="SECONDS",
        help="save and stop this long before the time limit (default: 300)",
    )
    parser.add_argument(
        "--sbatch",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another option of sbatch, such as cpus-per-task=64; may be repeated",
    )
    add_new_file(parser, metavar="JOB", default="standard output")


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.authoring.slurm_job import SlurmJob, command_of, seconds_of, write_slurm_job
    from llava_recipes.files import write_new
    from llava_recipes.recipe.load import load_recipe
    from llava_recipes.render import render_briefly
    from llava_recipes.runner.facts import compile_loaded

    if arguments.time is not None and 0 < seconds_of(arguments.time) <= arguments.signal_before:
        # It would be stopped at its start, and queued again, for ever.
        words = f"--time {arguments.time} leaves no time to train before the job is told to save"
        say(f"llava-recipe slurm: {words}: give it more, or lower --signal-before", to_stderr=True)
        return USAGE_ERROR
    loaded = load_recipe(arguments.file, arguments.set)
    processes = max(1, arguments.gpus_per_node)
    compiled = compile_loaded(loaded, world_size=arguments.nodes * processes)
    plan = compiled.plan
    # Now, not in the log of a job that waited for days.
    for each in loaded.fail(*compiled.warnings).problems:
        say(render_briefly(each), to_stderr=True)
    _warn_of_slow_saves(plan, arguments.signal_before)
    job = SlurmJob(
        name=plan.recipe,
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        time=arguments.time,
        partition=arguments.partition,
        account=arguments.account,
        signal_before_s=arguments.signal_before,
        more=tuple(arguments.sbatch),
        folder=os.getcwd(),
        command=command_of(_program(), file=arguments.file, overrides=arguments.set, processes=processes),
    )
    text = write_slurm_job(job, plan)
    if arguments.output is None:
        say_document(text)
    else:
        write_new(Path(arguments.output), text, force=arguments.force)
        say(f"wrote {arguments.output}: submit it with `sbatch {arguments.output}`", to_stderr=True)
    return 0


def _warn_of_slow_saves(plan: Plan, signal_before_s: int) -> None:
    """Say where Slurm would probably end the job in the middle of the save that it is signaled for."""
    from llava_recipes.train.stopping import saving_s

    slow_s = {stage.name: saving_s(stage.num_trainable_parameters or 0) for stage in plan.stages}
    name = max(slow_s, key=slow_s.__getitem__)
    if slow_s[name] >= signal_before_s:
        enough_s = 300 * math.ceil(1.5 * slow_s[name] / 300)
        say(
            f"warning: a checkpoint of stage `{name}` may take {slow_s[name]:,.0f} s, as on a disk that "
            f"writes 200 MB/s, and the job is signaled {signal_before_s:,} s before its limit: measure a "
            f"save, or give --signal-before {enough_s}",
            to_stderr=True,
        )


def _program() -> list[str]:
    """This program by its full path: a job's shell need not know the environment."""
    script = Path(sys.executable).parent / "llava-recipe"
    return [str(script)] if script.is_file() else python_words("llava_recipes")


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def _time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text} is no time limit such as 4:00:00 or 2-00:00:00")
    return text


def _value(text: str) -> str:
    from llava_recipes.authoring.slurm_job import bad_value

    trouble = bad_value(text)
    if trouble is not None or not text:
        raise argparse.ArgumentTypeError(trouble or "it is empty")
    return text


def _option(text: str) -> tuple[str, str]:
    from llava_recipes.authoring.slurm_job import split_option

    try:
        return split_option(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
