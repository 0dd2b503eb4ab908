"""`llava-recipe run FILE`: check everything that can be checked without training, then train."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from llava_recipes.cli.options import add_recipe, duration, positive, spell_duration
from llava_recipes.errors import Problem, RecipeError
from llava_recipes.exit_codes import HANGS, INTERRUPTED, OUR_BUG, USAGE_ERROR, USER_ERROR
from llava_recipes.masking import mask_command
from llava_recipes.screen import outlive_readers, say, say_lines, write_log

if TYPE_CHECKING:
    from llava_recipes.runner.beginnings import Run
    from llava_recipes.runner.interruption import Interruption
    from llava_recipes.runner.launch import Processes
    from llava_recipes.runner.team import Team
    from llava_recipes.runner.world import World

_MIN_HANG_S = 5

EPILOG = """\
A finished stage is skipped. The stages that a chosen stage starts from must be finished, with the same plan.

All GPUs of this machine train unless --processes says otherwise. On several nodes, run the same command on \
each, with --nnodes, --rdzv-id and the --rdzv-endpoint of the first node, as for torchrun. Started by \
torchrun, srun, mpirun, deepspeed or accelerate, or in the pods of a PyTorchJob, it joins their processes \
and needs none of these options.

Ctrl-C and SIGTERM save a checkpoint and end the run; the same command continues it. A second one ends it at \
once. Exit codes: 0 done, 1 something that you can fix, 2 wrong usage, 3 a bug in this program, 4 nothing \
advanced any more, 130 stopped by a signal or --max-time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_recipe(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--stage", action="append", default=[], metavar="NAME", help="run only this stage; may be repeated"
    )
    which.add_argument("--from-stage", metavar="NAME", help="run this stage and all later ones")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue an unfinished run from its last checkpoint, as without it; say so if there is none",
    )
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="KEY",
        help="continue with another value of KEY, such as train.learning_rate; may be repeated",
    )
    parser.add_argument(
        "--max-time",
        type=duration,
        metavar="H:MM:SS",
        help="save and stop before this time is over, such as 3:55:00, 90m or 4h; counts for all stages",
    )
    parser.add_argument(
        "--hang-timeout",
        type=_hang_timeout,
        metavar="SECONDS",
        help="end the run when nothing has advanced for so long (default: by phase, 10 to 60 minutes)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, but don't train")
    parser.add_argument(
        "--processes", type=positive, metavar="N", help="number of processes on this node (default: its GPUs)"
    )
    parser.add_argument("--nnodes", type=positive, metavar="N", help="nodes (default: 1)")
    parser.add_argument(
        "--node-rank", type=int, metavar="N", help="rank of this node (default: the nodes number themselves)"
    )
    parser.add_argument("--rdzv-endpoint", default="", metavar="HOST:PORT", help="address of the rendezvous")
    parser.add_argument(
        "--rdzv-backend", metavar="NAME", help="backend of the rendezvous: c10d or static (default: c10d)"
    )
    parser.add_argument(
        "--rdzv-id", default="", metavar="ID", help="id of the rendezvous, the same on every node"
    )
    parser.add_argument(
        "--rdzv-timeout",
        type=positive,
        metavar="SECONDS",
        help="how long the nodes wait for one another (default: 600)",
    )


def _hang_timeout(text: str) -> float:
    seconds = duration(f"{text}s" if text.isdecimal() else text)
    if seconds < _MIN_HANG_S:
        raise argparse.ArgumentTypeError(f"must be {_MIN_HANG_S} s or more, got {text}")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.render import render_problems
    from llava_recipes.runner.hangs import RunHangs
    from llava_recipes.runner.interruption import Interruption

    # Its reader may leave, as `head` does, and its terminal may be closed: training goes on.
    outlive_readers()
    with Interruption(max_time_s=arguments.max_time) as interruption:
        try:
            return _run_anywhere(arguments, interruption)
        except RunHangs as hang:
            say_lines(render_problems(hang.problems), to_stderr=True)
            return HANGS
        except KeyboardInterrupt:
            is_second = interruption.is_repeated
            before = "by a second signal" if is_second else "before the first step; nothing was saved"
            say(f"interrupted {before}", to_stderr=True)
            return INTERRUPTED


def _run_anywhere(arguments: argparse.Namespace, interruption: Interruption) -> int:
    from llava_recipes.runner.world import BadOptions, NodeOptions, find_world, is_first

    names = ("processes", "nnodes", "node_rank", "rdzv_backend", "rdzv_endpoint", "rdzv_id")
    options = NodeOptions(**{name: getattr(arguments, name) for name in names})
    try:
        world = find_world(os.environ, options)
    except BadOptions as error:
        if is_first(os.environ):
            say(f"llava-recipe run: {error}", to_stderr=True)
        return USAGE_ERROR
    except RecipeError:
        # Each of the commands that a launcher started finds the same.
        if not is_first(os.environ):
            return USER_ERROR
        raise
    if world is None:
        return _run_alone(arguments, interruption)
    return _run_in_world(arguments, world, interruption)


def _run_alone(arguments: argparse.Namespace, interruption: Interruption) -> int:
    from llava_recipes.runner.launch import Processes, count_local_devices

    processes = Processes(per_node=arguments.processes or count_local_devices())
    return _run(arguments, processes, interruption, None)


def _run_in_world(arguments: argparse.Namespace, world: World, interruption: Interruption) -> int:
    """Train with the other commands of a world: the first one decides, the others follow."""
    from llava_recipes.runner.follow import follow
    from llava_recipes.runner.hangs import RunHangs
    from llava_recipes.runner.launch import Processes, count_local_devices
    from llava_recipes.runner.team import JOIN_S, TeamLost, join

    per_node = 1
    if world.is_per_node:
        per_node = arguments.processes or world.per_node or count_local_devices()
    timeout_s = JOIN_S if arguments.rdzv_timeout is None else arguments.rdzv_timeout
    with interruption.ending_at_once():
        team, here = join(world, {"per_node": per_node}, interruption, timeout_s=timeout_s)
    processes = Processes(
        per_node=per_node,
        nnodes=world.size,
        node_rank=team.index,
        address=world.address,
        local_rank=world.local_rank,
        local_size=world.local_size,
    )
    if not team.is_first:
        interruption.leave_time_to_others()
        return follow(team, processes, hang_timeout_s=arguments.hang_timeout)
    code = OUR_BUG
    try:
        _check_equal(here, [team.name_of(index) for index in range(world.size)])
        code = _run(arguments, processes, interruption, team)
    except (RecipeError, TeamLost) as error:
        code = HANGS if isinstance(error, RunHangs) else USER_ERROR
        if isinstance(error, RecipeError):
            raise
        say(f"llava-recipe run: {error}", "`--resume` continues from the last checkpoint", to_stderr=True)
    except KeyboardInterrupt:
        code = INTERRUPTED
        raise
    finally:
        team.end(code)
    return code


def _check_equal(here: Sequence[Mapping[str, int]], names: Sequence[str]) -> None:
    """Raise RecipeError where nodes would start different numbers of processes."""
    if len({node["per_node"] for node in here}) > 1:
        counts = [f"{name}: {node['per_node']}" for name, node in zip(names, here, strict=True)]
        raise RecipeError.of(
            "the nodes would start different numbers of processes",
            code="nodes-differ",
            found=", ".join(counts),
            hint=f"give the same number to all, as --processes {min(node['per_node'] for node in here)}",
        )


def _run(
    arguments: argparse.Namespace, processes: Processes, interruption: Interruption, team: Team | None
) -> int:
    """Check and train. Only the first command of a team comes here."""
    from llava_recipes.recipe.load import load_recipe
    from llava_recipes.runner.accepted import AcceptError, read_accepted
    from llava_recipes.runner.beginnings import Run
    from llava_recipes.runner.facts import choose_stages, compile_loaded
    from llava_recipes.runner.follow import check_elsewhere, problems_elsewhere
    from llava_recipes.runner.hangs import watched
    from llava_recipes.runner.preflight import check_before_loading

    timeout_s = arguments.hang_timeout
    with interruption.ending_at_once():
        with watched("reads the recipe and its data", timeout_s):
            loaded = load_recipe(arguments.file, arguments.set)
            stages = choose_stages(loaded, names=arguments.stage, first=arguments.from_stage)
            compiled = compile_loaded(loaded, world_size=processes.world_size)
            plan = compiled.plan
        if team is not None:
            check_elsewhere(team, plan, stages)
        with watched("checks models, data and folders", timeout_s):
            check_before_loading(loaded, plan, stages)
        if team is not None:
            problems = problems_elsewhere(team)
            if problems:
                raise loaded.fail(*problems)
    if not arguments.dry_run:
        # The plan, which a dry run prints, has them too.
        _warn(loaded.fail(*compiled.warnings).problems, stages)
    try:
        run = Run(
            loaded=loaded,
            plan=plan,
            processes=processes,
            resume=arguments.resume,
            stages=stages,
            accepted=read_accepted(arguments.accept, [stage.name for stage in plan.stages]),
            words=_words(arguments),
            interruption=interruption,
            hang_timeout_s=timeout_s,
            team=team,
        )
        return _train(run, dry=arguments.dry_run)
    except AcceptError as error:
        say(*(f"llava-recipe run: {line}" for line in str(error).splitlines()), to_stderr=True)
        return USAGE_ERROR


def _warn(warnings: Sequence[Problem], stages: Collection[int]) -> None:
    """Print what `validate` warns of, unless it is about a stage that is not run."""
    from llava_recipes.render import render_briefly

    for each in warnings:
        head = (each.path or ())[:2]
        if head[:1] != ("stages",) or head[1:] == () or head[1] in stages:
            say(render_briefly(each), to_stderr=True)


def _words(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The command line, with `--resume`, for advice what to type."""
    words = ["llava-recipe", "run", arguments.file, "--resume"]
    for name, values in (("set", arguments.set), ("stage", arguments.stage), ("accept", arguments.accept)):
        words += [word for value in values for word in (f"--{name}", value)]
    others = ("from_stage", "processes", "nnodes", "node_rank")
    for name in (*others, "rdzv_endpoint", "rdzv_backend", "rdzv_id", "rdzv_timeout"):
        value = getattr(arguments, name)
        words += [] if value in (None, "") else [f"--{name.replace('_', '-')}", str(value)]
    for name, seconds in (("max-time", arguments.max_time), ("hang-timeout", arguments.hang_timeout)):
        words += [] if seconds is None else [f"--{name}", spell_duration(seconds)]
    return tuple(mask_command(words))


def _train(run: Run, *, dry: bool) -> int:
    from llava_recipes.runner.beginnings import find_beginnings
    from llava_recipes.runner.execute import LOOKING, Stopped, WorkerBug, run_stages
    from llava_recipes.runner.hangs import watched

    if dry:
        with watched(LOOKING, run.hang_timeout_s):
            find_beginnings(run)
        from llava_recipes.cli.plan import print_plan

        print_plan(run.plan)
        say("dry run: everything checked, nothing trained")
        return 0
    try:
        run_stages(run)
    except Stopped as stopped:
        say(str(stopped))
        return INTERRUPTED
    except WorkerBug as bug:
        last = str(bug).strip().splitlines()[-1]
        file = write_log(str(bug))
        say(f"a bug in llava-recipe: {last}", f"the traceback is in {file}", to_stderr=True)
        return OUR_BUG
    return 0
