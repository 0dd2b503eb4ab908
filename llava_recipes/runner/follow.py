"""Train a stage in the processes of several commands: what the first one orders, and what the others do."""

from __future__ import annotations

import socket
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.exit_codes import INTERRUPTED, USER_ERROR
from llava_recipes.plan.types import Plan, plan_from_json
from llava_recipes.runner.hangs import watched
from llava_recipes.runner.launch import Answer, Processes, free_port, run_processes
from llava_recipes.runner.lock import take
from llava_recipes.runner.preflight import node_problems
from llava_recipes.runner.reports import Request
from llava_recipes.runner.team import Message, Outcome, Team, TeamLost, open_gate
from llava_recipes.screen import say


def check_elsewhere(team: Team, plan: Plan, stages: tuple[int, ...]) -> None:
    """Let the other commands look for what a plan needs of their machines; `problems_elsewhere` waits."""
    team.order("check", plan=plan.model_dump(mode="json"), stages=stages)


def problems_elsewhere(team: Team) -> list[Problem]:
    """What the other machines lack, each problem once and with its machine's name."""
    found: list[Problem] = []
    for index, answer in zip(team.others, team.answers(), strict=True):
        for values in answer["problems"]:
            problem = Problem.from_json(values)
            found.append(replace(problem, message=f"on {team.name_of(index)}: {problem.message}"))
    return found


def lead(
    team: Team, processes: Processes, request: Request, *, uses_deepspeed: bool
) -> tuple[Answer, list[Outcome]]:
    """Train a stage here and in all other commands: what came of it here, and how it ended elsewhere."""
    gate = None
    if processes.by_torchrun:
        port = free_port()
    else:
        gate, port = open_gate()
    team.order(
        "train",
        plan=request.plan,
        resume_from=request.resume_from,
        port=port,
        uses_deepspeed=uses_deepspeed,
        hang_timeout_s=request.hang_timeout_s,
        lock=request.lock,
        run=request.run,
    )
    with team.training():
        answer = run_processes(
            replace(processes, port=port),
            request,
            uses_deepspeed=uses_deepspeed,
            interruption=team.interruption,
            elsewhere=team.note_still,
        )
    if answer.code != 0:
        team.fail()
    outcomes = [Outcome.from_json(answer) for answer in team.answers()]
    del gate
    return answer, outcomes


def outcome_of(answer: Answer, team: Team | None) -> Outcome:
    """How the training processes of this command ended."""
    return Outcome(
        code=answer.code,
        host=socket.gethostname(),
        problems=answer.reports.problems,
        bug=answer.reports.bug,
        killed=answer.reports.killed,
        has_stopped=answer.reports.has_stopped,
        was_interrupted=team is not None and team.was_interrupted,
    )


def follow(team: Team, processes: Processes, *, hang_timeout_s: float | None) -> int:
    """Do what the first command orders until it says how the run ended; the exit code."""
    try:
        while True:
            order = team.next_order()
            match order["what"]:
                case "check":
                    with watched("checks models and data", hang_timeout_s):
                        problems = _check(order)
                    team.answer({"problems": [found.to_json() for found in problems]})
                case "train":
                    team.answer(_train(team, processes, order).to_json())
                case _:
                    return int(order["code"])
    except TeamLost as lost:
        say(f"llava-recipe run: {lost}; this process ends too", to_stderr=True)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        team.leave()


def _check(order: Message) -> list[Problem]:
    return list(dict.fromkeys(node_problems(plan_from_json(order["plan"]), order["stages"])))


def _train(team: Team, processes: Processes, order: Message) -> Outcome:
    """Train with this command's processes."""
    plan = Plan.model_validate_json(order["plan"])
    folder = Path(plan.stages[0].output_dir).absolute()
    try:
        # On a shared disk the first command has it, for the whole run; on another one it's taken here.
        lock = take(folder, run=order["lock"])
    except RecipeError as error:
        path = ("stages", 0, "output_dir")
        problems = tuple(replace(problem, path=path) for problem in error.problems)
        return Outcome(code=USER_ERROR, host=socket.gethostname(), problems=problems)
    request = Request(
        output_dir=str(folder),
        plan=order["plan"],
        resume_from=order["resume_from"],
        has_other_commands=True,
        seconds_left=None,
        hang_timeout_s=order["hang_timeout_s"],
        lock=lock.run,
        run=order["run"],
    )
    with closing(lock), team.training():
        answer = run_processes(
            replace(processes, port=order["port"]),
            request,
            uses_deepspeed=order["uses_deepspeed"],
            interruption=team.interruption,
            elsewhere=team.note_still,
        )
    return outcome_of(answer, team)
