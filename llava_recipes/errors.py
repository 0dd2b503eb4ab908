"""Problems that the user can fix, in a recipe, its data or its run, and the errors that carry them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

KeyPath = tuple[str | int, ...]
"""The place of a value in a recipe: ("stages", 0, "train", "learning_rate")."""

_CARRIED = "problems of samples: "


@dataclass(frozen=True)
class Mark:
    """A place in a file. Lines and columns count from 1; `width` is in characters.

    Line 0 is the file as a whole, or the `--set` of the command line that `file` names.
    """

    file: str
    line: int
    column: int
    width: int = 1
    text: str | None = field(default=None, compare=False, repr=False)
    """The line itself, to be shown; None if it isn't available."""
    row: int | None = None
    """In a file with rows instead of lines: the row, counted from 0."""


@dataclass(frozen=True)
class Problem:
    """One thing to fix: where (a mark, or a recipe path that has one), what, what was found, what to do."""

    message: str
    code: str = field(kw_only=True)
    """The name of its kind, such as "unknown-key". It never changes: programs read it, not the message."""
    path: KeyPath | None = None
    mark: Mark | None = None
    found: str | None = None
    hint: str | None = None
    on_key: bool = field(default=False)
    """Point at the key, not at its value."""
    is_secret: bool = field(default=False)
    """Show the place without the line, which contains a secret."""
    severity: Literal["error", "warning"] = field(default="error")
    """An error keeps the recipe from running; a warning says that it may not do what was meant."""

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values, to send to another process."""
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
    """Problems that the user can fix: printed without a traceback, exit code 1."""

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
        """The error of one problem with these fields."""
        return cls(Problem(message, path, mark, found, hint, on_key, is_secret, code=code))


class SampleError(RecipeError):
    """One or more samples of the user's data cannot be used.

    torch rebuilds a worker's exception from the text of its traceback only. That text ends with the problems
    as one line of JSON, from which this class reads them again.
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
    name = name_sample(index, sample_id)
    return Problem(f"{name}: {message}", code=code, mark=mark, found=found, hint=hint)


def name_sample(index: int, sample_id: str) -> str:
    return f'sample {index} (id "{sample_id}")' if sample_id else f"sample {index} (no id)"


def _problems(problem: Problem | str) -> list[Problem]:
    if isinstance(problem, Problem):
        return [problem]
    _, carried, text = problem.rpartition(_CARRIED)
    if not carried:
        return [Problem(problem, code="sample-cannot-be-used")]
    values, _ = json.JSONDecoder().raw_decode(text)
    return [Problem.from_json(each) for each in values]
