"""`llava-recipe run FILE`: check everything that can be checked without training, then train."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from llava_recipes.cli.options import add_recipe, positive
from llava_recipes.masking import mask_command
from llava_recipes.screen import say, write_log

if TYPE_CHECKING:
    from llava_recipes.runner.execute import Run

EPILOG = """\
A finished stage is skipped. The stages that a chosen stage starts from must be finished, with the same plan.

All GPUs of this machine train unless --processes says otherwise. On several nodes, run the same command on \
each, with --nnodes, --node-rank, --rdzv-id and the --rdzv-endpoint of the first node, as for torchrun."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_recipe(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--stage", action="append", default=[], metavar="NAME", help="run only this stage; may be repeated"
    )
    which.add_argument("--from-stage", metavar="NAME", help="run this stage and all later ones")
    parser.add_argument(
        "--resume", action="store_true", help="continue an unfinished run from its last checkpoint"
    )
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="KEY",
        help="continue with another value of KEY, such as train.learning_rate; may be repeated",
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, but don't train")
    parser.add_argument(
        "--processes", type=positive, metavar="N", help="number of processes on this node (default: its GPUs)"
    )
    parser.add_argument("--nnodes", type=positive, default=1, metavar="N", help="nodes (default: 1)")
    parser.add_argument(
        "--node-rank", type=int, default=0, metavar="N", help="rank of this node (default: 0)"
    )
    parser.add_argument("--rdzv-endpoint", default="", metavar="HOST:PORT", help="address of the rendezvous")
    parser.add_argument(
        "--rdzv-backend", default="c10d", metavar="NAME", help="backend of the rendezvous (default: c10d)"
    )
    parser.add_argument(
        "--rdzv-id", default="", metavar="ID", help="id of the rendezvous, the same on every node"
    )


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.recipe.load import load_recipe
    from llava_recipes.runner.accepted import AcceptError, read_accepted
    from llava_recipes.runner.execute import Run
    from llava_recipes.runner.facts import choose_stages, plan_recipe
    from llava_recipes.runner.launch import Processes, count_local_devices
    from llava_recipes.runner.preflight import check_before_loading

    if arguments.nnodes > 1 and not (arguments.rdzv_endpoint and arguments.rdzv_id):
        say("llava-recipe run: --nnodes needs --rdzv-endpoint and --rdzv-id", to_stderr=True)
        return 2
    loaded = load_recipe(arguments.file, arguments.set)
    processes = Processes(
        per_node=arguments.processes or count_local_devices(),
        nnodes=arguments.nnodes,
        node_rank=arguments.node_rank,
        rdzv_backend=arguments.rdzv_backend,
        rdzv_endpoint=arguments.rdzv_endpoint,
        rdzv_id=arguments.rdzv_id,
    )
    stages = choose_stages(loaded, names=arguments.stage, first=arguments.from_stage)
    plan = plan_recipe(loaded, world_size=processes.world_size)
    check_before_loading(loaded, plan, stages)
    try:
        run = Run(
            loaded=loaded,
            plan=plan,
            processes=processes,
            resume=arguments.resume,
            stages=stages,
            accepted=read_accepted(arguments.accept, [stage.name for stage in plan.stages]),
            words=_words(arguments),
        )
        return _run(run, dry=arguments.dry_run)
    except AcceptError as error:
        say(*(f"llava-recipe run: {line}" for line in str(error).splitlines()), to_stderr=True)
        return 2


def _words(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The command line, with `--resume`, for advice what to type."""
    words = ["llava-recipe", "run", arguments.file, "--resume"]
    for name, values in (("set", arguments.set), ("stage", arguments.stage), ("accept", arguments.accept)):
        words += [word for value in values for word in (f"--{name}", value)]
    for name in ("from_stage", "processes"):
        value = getattr(arguments, name)
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    if arguments.nnodes > 1:
        for name in ("nnodes", "node_rank", "rdzv_endpoint", "rdzv_backend", "rdzv_id"):
            words += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    return tuple(mask_command(words))


def _run(run: Run, *, dry: bool) -> int:
    from llava_recipes.runner.execute import Stopped, WorkerBug, find_beginnings, run_stages

    if dry:
        find_beginnings(run)
        from llava_recipes.cli.plan import print_plan

        print_plan(run.plan)
        say("dry run: everything checked, nothing trained")
        return 0
    try:
        run_stages(run)
    except Stopped as stopped:
        say(str(stopped))
        return 130
    except WorkerBug as bug:
        last = str(bug).strip().splitlines()[-1]
        file = write_log(str(bug))
        say(f"a bug in llava-recipe: {last}", f"the traceback is in {file}", to_stderr=True)
        return 3
    return 0
