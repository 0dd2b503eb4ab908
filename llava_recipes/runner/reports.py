"""What the command `run` requests of its training processes, and what they report to it."""

from __future__ import annotations

import signal
from dataclasses import asdict, dataclass

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.runner.channel import Channel, Message


@dataclass(frozen=True)
class Request:
    """One stage to train. Paths are absolute.

    plan                the plan of this stage alone, as JSON
    has_other_commands  whether processes that another command has started train with these
    seconds_left        of the time that the command was given, or None
    hang_timeout_s      how long nothing may advance, in every phase, or None for the usual times
    lock                the run that has the folder's lock, which each process holds too
    run                 the name that the run's checkpoints carry
    """

    output_dir: str
    plan: str
    resume_from: str | None
    has_other_commands: bool
    seconds_left: float | None
    hang_timeout_s: float | None
    lock: str
    run: str

    def to_json(self) -> Message:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Message) -> Request:
        return cls(**values)


@dataclass(frozen=True)
class Result:
    """What every process reports at the end."""

    num_steps: int
    stopped_early: bool
    last_loss: float | None
    seconds: float
    eval_loss: float | None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> Message:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Message) -> Result:
        return cls(**{**values, "warnings": tuple(values["warnings"])})


def problems_message(error: RecipeError) -> Message:
    """Problems that the user can fix, for the parent, which knows the lines of the recipe."""
    return {"kind": "problems", "problems": [problem.to_json() for problem in error.problems]}


def killed_message(who: str, pid: int, number: int) -> Message:
    """That a signal killed a process of the run."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return {"kind": "killed", "words": f"{who} (process {pid}) was killed by {name}"}


def read_problems(messages: list[tuple[int, Message]]) -> list[Problem]:
    """The problems of all processes; one that several of them report comes once."""
    found = [Problem.from_json(values) for _, message in messages for values in message["problems"]]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Reports:
    """What the processes of this node reported.

    problems  that the user can fix
    bug       the traceback of the first one that has one
    results   by rank
    stops     of processes that ended before the end of the stage, without a checkpoint of their last step
    """

    problems: tuple[Problem, ...]
    bug: str | None
    results: dict[int, Result]
    stops: tuple[Message, ...]
    killed: str | None
    """Which process a signal killed, before all others ended."""
    has_begun: bool
    """Whether a process has connected."""

    @classmethod
    def read(cls, channel: Channel) -> Reports:
        bugs = [message["traceback"] for _, message in channel.of_kind("bug")]
        results = {rank: Result.from_json(message["result"]) for rank, message in channel.of_kind("result")}
        return cls(
            problems=tuple(read_problems(channel.of_kind("problems"))),
            bug=bugs[0] if bugs else None,
            results=results,
            stops=tuple(message for _, message in channel.of_kind("stopped")),
            killed=next((message["words"] for _, message in channel.of_kind("killed")), None),
            has_begun=channel.num_seen > 0,
        )

    @property
    def is_done(self) -> bool:
        """Whether a process has come to the end of the stage, as all have then."""
        return any(not result.stopped_early for result in self.results.values())

    @property
    def has_stopped(self) -> bool:
        """Whether a process stopped early, as all do then."""
        return bool(self.stops) or any(result.stopped_early for result in self.results.values())
