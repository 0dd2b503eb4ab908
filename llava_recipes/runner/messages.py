"""What the parent and the training processes tell each other, as small JSON files in a private folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from llava_recipes.files import write_text
from llava_recipes.recipe.errors import Problem, RecipeError


@dataclass(frozen=True)
class Request:
    """One stage to train. Paths are absolute; the plan is read from `output_dir`."""

    output_dir: str
    plan_file: str
    resume_from: str | None
    answers_dir: str

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Request:
        return cls(**json.loads(path.read_text("utf-8")))


@dataclass(frozen=True)
class Result:
    """What the first process reports at the end."""

    num_steps: int
    stopped_early: bool
    last_loss: float | None
    seconds: float
    eval_loss: float | None

    def write(self, folder: Path) -> None:
        write_text(folder / "result.json", json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Result | None:
        path = folder / "result.json"
        return cls(**json.loads(path.read_text("utf-8"))) if path.exists() else None


def write_problems(folder: Path, rank: int, error: RecipeError) -> None:
    """Leave the user's problems for the parent, which knows the lines of the recipe."""
    problems = [problem.to_json() for problem in error.problems]
    write_text(folder / f"problems-{rank}.json", json.dumps(problems))


def write_bug(folder: Path, rank: int, traceback_text: str) -> None:
    """Leave the traceback of our own mistake for the parent."""
    write_text(folder / f"bug-{rank}.txt", traceback_text)


def read_problems(folder: Path) -> list[Problem]:
    """The problems of all processes; what several of them report alike, once."""
    files = sorted(folder.glob("problems-*.json"))
    problems = [Problem.from_json(values) for file in files for values in json.loads(file.read_text("utf-8"))]
    return list(dict.fromkeys(problems))


def read_bug(folder: Path) -> str | None:
    """The first process's traceback, if any process left one."""
    paths = sorted(folder.glob("bug-*.txt"))
    return paths[0].read_text("utf-8") if paths else None
