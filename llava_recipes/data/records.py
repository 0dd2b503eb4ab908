"""The records of a stage: who says what about which picture, read one at a time."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal, overload

from llava_recipes.data.faults import SampleError, sample_problem
from llava_recipes.data.scan import AnnotationFile
from llava_recipes.plan.types import SourcePlan
from llava_recipes.recipe.errors import Mark, Problem, RecipeError
from llava_recipes.templates import IMAGE, Turn, spoken_turns

NUM_SHOWN_PROBLEMS = 5
_ROLES: dict[str, Literal["human", "gpt"]] = {"human": "human", "gpt": "gpt"}
_OTHER_NAMES = {"user": "human", "assistant": "gpt", "model": "gpt", "bot": "gpt"}


@dataclass(frozen=True)
class Record:
    """One sample as its owner wrote it.

    `index` counts over all sources, `images` are paths inside `folder`.
    """

    index: int
    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    folder: str | None


class Records(Sequence[Record]):
    """All records of a stage's sources, one source after another; parsed when they are asked for.

    Asking for a record that is not well formed, or whose `<image>` tags and images differ in number, raises
    SampleError with its index, id and line.
    """

    def __init__(self, sources: Sequence[tuple[AnnotationFile, str | None]]) -> None:
        self._sources = tuple(sources)
        self._ends = list(accumulate(len(file) for file, _ in self._sources))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        file, folder, position = self._place(index)
        values = json.loads(file.text(position))
        try:
            return _parse(values, index, folder)
        except _MalformedRecord as error:
            mark = file.mark(position)
            raise SampleError(
                sample_problem(
                    index, _id(values), error.message, mark=mark, found=error.found, hint=error.hint
                )
            ) from None

    def lengths(self) -> list[int]:
        """Words of each conversation, negative without a picture; for records opened with `measure`."""
        return [length for file, _ in self._sources for length in file.lengths]

    def mark(self, index: int) -> Mark:
        """Where a record begins in its annotation file."""
        file, _, position = self._place(index)
        return file.mark(position)

    def _place(self, index: int) -> tuple[AnnotationFile, str | None, int]:
        source = bisect_right(self._ends, index)
        file, folder = self._sources[source]
        return file, folder, index - (self._ends[source] - len(file))


def open_records(sources: Sequence[SourcePlan], *, measure: bool = False) -> Records:
    """The records of all sources; with `measure` their lengths are taken on the way.

    Raises RecipeError for every source at once: a file that is missing or not well formed, an image folder
    that is missing, a number of records that is not the source's `num_samples`.
    Problems without a mark carry a path that starts at the source.
    """
    opened: list[tuple[AnnotationFile, str | None]] = []
    problems: list[Problem] = []
    for source in sources:
        problems += _folder_problems(source)
        try:
            file = AnnotationFile(source.annotations, measure=measure)
        except RecipeError as error:
            problems += error.problems
            continue
        problems += _count_problems(source, len(file))
        opened.append((file, source.images))
    if problems:
        raise RecipeError(*problems)
    return Records(opened)


def count_records(path: str) -> int:
    """How many records an annotation file holds. Raises RecipeError when it is missing or not well formed."""
    return len(AnnotationFile(path))


def check_records(records: Records) -> list[Problem]:
    """The first records that are not well formed, by index, id and line, and how many more there are."""
    faulty: list[Problem] = []
    num_faulty = 0
    for index in range(len(records)):
        try:
            records[index]
        except SampleError as error:
            num_faulty += 1
            if num_faulty <= NUM_SHOWN_PROBLEMS:
                faulty += error.problems
    if num_faulty > NUM_SHOWN_PROBLEMS:
        hidden = num_faulty - NUM_SHOWN_PROBLEMS
        faulty.append(Problem(f"{hidden} more of {len(records)} records have such problems"))
    return faulty


def _folder_problems(source: SourcePlan) -> list[Problem]:
    if source.images is None or Path(source.images).is_dir():
        return []
    what = "is not a folder" if Path(source.images).exists() else "does not exist"
    message = f"{source.images}: the image folder {what}"
    return [Problem(message, path=("images",), hint="check `images` of the source")]


def _count_problems(source: SourcePlan, num_records: int) -> list[Problem]:
    if source.num_samples in (None, num_records):
        return []
    return [
        Problem(
            f"{source.annotations}: the file does not hold `num_samples` records",
            path=("num_samples",),
            found=f"num_samples is {source.num_samples}, the file holds {num_records}",
            hint=f"write `num_samples: {num_records}`, or leave it out",
        )
    ]


class _MalformedRecord(Exception):
    def __init__(self, message: str, *, found: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message, self.found, self.hint = message, found, hint


def _parse(values: dict[str, object], index: int, folder: str | None) -> Record:
    turns = _turns(values)
    images = _images(values)
    try:
        spoken_turns(turns)
    except ValueError as error:
        raise _MalformedRecord(str(error)) from None
    if images and folder is None:
        raise _MalformedRecord(
            "it has an image, but its source has no image folder", hint="give `images` in the source"
        )
    num_tags = sum(turn.text.count(IMAGE) for turn in turns)
    if num_tags != len(images):
        raise _MalformedRecord(
            f"{IMAGE} tags and images differ in number",
            found=f"{_count(num_tags, 'tag')}, {_count(len(images), 'image')}",
            hint=f"give one {IMAGE} tag in a human turn for every image",
        )
    return Record(index, _id(values), images, turns, folder)


def _id(values: dict[str, object]) -> str:
    return str(values.get("id", ""))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _images(values: dict[str, object]) -> tuple[str, ...]:
    given = values.get("image")
    listed = given if isinstance(given, list) else [] if given is None else [given]
    for image in listed:
        if not isinstance(image, str) or not image:
            raise _MalformedRecord("`image` is not a path or a list of paths", found=json.dumps(image)[:60])
    return tuple(listed)


def _turns(values: dict[str, object]) -> tuple[Turn, ...]:
    if "conversations" not in values:
        raise _MalformedRecord("it has no `conversations`", found=f"keys {', '.join(values) or 'none'}"[:80])
    conversation = values["conversations"]
    if not isinstance(conversation, list) or not conversation:
        found = json.dumps(conversation)[:60]
        raise _MalformedRecord("`conversations` is not a list of turns, or is empty", found=found)
    return tuple(_turn(value, position) for position, value in enumerate(conversation))


def _turn(value: object, position: int) -> Turn:
    if not isinstance(value, dict):
        raise _MalformedRecord(f"turn {position} is not a mapping", found=json.dumps(value)[:60])
    role, text = value.get("from"), value.get("value")
    if not isinstance(role, str) or role not in _ROLES:
        near = _OTHER_NAMES.get(str(role))
        hint = f'did you mean "{near}"?' if near else 'write "human" or "gpt"'
        raise _MalformedRecord(f"turn {position} has an unknown role", found=json.dumps(role)[:60], hint=hint)
    if not isinstance(text, str):
        raise _MalformedRecord(f"the `value` of turn {position} is not text", found=json.dumps(text)[:60])
    return Turn(_ROLES[role], text)
