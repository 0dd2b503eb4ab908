"""`llava-recipe run FILE`: check everything that can be checked without training, then train."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from llava_recipes.cli.options import add_recipe, duration, positive
from llava_recipes.screen import outlive_readers, say, write_log

if TYPE_CHECKING:
    from llava_recipes.runner.interruption import Interruption

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
        "--max-time",
        type=duration,
        metavar="H:MM:SS",
        help="save and stop before this time is over, such as 3:55:00, 90m or 4h; counts for all stages",
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
    from llava_recipes.runner.interruption import Interruption

    # Its reader may leave, as `head` does, and its terminal may be closed: training goes on.
    outlive_readers()
    with Interruption(max_time_s=arguments.max_time) as interruption:
        try:
            return _run(arguments, interruption)
        except KeyboardInterrupt:
            say("interrupted before the first step; nothing was saved", to_stderr=True)
            return 130


def _run(arguments: argparse.Namespace, interruption: Interruption) -> int:
    from llava_recipes.recipe.load import load_recipe
    from llava_recipes.runner.execute import Run, Stopped, WorkerBug, find_beginnings, run_stages
    from llava_recipes.runner.facts import choose_stages, plan_recipe
    from llava_recipes.runner.launch import Processes, count_local_devices
    from llava_recipes.runner.preflight import check_before_loading

    if arguments.nnodes > 1 and not (arguments.rdzv_endpoint and arguments.rdzv_id):
        say("llava-recipe run: --nnodes needs --rdzv-endpoint and --rdzv-id", to_stderr=True)
        return 2
    with interruption.ending_at_once():
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
    run = Run(
        loaded=loaded,
        plan=plan,
        processes=processes,
        resume=arguments.resume,
        stages=stages,
        interruption=interruption,
    )
    if arguments.dry_run:
        find_beginnings(run)
        from llava_recipes.cli.plan import print_plan

        print_plan(plan)
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
