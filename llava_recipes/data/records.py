"""The records of a stage: who says what about which picture, read one at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import overload

from llava_recipes.data.conversation import MalformedRecord, Record, parse_record, record_id
from llava_recipes.data.draw import positions
from llava_recipes.data.formats import RecordFile, open_file
from llava_recipes.plan.types import SourcePlan
from llava_recipes.recipe.errors import Mark, Problem, RecipeError, SampleError, sample_problem

NUM_SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class OpenedSource:
    """An annotation file, its image folder, and the places in the file of the records that are samples."""

    file: RecordFile
    folder: str | None
    positions: Sequence[int]


class Records(Sequence[Record]):
    """The samples of a stage's sources, one source after another; parsed when they are asked for.

    Asking for a record that is not well formed, or whose `<image>` tags and images differ in number, raises
    SampleError with its index among the samples, its id, and its line or row.
    """

    def __init__(self, sources: Sequence[OpenedSource]) -> None:
        self._sources = tuple(sources)
        self._ends = list(accumulate(len(source.positions) for source in self._sources))

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
        source, position = self._place(index)
        values = source.file.values(position)
        try:
            return parse_record(values, index=index, folder=source.folder, embedded=source.file.has_pictures)
        except MalformedRecord as error:
            mark = source.file.mark(position)
            raise SampleError(
                sample_problem(
                    index,
                    record_id(values),
                    error.message,
                    code="malformed-record",
                    mark=mark,
                    found=error.found,
                    hint=error.hint,
                )
            ) from None

    def lengths(self) -> list[int]:
        """Words of each conversation, negative without a picture; for records opened with `measure`."""
        return [
            source.file.lengths[position]
            for source in self._sources
            if source.file.lengths
            for position in source.positions
        ]

    def mark(self, index: int) -> Mark:
        """Where a record stands in its annotation file."""
        source, position = self._place(index)
        return source.file.mark(position)

    def pictures(self, index: int) -> tuple[bytes | None, ...]:
        """The pictures of a record that lie in its annotation file, None for each that lies in the folder."""
        source, position = self._place(index)
        return source.file.pictures(position)

    def _place(self, index: int) -> tuple[OpenedSource, int]:
        number = bisect_right(self._ends, index)
        source = self._sources[number]
        return source, source.positions[index - (self._ends[number] - len(source.positions))]


def open_records(sources: Sequence[SourcePlan], *, measure: bool = False) -> Records:
    """The samples that an epoch draws from all sources; with `measure` their lengths are taken on the way.

    Raises RecipeError for every source at once: a file that is missing or not well formed, an image folder
    that is missing, a number of records that is not the source's `num_samples`.
    Problems without a mark carry a path that starts at the source.
    """
    opened: list[OpenedSource] = []
    problems: list[Problem] = []
    for source in sources:
        problems += _folder_problems(source)
        try:
            file = open_file(source.annotations, measure=measure)
        except RecipeError as error:
            problems += error.problems
            continue
        wrong = _count_problems(source, len(file))
        if wrong:
            problems += wrong
            continue
        try:
            opened.append(OpenedSource(file, source.images, positions(source, len(file))))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(*problems)
    return Records(opened)


def at_source(problems: Sequence[Problem], path: tuple[str | int, ...]) -> list[Problem]:
    """Problems of a source's files, which know their own place or get the source's, whose path is given."""
    return [
        problem if problem.mark else replace(problem, path=(*path, *(problem.path or ("annotations",))))
        for problem in problems
    ]


def count_records(path: str) -> int:
    """How many records an annotation file holds. Raises RecipeError when it is missing or not well formed."""
    return len(open_file(path))


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
        faulty.append(
            Problem(f"{hidden} more of {len(records)} records have such problems", code="more-problems")
        )
    return faulty


def _folder_problems(source: SourcePlan) -> list[Problem]:
    if source.images is None or Path(source.images).is_dir():
        return []
    what = "is not a folder" if Path(source.images).exists() else "does not exist"
    message = f"{source.images}: the image folder {what}"
    return [
        Problem(message, code="image-folder-missing", path=("images",), hint="check `images` of the source")
    ]


def _count_problems(source: SourcePlan, num_records: int) -> list[Problem]:
    if source.num_samples in (None, num_records):
        return []
    return [
        Problem(
            f"{source.annotations}: the file does not hold `num_samples` records",
            code="num-samples-differs",
            path=("num_samples",),
            found=f"num_samples is {source.num_samples}, the file holds {num_records}",
            hint=f"write `num_samples: {num_records}`, or leave it out",
        )
    ]
