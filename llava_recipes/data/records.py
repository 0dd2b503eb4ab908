"""The records of a stage: opened from files of a known kind, drawn from their sources, read one at a time."""

from __future__ import annotations

import os
import random
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Final, Protocol, overload

from llava_recipes.data.conversation import MalformedRecord, Record, parse_record, record_id
from llava_recipes.data.scan import AnnotationFile
from llava_recipes.errors import Mark, Problem, RecipeError, SampleError, sample_problem
from llava_recipes.files import open_ordinary
from llava_recipes.plan.data import count_drawn, count_used, overdrawn
from llava_recipes.plan.types import SourcePlan
from llava_recipes.recipe.foreign import wrong_kind

NUM_SHOWN_PROBLEMS = 5
_READ_BYTES: Final = 4096
_TAR_MARK: Final = slice(257, 262)
_MAGIC: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"ARROW1", "arrow"),
    (b"\xff\xff\xff\xff", "arrow"),
    (b"FEA1", "feather"),
    (b"PAR1", "parquet"),
    (b"\x93NUMPY", "numpy"),
    (b"\x89HDF", "hdf5"),
    (b"SQLite format 3\x00", "sqlite"),
    (b"\xd0\xcf\x11\xe0", "excel"),
    (b"\x89PNG", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"GIF8", "image"),
    (b"%PDF", "pdf"),
    (b"version https://git-lfs", "lfs"),
)
# What the first entry of a zip file says it is.
_ZIP: Final[tuple[tuple[bytes, str], ...]] = (
    (b"[Content_Types].xml", "excel"),
    (b".npy", "numpy"),
    (b"data.pkl", "torch"),
)


@dataclass(frozen=True)
class OpenedSource:
    """An annotation file, its image folder, and the indices in the file of the records that are samples."""

    file: RecordFile
    folder: str | None
    positions: Sequence[int]


class Records(Sequence[Record]):
    """The samples of a stage's sources, one source after another; each is parsed when it is asked for.

    A record that is not well formed, or whose `<image>` tags and images differ in number, raises SampleError
    with its index among the samples, its id, and its line or row.
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
            return parse_record(values, index=index, folder=source.folder, embedded=source.file.has_images)
        except MalformedRecord as error:
            problem = sample_problem(
                index,
                record_id(values),
                error.message,
                code="malformed-record",
                mark=source.file.mark(position),
                found=error.found,
                hint=error.hint,
            )
            raise SampleError(problem) from None

    def lengths(self) -> list[int]:
        """Words of each conversation, negative without an image; empty unless opened with `measure`."""
        return [
            source.file.lengths[position]
            for source in self._sources
            if source.file.lengths
            for position in source.positions
        ]

    def mark(self, index: int) -> Mark:
        """The place of a record in its annotation file."""
        source, position = self._place(index)
        return source.file.mark(position)

    def images(self, index: int) -> tuple[bytes | None, ...]:
        """The bytes of a record's images in its annotation file, None for each that is in the folder."""
        source, position = self._place(index)
        return source.file.images(position)

    def _place(self, index: int) -> tuple[OpenedSource, int]:
        number = bisect_right(self._ends, index)
        source = self._sources[number]
        return source, source.positions[index - (self._ends[number] - len(source.positions))]


def open_records(sources: Sequence[SourcePlan], *, measure: bool = False) -> Records:
    """The samples that an epoch draws from all sources; with `measure` their lengths are computed too.

    Raises RecipeError for all sources at once: a file that is missing or not well formed, an image folder
    that is missing, a number of records other than the source's `num_samples`.
    Problems without a mark have a path that starts at the source.
    """
    opened: list[OpenedSource] = []
    problems: list[Problem] = []
    for source in sources:
        problems += _folder_problems(source)
        try:
            file = open_file(source.annotations, measure=measure)
            _check_count(source, len(file))
            opened.append(OpenedSource(file, source.images, positions(source, len(file))))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(*problems)
    return Records(opened)


def _folder_problems(source: SourcePlan) -> list[Problem]:
    if source.images is None or Path(source.images).is_dir():
        return []
    what = "is not a folder" if Path(source.images).exists() else "does not exist"
    message = f"{source.images}: the image folder {what}"
    hint = "check `images` of the source"
    return [Problem(message, code="image-folder-missing", path=("images",), hint=hint)]


def _check_count(source: SourcePlan, num_records: int) -> None:
    if source.num_samples not in (None, num_records):
        raise RecipeError.of(
            f"{source.annotations}: the file does not contain `num_samples` records",
            code="num-samples-differs",
            path=("num_samples",),
            found=f"num_samples is {source.num_samples}, the file contains {num_records}",
            hint=f"write `num_samples: {num_records}`, or remove it",
        )


def at_source(problems: Sequence[Problem], path: tuple[str | int, ...]) -> list[Problem]:
    """The problems of a source's files: those without a mark get the path of the source, which is `path`."""
    return [
        problem if problem.mark else replace(problem, path=(*path, *(problem.path or ("annotations",))))
        for problem in problems
    ]


def check_records(records: Records) -> list[Problem]:
    """A problem for each of the first records that are not well formed, and one that counts the others."""
    shown: list[Problem] = []
    num_hidden = 0
    for index in range(len(records)):
        try:
            records[index]
        except SampleError as error:
            if len(shown) < NUM_SHOWN_PROBLEMS:
                shown += error.problems
            else:
                num_hidden += 1
    if num_hidden:
        message = f"{num_hidden:,} more of {len(records):,} records have such problems"
        shown.append(Problem(message, code="more-problems"))
    return shown


def positions(source: SourcePlan, num_records: int) -> Sequence[int]:
    """The indices in the file of the samples that an epoch draws from it, in file order.

    With a weight above 1 they repeat, pass after pass. Raises RecipeError when the source asks for more
    records than the file contains.
    """
    problem = overdrawn(source.sampling_strategy, num_records)
    if problem is not None:
        raise RecipeError(problem)
    chosen = _chosen(source, num_records)
    if source.num_held_out:
        held_out = by_chance(chosen, source.num_held_out, f"{source.draw_seed}/held out")
        if source.part == "held_out":
            return held_out
        apart = set(held_out)
        chosen = array("Q", (position for position in chosen if position not in apart))
    elif source.part == "held_out":
        return ()
    if source.weight == 1 or not chosen:
        return chosen
    whole_passes, rest = divmod(count_used(source.weight, len(chosen)), len(chosen))
    return array("Q", chosen) * whole_passes + by_chance(chosen, rest, f"{source.draw_seed}/weight")


def _chosen(source: SourcePlan, num_records: int) -> Sequence[int]:
    word = source.sampling_strategy.partition(":")[0]
    count = count_drawn(source.sampling_strategy, num_records)
    if word == "end":
        return range(num_records - count, num_records)
    if word == "random":
        return by_chance(range(num_records), count, f"{source.draw_seed}/random")
    return range(count)


def by_chance(among: Sequence[int], count: int, seed: str) -> array[int]:
    """`count` of these numbers, drawn by chance and kept in their order.

    Each gets a random key and those with the smallest keys are taken, so a larger share contains every
    smaller one. Only Python's `random()` is used: its numbers for a seed are the same in every version.
    """
    generator = random.Random(seed)
    keys = array("d", (generator.random() for _ in among))
    first = sorted(range(len(among)), key=keys.__getitem__)[:count]
    return array("Q", (among[place] for place in sorted(first)))


class RecordFile(Protocol):
    """The records of a file by index; it keeps little in memory, and forked processes share that.

    With `has_images` the file may contain the images themselves.
    """

    path: str
    has_images: bool

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> Sequence[int]: ...

    def values(self, index: int) -> dict[str, object]: ...

    def images(self, index: int) -> tuple[bytes | None, ...]: ...

    def mark(self, index: int) -> Mark: ...


def open_file(path: str, *, measure: bool = False) -> RecordFile:
    """The records of a JSON, JSONL or Parquet file, of a folder of Parquet files, or of a pattern of them.

    With `measure` each record's length is computed. Raises RecipeError when it cannot be read as records.
    """
    if not is_parquet(path):
        refuse_other_kinds(path)
        return AnnotationFile(path, measure=measure)
    # Imported here, since it takes a while and few runs need it.
    from llava_recipes.data.parquet import ParquetFiles

    return ParquetFiles(path, measure=measure)


def is_parquet(path: str) -> bool:
    """Whether `annotations` means Parquet."""
    return path.lower().endswith(".parquet") or os.path.isdir(path)


def annotations_exist(path: str) -> bool:
    """Whether there is anything to open: a file, a folder, or a file that matches a pattern."""
    place = Path(path)
    return os.path.exists(path) or ("*" in place.name and any(place.parent.glob(place.name)))


def refuse_other_kinds(path: str) -> None:
    """Raise RecipeError for a file of a known kind that is neither JSON nor JSONL.

    Anything else is left to the reader of JSON.
    """
    # Only an ordinary file is opened: reading from another may wait for ever.
    if not os.path.isfile(path):
        return
    try:
        with open_ordinary(path) as file:
            start = file.read(_READ_BYTES)
    except OSError:
        # The reader of JSON reports why it cannot be read.
        return
    kind = kind_of_bytes(start)
    if kind is not None:
        raise RecipeError(wrong_kind(kind, path, path=None))


def kind_of_bytes(start: bytes) -> str | None:
    """The kind of a file that starts with these bytes; None for what may be JSON."""
    for magic, kind in _MAGIC:
        if start.startswith(magic):
            return kind
    if start.startswith(b"PK\x03\x04"):
        return next((kind for mark, kind in _ZIP if mark in start), "zip")
    if start[_TAR_MARK] == b"ustar":
        return "tar"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    return _kind_of_text(start)


def _kind_of_text(start: bytes) -> str | None:
    """A page, a document or a table; None for other text, which may be JSON with a mistake in it."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = text[:100].lower()
    if lower.startswith((b"<!doctype html", b"<html")):
        return "html"
    if lower.startswith(b"<"):
        return "xml"
    first = text.split(b"\n", 1)[0].strip()
    if not first or first[:1] in b'[{"' or b"\x00" in text or not _is_text(first):
        return None
    if first.count(b"\t") and all(first.split(b"\t")):
        return "tsv"
    # The head of a table: only names, without the spaces that a sentence has after its commas.
    names = first.split(b",")
    if len(names) > 1 and all(name.strip(b'"').replace(b"_", b"").isalnum() for name in names):
        return "csv"
    return None


def _is_text(line: bytes) -> bool:
    try:
        return line.decode("utf-8").isprintable() or b"\t" in line
    except UnicodeDecodeError:
        return False
