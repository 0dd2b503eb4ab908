"""What a person is told when a recipe, its data or its run is wrong, and theirs to mend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

KeyPath = tuple[str | int, ...]
"""Where a value stands in a recipe: ("stages", 0, "train", "learning_rate")."""

_CARRIED = "problems of samples: "


@dataclass(frozen=True)
class Mark:
    """A place in a file. Lines and columns count from 1; `width` is in characters.

    Line 0 is the file as a whole, or a `--set` of the command line named in `file`.
    """

    file: str
    line: int
    column: int
    width: int = 1
    text: str | None = field(default=None, compare=False, repr=False)
    """The line itself, to be shown; None where it is not at hand."""
    row: int | None = None
    """In a file that has rows and no lines: the row, counted from 0."""


@dataclass(frozen=True)
class Problem:
    """One thing to mend: where (a mark, or a recipe path that has one), what, found, what to do."""

    message: str
    code: str = field(kw_only=True)
    """The stable name of its kind, such as "unknown-key": for programs, which must not read the words."""
    path: KeyPath | None = None
    mark: Mark | None = None
    found: str | None = None
    hint: str | None = None
    on_key: bool = field(default=False)
    """Point at the key rather than at its value."""
    is_secret: bool = field(default=False)
    """Show the place, but not the line: it holds what should not be printed."""
    severity: Literal["error", "warning"] = field(default="error")
    """An error keeps a recipe from running; a warning says that it may not do what was meant."""

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values: what crosses from one process to another."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Problem:
        """The problem that `to_json` wrote."""
        path, mark = values["path"], values["mark"]
        whole = {
            "path": None if path is None else tuple(path),
            "mark": None if mark is None else Mark(**mark),
        }
        return cls(**{**values, **whole})


class RecipeError(Exception):
    """The user's to mend: printed without a traceback, exit code 1."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(problem.message for problem in problems))
        self.problems = problems

    @classmethod
    def of(
        cls,
        message: str,
        *,
        code: str,
        path: KeyPath | None = None,
        mark: Mark | None = None,
        found: str | None = None,
        hint: str | None = None,
        on_key: bool = False,
        is_secret: bool = False,
    ) -> RecipeError:
        """The error of one problem, whose fields these are."""
        return cls(Problem(message, path, mark, found, hint, on_key, is_secret, code=code))


class SampleError(RecipeError):
    """One or more samples that their owner must mend.

    torch rebuilds a worker's exception from the text of its traceback alone. That text ends with the
    problems as one line of JSON, from which this class fills itself again.
    """

    def __init__(self, *problems: Problem | str) -> None:
        super().__init__(*(found for problem in problems for found in _problems(problem)))

    def __str__(self) -> str:
        return _CARRIED + json.dumps([problem.to_json() for problem in self.problems])

    def __reduce__(self) -> tuple[type[SampleError], tuple[Problem, ...]]:
        return type(self), self.problems


def sample_problem(
    index: int,
    sample_id: str,
    message: str,
    *,
    code: str,
    mark: Mark | None = None,
    found: str | None = None,
    hint: str | None = None,
) -> Problem:
    """A problem whose message names the sample by index and id."""
    name = f'sample {index} (id "{sample_id}")' if sample_id else f"sample {index} (no id)"
    return Problem(f"{name}: {message}", code=code, mark=mark, found=found, hint=hint)


def _problems(problem: Problem | str) -> list[Problem]:
    if isinstance(problem, Problem):
        return [problem]
    _, carried, text = problem.rpartition(_CARRIED)
    if not carried:
        return [Problem(problem, code="sample-cannot-be-used")]
    values, _ = json.JSONDecoder().raw_decode(text)
    return [Problem.from_json(each) for each in values]
