"""What the parent and the training processes tell each other, as small JSON files in a private folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from llava_recipes.files import write_text
from llava_recipes.recipe.errors import Mark, Problem, RecipeError


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
    problems = [
        {
            "message": p.message,
            "mark": asdict(p.mark) if p.mark is not None else None,
            "path": list(p.path) if p.path is not None else None,
            "found": p.found,
            "hint": p.hint,
        }
        for p in error.problems
    ]
    write_text(folder / f"problems-{rank}.json", json.dumps(problems))


def write_bug(folder: Path, rank: int, traceback_text: str) -> None:
    """Leave the traceback of our own mistake for the parent."""
    write_text(folder / f"bug-{rank}.txt", traceback_text)


def read_problems(folder: Path) -> list[Problem]:
    """The problems of all processes, each once."""
    found: dict[str, Problem] = {}
    for path in sorted(folder.glob("problems-*.json")):
        for entry in json.loads(path.read_text("utf-8")):
            where = tuple(entry["path"]) if entry["path"] is not None else None
            mark = Mark(**entry["mark"]) if entry["mark"] is not None else None
            problem = Problem(
                entry["message"], path=where, mark=mark, found=entry["found"], hint=entry["hint"]
            )
            found.setdefault(problem.message, problem)
    return list(found.values())


def read_bug(folder: Path) -> str | None:
    """The first process's traceback, if any process left one."""
    paths = sorted(folder.glob("bug-*.txt"))
    return paths[0].read_text("utf-8") if paths else None
