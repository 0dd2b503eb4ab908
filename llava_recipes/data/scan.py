"""The records of a JSON or JSONL annotation file: found once, read from the mapped file when asked for."""

from __future__ import annotations

import codecs
import json
import mmap
import re
from array import array
from collections.abc import Iterator, Sequence
from typing import Final

from llava_recipes.data.conversation import has_conversation, word_length
from llava_recipes.errors import Mark, RecipeError
from llava_recipes.files import NotOrdinary, open_ordinary

WINDOW_BYTES: Final = 4 * 2**20
SHOWN_LINE_BYTES: Final = 10_000
"""A longer line, such as a whole file in one line, is named in messages but not shown."""

_KEYS: Final = re.compile(rb'"(conversations|messages|images?|question|prompt|text)"\s*:')
_LOOKED_AT_BYTES: Final = 2**16
"""How much of a file's beginning is searched for a key of a record."""

_SPACE = re.compile(r"[ \t\r\n]*")
_BOM: Final = codecs.BOM_UTF8
_HINT: Final = "write a JSON list of records, or one record per line"


class AnnotationFile:
    """A JSON list or JSONL file of records, mapped into memory.

    Only two integers per record are kept (three with `measure`), so forked workers share everything. Raises
    RecipeError, with line and column, when the file is missing, not UTF-8, not JSON, not a list of mappings,
    or empty.
    """

    has_images = False

    def __init__(self, path: str, *, measure: bool = False) -> None:
        self.path = path
        self._bytes = _map_file(path)
        self._starts = array("Q")
        self._ends = array("Q")
        self._lengths = array("q")
        for record, start, end in _records(self._bytes, path):
            self._starts.append(start)
            self._ends.append(end)
            if measure:
                self._lengths.append(word_length(record))
        if not self._starts:
            raise annotations_error(
                path, "the file contains no records", code="annotations-empty", hint=_HINT
            )

    def __len__(self) -> int:
        return len(self._starts)

    def text(self, index: int) -> bytes:
        """One record's JSON text, UTF-8."""
        return self._bytes[self._starts[index] : self._ends[index]]

    def values(self, index: int) -> dict[str, object]:
        """The values of one record."""
        values: dict[str, object] = json.loads(self.text(index))
        return values

    def images(self, index: int) -> tuple[bytes | None, ...]:
        """Nothing: a JSON file's images are in a folder."""
        return ()

    @property
    def lengths(self) -> Sequence[int]:
        """Words of each record's conversation, negative without an image; empty unless `measure` was set."""
        return self._lengths

    def mark(self, index: int) -> Mark:
        """Where the record begins."""
        return _mark(self._bytes, self.path, self._starts[index])

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_bytes"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._bytes = _map_file(self.path)


class _Window:
    """A decoded stretch of the file; `at` is a position in `text`, `last` says that the file ends with it."""

    def __init__(self, text: str, start: int, last: bool) -> None:
        self.text = text
        self.last = last
        self.at = 0
        self._known = (0, start)

    def byte(self, at: int) -> int:
        """The byte in the file at a position of the text."""
        known_at, known_byte = self._known
        # Counting on from the last position asked for keeps a whole file linear.
        between = self.text[known_at:at] if at >= known_at else self.text[at:known_at]
        distance = len(between) if between.isascii() else len(between.encode())
        self._known = at, known_byte + (distance if at >= known_at else -distance)
        return self._known[1]


class _Reader:
    """Walks over JSON values, holding one window of the file at a time."""

    def __init__(self, data: mmap.mmap, path: str) -> None:
        self.data = data
        self.path = path
        self.window = self._decoded(len(_BOM) if data[: len(_BOM)] == _BOM else 0, WINDOW_BYTES)
        self._scale = 1

    def peek(self) -> str:
        """The next character that is not space; empty at the end of the file."""
        while True:
            self.window.at = _skip_space(self.window.text, self.window.at)
            if self.window.at < len(self.window.text) or self.window.last:
                return self.window.text[self.window.at : self.window.at + 1]
            self._refill(grow=False)

    def take(self) -> None:
        self.window.at += 1

    def value(self) -> tuple[object, int, int]:
        """The next JSON value and the bytes it covers."""
        while True:
            window = self.window
            try:
                value, end = _DECODER.raw_decode(window.text, window.at)
            except json.JSONDecodeError as error:
                if window.last:
                    raise self._malformed(error) from None
                self._refill(grow=window.at == 0)
                continue
            except RecursionError:
                raise self.failure("the record is nested too deeply", code="malformed-record") from None
            start = window.byte(window.at)
            window.at = end
            return value, start, window.byte(end)

    def failure(
        self, message: str, *, code: str, byte: int | None = None, found: str | None = None
    ) -> RecipeError:
        offset = self.window.byte(self.window.at) if byte is None else byte
        mark = _mark(self.data, self.path, offset)
        return RecipeError.of(message, code=code, mark=mark, found=found, hint=_HINT)

    def _malformed(self, error: json.JSONDecodeError) -> RecipeError:
        begins, stops = (
            _mark(self.data, self.path, self.window.byte(at)).line for at in (self.window.at, error.pos)
        )
        # What a cut record lacks is missed only in the next one.
        found = f"in the record that starts in line {begins}" if begins != stops else None
        return self.failure(
            f"malformed JSON: {error.msg}",
            code="malformed-json",
            byte=self.window.byte(error.pos),
            found=found,
        )

    def _refill(self, *, grow: bool) -> None:
        self._scale = self._scale * 2 if grow else 1
        self.window = self._decoded(self.window.byte(self.window.at), WINDOW_BYTES * self._scale)

    def _decoded(self, start: int, size: int) -> _Window:
        last = start + size >= len(self.data)
        try:
            text, _ = codecs.utf_8_decode(self.data[start : start + size], "strict", last)
        except UnicodeDecodeError as error:
            mark = _mark(self.data, self.path, start + error.start)
            raise RecipeError.of(
                "the file is not UTF-8", code="file-not-text", mark=mark, hint="save it as UTF-8"
            ) from None
        return _Window(text, start, last)


_DECODER = json.JSONDecoder()


Located = tuple[dict[str, object], int, int]
"""A record and the bytes it covers."""


def _records(data: mmap.mmap, path: str) -> Iterator[Located]:
    reader = _Reader(data, path)
    first = reader.peek()
    if first == "[":
        yield from _listed(reader)
    elif first == "{":
        yield from _by_line(reader)
    else:
        raise reader.failure(
            "the file is not a list of records", code="annotations-not-a-list", found=_shown(first)
        )


def _listed(reader: _Reader) -> Iterator[Located]:
    reader.take()
    closed = reader.peek() == "]"
    while not closed:
        reader.peek()
        yield _record(reader)
        separator = reader.peek()
        if separator not in (",", "]"):
            raise reader.failure(
                "malformed JSON: expected `,` or `]`", code="malformed-json", found=_shown(separator)
            )
        closed = separator == "]"
        if not closed:
            reader.take()
    reader.take()
    if reader.peek():
        raise reader.failure(
            "malformed JSON: more text after the end of the list",
            code="malformed-json",
            found=_shown(reader.peek()),
        )


def _by_line(reader: _Reader) -> Iterator[Located]:
    first, start, end = _record(reader)
    if not reader.peek() and not has_conversation(first) and not reader.path.endswith(".jsonl"):
        raise reader.failure(
            "the file is not a list of records",
            code="annotations-not-a-list",
            byte=start,
            found="one mapping",
        )
    yield first, start, end
    while reader.peek():
        yield _record(reader)


def _record(reader: _Reader) -> Located:
    value, start, end = reader.value()
    if not isinstance(value, dict):
        found = json.dumps(value)[:60] if _holds_records(reader.data) else None
        raise reader.failure("a record is not a mapping", code="malformed-record", byte=start, found=found)
    return value, start, end


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _shown(character: str) -> str:
    return f"`{character}`" if character else "the end of the file"


def _mark(data: mmap.mmap, path: str, offset: int) -> Mark:
    before = data[:offset]
    line_start = before.rfind(b"\n") + 1
    column = len(before[line_start:].decode("utf-8", "replace")) + 1
    line = data[line_start : line_start + SHOWN_LINE_BYTES + 1].splitlines()[:1] or [b""]
    is_shown = len(line[0]) <= SHOWN_LINE_BYTES and _holds_records(data)
    text = line[0].decode("utf-8", "replace") if is_shown else None
    return Mark(path, before.count(b"\n") + 1, column, text=text)


def _holds_records(data: mmap.mmap) -> bool:
    """Whether a file has a record's keys: another file, named by mistake or malice, is not quoted."""
    return _KEYS.search(data, 0, _LOOKED_AT_BYTES) is not None


def _map_file(path: str) -> mmap.mmap:
    try:
        with open_ordinary(path) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise annotations_error(
            path, "the annotation file is empty", code="annotations-empty", hint=_HINT
        ) from None
    except NotOrdinary as error:
        raise annotations_error(
            path,
            f"this is {error.kind}; annotations must be an ordinary file",
            code="not-an-ordinary-file",
            hint="save the records in a file, and write its name",
        ) from None
    except OSError as error:
        hint = "check `annotations` and the folder that the command runs in"
        raise annotations_error(
            path,
            "cannot read the annotation file",
            code="annotations-unreadable",
            found=error.strerror,
            hint=hint,
        ) from None


def annotations_error(
    path: str, message: str, *, code: str, found: str | None = None, hint: str | None = None
) -> RecipeError:
    """The error of an annotation file as a whole."""
    return RecipeError.of(f"{path}: {message}", code=code, path=("annotations",), found=found, hint=hint)
