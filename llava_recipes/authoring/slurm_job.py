"""The text of a Slurm job that trains a recipe, for people to read and edit."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llava_recipes.plan.types import Plan

MAX_REQUEUES = 100
"""A run that makes no progress until its time limit must not be queued for ever."""

_TASKS = "the job has one task per node; set --nodes and --gpus-per-node instead"
_OWN = {
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node", "gpus", "gpus-per-node", "gpus-per-task"), _TASKS),
    **{name: f"set --{name} instead" for name in ("time", "partition", "account")},
    "signal": "set --signal-before instead",
}
"""Options of sbatch that the job depends on."""

_PLAIN = re.compile(r"[\w./:@%+=,\[\]-]+")


@dataclass(frozen=True)
class SlurmJob:
    """What a job asks of Slurm, and what it runs. `command` is that of one node, `folder` where it starts."""

    name: str
    nodes: int
    gpus_per_node: int
    time: str | None
    partition: str | None
    account: str | None
    signal_before_s: int
    more: tuple[tuple[str, str], ...]
    """Further options of sbatch, each with its value, which may be empty."""
    folder: str
    command: tuple[str, ...]


def write_slurm_job(job: SlurmJob, plan: Plan) -> str:
    """The whole file."""
    return "\n".join(("#!/bin/bash", *_head(job, plan), *_options(job), "", *_body(job))) + "\n"


def _head(job: SlurmJob, plan: Plan) -> Iterator[str]:
    nodes = _amount(job.nodes, "node")
    each = " each" if job.nodes > 1 else ""
    gpus = f"{_amount(job.gpus_per_node, 'GPU')}{each}" if job.gpus_per_node else "without GPUs"
    processes = _amount(plan.world_size, "process", "processes")
    yield f"# Trains `{_line(plan.recipe)}` on {nodes}, {gpus}: {processes}."
    for stage in plan.stages:
        batch = f"batch {stage.train.global_batch_size:,}"
        yield f"#   stage {_line(stage.name)}: {batch}, into {_line(stage.output_dir)}"
    yield "# Written by `llava-recipe slurm`, for you to read and edit. Submit it with `sbatch FILE`."


def _amount(number: int, one: str, more: str = "") -> str:
    return f"{number} {one if number == 1 else more or one + 's'}"


def _options(job: SlurmJob) -> Iterator[str]:
    yield _option("job-name", re.sub(r"[^\w.-]+", "-", job.name))
    yield _option("nodes", str(job.nodes))
    yield "# One task per node: the command starts the training processes of its node."
    yield _option("ntasks-per-node", "1")
    if job.gpus_per_node:
        yield _option("gpus-per-node", str(job.gpus_per_node))
    if job.time is None:
        yield "# No time limit was given, so the partition's default holds:"
        yield "##SBATCH --time=4:00:00"
    else:
        yield _option("time", job.time)
    for name, value in (("partition", job.partition), ("account", job.account)):
        if value is not None:
            yield _option(name, value)
    yield f"# {job.signal_before_s} s before the time limit the script gets USR1: time to finish a step and"
    yield "# to save a checkpoint."
    yield _option("signal", f"B:USR1@{job.signal_before_s}")
    yield "# A job that is preempted, or loses a node, is queued again and goes on from its last checkpoint."
    yield _option("requeue", "")
    yield "# One log for all starts of the job, in the folder where it is submitted."
    yield _option("open-mode", "append")
    yield _option("output", "%x-%j.log")
    given = {name for name, _ in job.more}
    if not given & {"cpus-per-task", "cpus-per-gpu", "exclusive"}:
        yield "# On many clusters a task gets one CPU unless the job asks for more, too few to load images:"
        yield f"##SBATCH --cpus-per-task={8 * max(1, job.gpus_per_node)}"
    if not given & {"mem", "mem-per-cpu", "mem-per-gpu", "exclusive"}:
        yield "# The same for main memory; 0 is all of a node:"
        yield "##SBATCH --mem=0"
    # Of an option that comes twice, Slurm takes the last.
    for name, value in job.more:
        yield _option(name, value)


def _body(job: SlurmJob) -> Iterator[str]:
    yield "# Relative paths of the recipe start here."
    yield f"cd -- {_word(job.folder)} || exit 1"
    if job.nodes > 1:
        yield _MEETING
    yield (
        _RUN.replace("@COMMAND@", " ".join(map(_word, job.command)))
        .replace("@MAX@", str(MAX_REQUEUES))
        .rstrip()
    )


_MEETING = """
# The nodes meet at the first one. The port comes from the job's number: jobs that share a node differ.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT"""

_RUN = """
echo "$(date): start ${SLURM_RESTART_COUNT:-0} of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST"

# --resume starts at step 0 where nothing was trained yet, and skips stages that are done.
# --kill-on-bad-exit=0: the first task ends the others itself, once it has saved.
# --cpu-bind=none: the processes of a node share all CPUs of the job there.
srun --kill-on-bad-exit=0 --cpu-bind=none @COMMAND@ &
run=$!

# bash runs a trap only while it waits, so srun is in the background; it passes USR1 on to all tasks.
near_limit='' signaled=''
trap 'signaled=yes near_limit=yes; kill -USR1 "$run"' USR1
# scancel, preemption and requeue send TERM to the tasks as well: they save, and this script waits for them.
trap 'signaled=yes' TERM
while :; do
  signaled=''
  wait "$run"; status=$?
  # 127: it was waited for already, and a signal came after its end.
  [ "$status" = 127 ] || code=$status
  # A signal interrupts waiting, not the run.
  [ -n "$signaled" ] || break
done
echo "$(date): the run ended with exit code $code"

# 130: it saved a checkpoint and stopped. Near the time limit, and in the grace time of a preemption, the job
# queues itself again; what is preempted without grace, or loses a node, Slurm queues again. After scancel it
# stays away.
if [ "$code" = 130 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt @MAX@ ]; then
  if [ -n "$near_limit" ] || scontrol show job "$SLURM_JOB_ID" | grep -q "PreemptTime=[0-9]"; then
    # Slurm ends this script, too.
    scontrol requeue "$SLURM_JOB_ID" && sleep 60
  fi
fi
exit "$code"
"""


def _option(name: str, value: str) -> str:
    return f"#SBATCH --{name}" + (f"={_quoted(value)}" if value else "")


def _word(value: str) -> str:
    """A value as one word of bash, in one line: control characters are escaped."""
    if value.isprintable():
        return shlex.quote(value)
    escaped = value.replace("\\", r"\\").replace("'", r"\'")
    return "$'" + "".join(c if c.isprintable() else _octal(c) for c in escaped) + "'"


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))


def _quoted(value: str) -> str:
    """A value as sbatch reads it in a comment: it knows double quotes and backslashes."""
    return value if _PLAIN.fullmatch(value) else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _line(text: str) -> str:
    return " ".join(text.split())


def bad_value(value: str) -> str | None:
    """What keeps a value out of a line of options, or None."""
    return None if value.isprintable() else "it contains a line break or another control character"


def split_option(text: str) -> tuple[str, str]:
    """`NAME=VALUE` or `NAME`. Raises ValueError for what is no option of sbatch by its form."""
    name, _, value = text.removeprefix("--").partition("=")
    if not re.fullmatch(r"[a-z][a-z-]*", name):
        raise ValueError(f"{text!r} is not NAME=VALUE, as in mem=0 or constraint=a100")
    if name in _OWN:
        raise ValueError(f"{text!r}: {_OWN[name]}")
    trouble = bad_value(value)
    if trouble is not None:
        raise ValueError(f"{text!r}: {trouble}")
    return name, value


def seconds_of(limit: str) -> int:
    """Slurm's time limit in seconds: MINUTES, M:S, H:M:S, DAYS-H, DAYS-H:M or DAYS-H:M:S."""
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not dash and len(parts) < 3:
        parts = [0, *parts]
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def command_of(
    program: Sequence[str], *, file: str, overrides: Sequence[str], processes: int
) -> tuple[str, ...]:
    """The command of one node."""
    options = [f"--set={override}" for override in overrides]
    return *program, "run", file, "--resume", f"--processes={processes}", *options
