"""Train a stage in the processes of several commands: what the first one orders, and what the others do."""

from __future__ import annotations

import socket
import tempfile
from dataclasses import replace
from pathlib import Path

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.files import write_text
from llava_recipes.plan.types import Plan, plan_from_json
from llava_recipes.runner.launch import Processes, free_port, run_processes
from llava_recipes.runner.lock import take
from llava_recipes.runner.preflight import node_problems
from llava_recipes.runner.team import Message, Outcome, Team, TeamLost, open_gate
from llava_recipes.runner.worker import Request, read_bug, read_problems
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
    team: Team, processes: Processes, request: Request, request_file: Path, *, uses_deepspeed: bool
) -> tuple[int, list[Outcome]]:
    """Train a stage here and in all other commands: the exit code here, and how it ended elsewhere."""
    gate = None
    if processes.by_torchrun:
        port = free_port()
    else:
        gate, port = open_gate()
    team.order(
        "train",
        plan=Path(request.plan_file).read_text("utf-8"),
        resume_from=request.resume_from,
        port=port,
        uses_deepspeed=uses_deepspeed,
        lock=request.lock,
    )
    with team.training():
        code = run_processes(replace(processes, port=port), request_file, uses_deepspeed=uses_deepspeed)
    if code != 0:
        team.fail()
    outcomes = [Outcome.from_json(answer) for answer in team.answers()]
    del gate
    return code, outcomes


def follow(team: Team, processes: Processes) -> int:
    """Do what the first command orders until it says how the run ended; the exit code."""
    try:
        while True:
            order = team.next_order()
            match order["what"]:
                case "check":
                    team.answer({"problems": [found.to_json() for found in _check(order)]})
                case "train":
                    team.answer(_train(team, processes, order).to_json())
                case _:
                    return int(order["code"])
    except TeamLost as lost:
        say(f"llava-recipe run: {lost}; this process ends too", to_stderr=True)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        team.leave()


def _check(order: Message) -> list[Problem]:
    return list(dict.fromkeys(node_problems(plan_from_json(order["plan"]), order["stages"])))


def _train(team: Team, processes: Processes, order: Message) -> Outcome:
    """Train with this command's processes. What is written goes to a folder of this machine's own."""
    plan = Plan.model_validate_json(order["plan"])
    folder = Path(plan.stages[0].output_dir).absolute()
    try:
        # On a shared disk the first command has it, for the whole run; on another one it's taken here.
        lock = take(folder, run=order["lock"])
    except RecipeError as error:
        path = ("stages", 0, "output_dir")
        problems = tuple(replace(problem, path=path) for problem in error.problems)
        return Outcome(code=1, host=socket.gethostname(), problems=problems)
    with tempfile.TemporaryDirectory(prefix="llava-recipe-") as answers_name:
        answers = Path(answers_name)
        write_text(answers / "plan.json", order["plan"])
        request = Request(
            output_dir=str(folder),
            plan_file=str(answers / "plan.json"),
            resume_from=order["resume_from"],
            answers_dir=str(answers),
            lock=lock.run,
        )
        request.write(answers / "request.json")
        try:
            with team.training():
                code = run_processes(
                    replace(processes, port=order["port"]),
                    answers / "request.json",
                    uses_deepspeed=order["uses_deepspeed"],
                )
        finally:
            lock.release()
        return Outcome(
            code=code,
            host=socket.gethostname(),
            problems=tuple(read_problems(answers)),
            bug=read_bug(answers),
            was_interrupted=team.was_interrupted,
        )
