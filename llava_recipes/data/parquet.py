"""Records and images in Parquet files, read a row group at a time."""

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
from llava_recipes.data.scan import annotations_error
from llava_recipes.errors import Mark, RecipeError
from llava_recipes.files import odd_kind
from llava_recipes.recipe.foreign import wrong_kind

MAX_GROUP_BYTES: Final = 2**30
"""Largest row group that is read: each process keeps one in memory at a time."""

_CONVERSATIONS = ("conversations", "messages")
_IMAGES = ("image", "images")
_SHARD = re.compile(r"(.+?)-\d+-of-\d+(-[0-9a-f]+)?\.parquet")


@dataclass(frozen=True)
class _Group:
    """A row group of a file, and its first row."""

    file: str
    number: int
    first_row: int
    num_rows: int


class ParquetFiles:
    """Rows of Parquet files as records: those of a file, a folder, or a pattern such as `train-*.parquet`.

    Columns: `conversations` or `messages`, `image` or `images`, `id`; others are not read. An image is a
    path, its bytes, or both in a struct `{bytes, path}`. Only the places of row groups are kept, and in each
    process the last group read, images apart from texts. Raises RecipeError when a file is missing, isn't a
    Parquet file, lacks its columns, or has row groups of more than MAX_GROUP_BYTES.
    """

    def __init__(self, path: str, *, measure: bool = False) -> None:
        self.path = path
        self._groups: list[_Group] = []
        self._texts: tuple[str, ...] = ()
        self._bytes: tuple[str, ...] = ()
        self._kept_tables: dict[str, tuple[_Group, pa.Table]] = {}
        for number, file in enumerate(_files(path)):
            self._add(file, is_first=number == 0)
        self._ends = list(accumulate(group.num_rows for group in self._groups))
        if not self._ends or not self._ends[-1]:
            raise annotations_error(path, "the file contains no records", code="annotations-empty")
        self.has_images = bool(self._bytes)
        self._lengths = array("q", map(word_length, self._all()) if measure else ())

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_kept_tables": {}}

    @property
    def lengths(self) -> Sequence[int]:
        """Words of each record's conversation, negative without an image; empty unless `measure` was set."""
        return self._lengths

    def values(self, index: int) -> dict[str, object]:
        """The values of one row, without the bytes of its images."""
        return _without_bytes(self._row(index, "texts"))

    def images(self, index: int) -> tuple[bytes | None, ...]:
        """The bytes of a row's images, None for an image with a path only."""
        if not self._bytes:
            return ()
        (found,) = [value for value in self._row(index, "bytes").values() if value is not None] or [[]]
        return tuple(_bytes(image) for image in (found if isinstance(found, list) else [found]))

    def mark(self, index: int) -> Mark:
        """The file, and the row in it counted from 0."""
        group, row = self._place(index)
        return Mark(group.file, 0, 0, row=group.first_row + row)

    def _add(self, file: str, *, is_first: bool) -> None:
        kind = odd_kind(file)
        if kind is not None:
            message = f"this is {kind}; annotations must be an ordinary file"
            raise annotations_error(file, message, code="not-an-ordinary-file")
        try:
            with pq.ParquetFile(file, memory_map=True) as opened:
                metadata, schema = opened.metadata, opened.schema_arrow
        except (OSError, pa.ArrowException) as error:
            found = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
            raise annotations_error(
                file, "cannot be read as a Parquet file", code="parquet-unreadable", found=found
            ) from None
        leaves = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
        texts, images = _columns(file, schema, leaves)
        if is_first:
            self._texts, self._bytes = texts, images
        elif (texts, images) != (self._texts, self._bytes):
            found = f"{self._groups[0].file if self._groups else self.path} has others"
            raise annotations_error(
                file, "the files do not have the same columns", code="columns-differ", found=found
            )
        first_row = 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if group.total_byte_size > MAX_GROUP_BYTES:
                found = (
                    f"row group {number}: {group.num_rows:,} rows, {group.total_byte_size / 2**30:.1f} GiB"
                )
                hint = "write the file again with a smaller `row_group_size`, such as 100 rows"
                raise annotations_error(
                    file, "a row group is too large", code="row-group-too-large", found=found, hint=hint
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
        kept, table = self._kept_tables.get(what, (None, None))
        if kept is not group:
            table = _read(group, self._texts if what == "texts" else self._bytes)
            self._kept_tables[what] = (group, table)
        return table

    def _all(self) -> Iterator[dict[str, object]]:
        for group in self._groups:
            yield from map(_without_bytes, self._table(group, "texts").to_pylist())


def _read(group: _Group, columns: tuple[str, ...]) -> pa.Table:
    try:
        # Data loaders are forked, and Arrow's threads do not survive a fork.
        with pq.ParquetFile(group.file, memory_map=True, pre_buffer=False) as opened:
            return opened.read_row_group(group.number, columns=list(columns), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        found = str(error).splitlines()[0]
        raise annotations_error(
            group.file, "cannot be read as a Parquet file", code="parquet-unreadable", found=found
        ) from None


def _files(path: str) -> list[str]:
    place = Path(path)
    if os.path.isdir(path):
        found = sorted(str(file) for file in place.glob("*.parquet"))
        if not found and any(place.glob("*.arrow")):
            raise RecipeError(wrong_kind("saved", path, path=None))
        if not found:
            raise annotations_error(path, "the folder contains no `.parquet` files", code="annotations-empty")
        splits = sorted({match.group(1) for file in found if (match := _SHARD.fullmatch(Path(file).name))})
        if len(splits) > 1:
            hint = f"write `annotations: {place / (splits[-1] + '-*.parquet')}` to take one of them"
            raise annotations_error(
                path,
                "the folder contains several splits",
                code="several-splits",
                found=", ".join(splits),
                hint=hint,
            )
        return found
    if "*" in place.name and not os.path.exists(path):
        found = sorted(map(str, place.parent.glob(place.name)))
        if not found:
            raise annotations_error(path, "no file matches the pattern", code="no-such-file")
        return found
    return [path]


def _columns(file: str, schema: pa.Schema, leaves: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The leaf columns of texts and paths, and those of the bytes of images."""
    names = set(schema.names)
    if not names & set(_CONVERSATIONS):
        hint = "it needs `conversations` (list of {from, value}) or `messages` (list of {role, content})"
        found = f"columns {', '.join(schema.names)}"[:200]
        raise annotations_error(
            file, "no column contains conversations", code="no-conversations-column", found=found, hint=hint
        )
    given = [name for name in _IMAGES if name in names]
    if len(given) == 2:
        raise annotations_error(
            file,
            "it has both `image` and `images`",
            code="image-and-images-columns",
            hint="keep one of the columns",
        )
    if given:
        _check_images(file, given[0], schema.field(given[0]).type)
    wanted = {"id", *_CONVERSATIONS, *given}
    texts, images = [], []
    for leaf in leaves:
        root, _, inner = leaf.partition(".")
        if root not in wanted:
            continue
        if root not in _IMAGES or inner.endswith("path") or not _has_bytes(schema.field(root).type):
            texts.append(leaf)
        else:
            images.append(leaf)
            if not any(other.endswith("path") and other.startswith(f"{root}.") for other in leaves):
                # Only the bytes say whether there is an image.
                texts.append(leaf)
    return tuple(texts), tuple(images)


def _check_images(file: str, name: str, kind: pa.DataType) -> None:
    one = kind.value_type if _is_list(kind) else kind
    if pa.types.is_string(one) or pa.types.is_large_string(one) or _is_binary(one) or pa.types.is_null(one):
        return
    if pa.types.is_struct(one) and {one.field(number).name for number in range(one.num_fields)} <= {
        "bytes",
        "path",
    }:
        return
    hint = "an image is a path, its bytes, or a struct {bytes, path}; a row has one image or a list"
    raise annotations_error(
        file,
        f"the column `{name}` contains no images",
        code="column-without-images",
        found=str(kind),
        hint=hint,
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _has_bytes(kind: pa.DataType) -> bool:
    one = kind.value_type if _is_list(kind) else kind
    return _is_binary(one) or (pa.types.is_struct(one) and one.get_field_index("bytes") >= 0)


def _without_bytes(values: dict[str, object]) -> dict[str, object]:
    """The row with an empty struct for each image that is bytes alone."""
    for name in _IMAGES:
        image = values.get(name)
        if isinstance(image, bytes):
            values[name] = {}
        elif isinstance(image, list):
            values[name] = [{} if isinstance(each, bytes) else each for each in image]
    return values


def _bytes(image: object) -> bytes | None:
    value = image.get("bytes") if isinstance(image, dict) else image
    return value if isinstance(value, bytes) else None
