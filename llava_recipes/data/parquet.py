"""Records and pictures in Parquet files, read a row group at a time."""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from llava_recipes.data.conversation import word_length
from llava_recipes.errors import Mark, Problem, RecipeError
from llava_recipes.files import odd_kind
from llava_recipes.recipe.foreign import wrong_kind

MAX_GROUP_BYTES: Final = 2**30
"""Largest row group that is read: each process holds one of them at a time."""

_CONVERSATIONS = ("conversations", "messages")
_PICTURES = ("image", "images")
_SHARD = re.compile(r"(.+?)-\d+-of-\d+(-[0-9a-f]+)?\.parquet")


@dataclass(frozen=True)
class _Group:
    """A row group of a file, and the row it begins with."""

    file: str
    number: int
    first_row: int
    num_rows: int


class ParquetFiles:
    """Rows of Parquet files as records: those of a file, a folder, or a pattern such as `train-*.parquet`.

    Columns: `conversations` or `messages`, `image` or `images`, `id`; others are not read. A picture is a
    path, its bytes, or both in a struct `{bytes, path}`. Only where row groups stand is kept; the last one
    read is held by each process, the pictures apart from the texts. Raises RecipeError when a file is
    missing, is no Parquet file, lacks its columns, or has row groups of more than MAX_GROUP_BYTES.
    """

    def __init__(self, path: str, *, measure: bool = False) -> None:
        self.path = path
        self._groups: list[_Group] = []
        self._texts: tuple[str, ...] = ()
        self._bytes: tuple[str, ...] = ()
        self._held: dict[str, tuple[_Group, pa.Table]] = {}
        for number, file in enumerate(_files(path)):
            self._add(file, is_first=number == 0)
        self._ends = list(accumulate(group.num_rows for group in self._groups))
        if not self._ends or not self._ends[-1]:
            raise RecipeError(_problem(path, "the file holds no records", code="annotations-empty"))
        self.has_pictures = bool(self._bytes)
        self._lengths = array("q", map(word_length, self._all()) if measure else ())

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_held": {}}

    @property
    def lengths(self) -> Sequence[int]:
        """Words of each record's conversation, negative without a picture; empty unless `measure` was set."""
        return self._lengths

    def values(self, index: int) -> dict[str, object]:
        """What one row holds, but for the bytes of its pictures."""
        return _without_bytes(self._row(index, "texts"))

    def pictures(self, index: int) -> tuple[bytes | None, ...]:
        """The bytes of a row's pictures, None for one that has a path alone."""
        if not self._bytes:
            return ()
        (held,) = [value for value in self._row(index, "bytes").values() if value is not None] or [[]]
        return tuple(_bytes(picture) for picture in (held if isinstance(held, list) else [held]))

    def mark(self, index: int) -> Mark:
        """The file, and the row in it counted from 0."""
        group, row = self._place(index)
        return Mark(group.file, 0, 0, row=group.first_row + row)

    def _add(self, file: str, *, is_first: bool) -> None:
        kind = odd_kind(file)
        if kind is not None:
            message = f"this is {kind}; annotations are an ordinary file"
            raise RecipeError(_problem(file, message, code="not-an-ordinary-file"))
        try:
            with pq.ParquetFile(file, memory_map=True) as opened:
                metadata, schema = opened.metadata, opened.schema_arrow
        except (OSError, pa.ArrowException) as error:
            found = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
            raise RecipeError(
                _problem(file, "cannot be read as a Parquet file", code="parquet-unreadable", found=found)
            ) from None
        leaves = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
        texts, pictures = _columns(file, schema, leaves)
        if is_first:
            self._texts, self._bytes = texts, pictures
        elif (texts, pictures) != (self._texts, self._bytes):
            found = f"{self._groups[0].file if self._groups else self.path} has others"
            raise RecipeError(
                _problem(file, "the files do not have the same columns", code="columns-differ", found=found)
            )
        first_row = 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if group.total_byte_size > MAX_GROUP_BYTES:
                found = (
                    f"row group {number}: {group.num_rows:,} rows, {group.total_byte_size / 2**30:.1f} GiB"
                )
                hint = "write the file again with a smaller `row_group_size`, such as 100 rows"
                raise RecipeError(
                    _problem(
                        file, "a row group is too large", code="row-group-too-large", found=found, hint=hint
                    )
                )
            self._groups.append(_Group(file, number, first_row, group.num_rows))
            first_row += group.num_rows

    def _place(self, index: int) -> tuple[_Group, int]:
        number = bisect_right(self._ends, index)
        group = self._groups[number]
        return group, index - (self._ends[number] - group.num_rows)

    def _row(self, index: int, what: str) -> dict[str, object]:
        group, row = self._place(index)
        (values,) = self._table(group, what).slice(row, 1).to_pylist()
        found: dict[str, object] = values
        return found

    def _table(self, group: _Group, what: str) -> pa.Table:
        held, table = self._held.get(what, (None, None))
        if held is not group:
            table = _read(group, self._texts if what == "texts" else self._bytes)
            self._held[what] = (group, table)
        return table

    def _all(self) -> Iterator[dict[str, object]]:
        for group in self._groups:
            yield from map(_without_bytes, self._table(group, "texts").to_pylist())


def _read(group: _Group, columns: tuple[str, ...]) -> pa.Table:
    try:
        # Arrow's threads do not outlive a fork, and loaders are forked.
        with pq.ParquetFile(group.file, memory_map=True, pre_buffer=False) as opened:
            return opened.read_row_group(group.number, columns=list(columns), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        found = str(error).splitlines()[0]
        raise RecipeError(
            _problem(
                group.file,
                "cannot be read as a Parquet file",
                code="parquet-unreadable",
                found=found,
            )
        ) from None


def _files(path: str) -> list[str]:
    place = Path(path)
    if os.path.isdir(path):
        found = sorted(str(file) for file in place.glob("*.parquet"))
        if not found and any(place.glob("*.arrow")):
            raise RecipeError(wrong_kind("saved", path, path=None))
        if not found:
            raise RecipeError(
                _problem(path, "the folder holds no `.parquet` files", code="annotations-empty")
            )
        splits = sorted({match.group(1) for file in found if (match := _SHARD.fullmatch(Path(file).name))})
        if len(splits) > 1:
            hint = f"write `annotations: {place / (splits[-1] + '-*.parquet')}` to take one of them"
            raise RecipeError(
                _problem(
                    path,
                    "the folder holds several splits",
                    code="several-splits",
                    found=", ".join(splits),
                    hint=hint,
                )
            )
        return found
    if "*" in place.name and not os.path.exists(path):
        found = sorted(map(str, place.parent.glob(place.name)))
        if not found:
            raise RecipeError(_problem(path, "no file matches the pattern", code="no-such-file"))
        return found
    return [path]


def _columns(file: str, schema: pa.Schema, leaves: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The leaf columns that hold texts and paths, and those that hold the bytes of pictures."""
    names = set(schema.names)
    if not names & set(_CONVERSATIONS):
        hint = "it needs `conversations` (list of {from, value}) or `messages` (list of {role, content})"
        found = f"columns {', '.join(schema.names)}"[:200]
        raise RecipeError(
            _problem(
                file,
                "there is no column with conversations",
                code="no-conversations-column",
                found=found,
                hint=hint,
            )
        )
    given = [name for name in _PICTURES if name in names]
    if len(given) == 2:
        raise RecipeError(
            _problem(
                file,
                "there are both `image` and `images`",
                code="image-and-images-columns",
                hint="keep one of the columns",
            )
        )
    if given:
        _check_pictures(file, given[0], schema.field(given[0]).type)
    wanted = {"id", *_CONVERSATIONS, *given}
    texts, pictures = [], []
    for leaf in leaves:
        root, _, inner = leaf.partition(".")
        if root not in wanted:
            continue
        if root not in _PICTURES or inner.endswith("path") or not _holds_bytes(schema.field(root).type):
            texts.append(leaf)
        else:
            pictures.append(leaf)
            if not any(other.endswith("path") and other.startswith(f"{root}.") for other in leaves):
                # Whether there is a picture is told by its bytes alone.
                texts.append(leaf)
    return tuple(texts), tuple(pictures)


def _check_pictures(file: str, name: str, kind: pa.DataType) -> None:
    one = kind.value_type if _is_list(kind) else kind
    if pa.types.is_string(one) or pa.types.is_large_string(one) or _is_binary(one) or pa.types.is_null(one):
        return
    if pa.types.is_struct(one) and {one.field(number).name for number in range(one.num_fields)} <= {
        "bytes",
        "path",
    }:
        return
    hint = "a picture is a path, its bytes, or a struct {bytes, path}; one of them or a list"
    raise RecipeError(
        _problem(
            file,
            f"the column `{name}` holds no pictures",
            code="column-without-images",
            found=str(kind),
            hint=hint,
        )
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_bytes(kind: pa.DataType) -> bool:
    one = kind.value_type if _is_list(kind) else kind
    return _is_binary(one) or (pa.types.is_struct(one) and one.get_field_index("bytes") >= 0)


def _without_bytes(values: dict[str, object]) -> dict[str, object]:
    """The row with an empty struct for each picture that is bytes alone."""
    for name in _PICTURES:
        picture = values.get(name)
        if isinstance(picture, bytes):
            values[name] = {}
        elif isinstance(picture, list):
            values[name] = [{} if isinstance(each, bytes) else each for each in picture]
    return values


def _bytes(picture: object) -> bytes | None:
    value = picture.get("bytes") if isinstance(picture, dict) else picture
    return value if isinstance(value, bytes) else None


def _problem(
    path: str, message: str, *, code: str, found: str | None = None, hint: str | None = None
) -> Problem:
    return Problem(f"{path}: {message}", code=code, path=("annotations",), found=found, hint=hint)
