"""Read a recipe's YAML into plain values, with the place of every key and value.

YAML is read as a stream of events: lines and columns are known, duplicate keys are visible, and the limits
on size, depth and aliases apply before anything recurses.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import yaml

from llava_recipes.errors import KeyPath, Mark, Problem, RecipeError
from llava_recipes.files import NotOrdinary, open_ordinary
from llava_recipes.recipe.renames import nearest
from llava_recipes.recipe.scalars import ScalarError, Value, check_text, resolve_scalar

_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_LEADING_TAB = re.compile(r" *\t")

_NO_COLON = "a key without a colon"
_OPEN_LIST = "a list that opens with `[` is not closed"
_OPEN_MAPPING = "a mapping that opens with `{` is not closed"
_OPEN_QUOTE = "a quote is not closed"
_POINT_BACK = (_NO_COLON, _OPEN_LIST, _OPEN_MAPPING, _OPEN_QUOTE)
"""Problems shown where they start, not where YAML notices them."""
_IN_OUR_WORDS = (
    (
        "mapping values are not allowed",
        "a `key: value` cannot start here",
        "check the indentation of this line and the one above; put text that contains `: ` in quotes",
    ),
    ("could not find expected ':'", _NO_COLON, "write `key: value`, with a space"),
    (
        "did not find expected key",
        "this line does not fit the mapping around it",
        "align it with the other keys, and close every quote and bracket",
    ),
    (
        "did not find expected '-' indicator",
        "this line does not fit the list around it",
        "start each entry with `- ` in the same column",
    ),
    ("did not find expected ',' or ']'", _OPEN_LIST, "close it, or add the missing `,`"),
    ("did not find expected ',' or '}'", _OPEN_MAPPING, "close it, or add the missing `,`"),
    ("found unexpected end of stream", _OPEN_QUOTE, "close the quote"),
    ("found unexpected document indicator", _OPEN_QUOTE, "close the quote"),
    (
        "unknown escape character",
        "an unknown escape sequence",
        r"double the backslash (`\\`), or use single quotes",
    ),
    (
        "found character that cannot start any token",
        "a value cannot start with this character",
        "put the text in quotes",
    ),
    ("did not find expected node content", "a value is missing here", "write a value, or close the bracket"),
    ("found incompatible YAML document", "this version of YAML is not supported", "remove the `%YAML` line"),
)

MAX_BYTES = 1_000_000
ENDINGS = (".yaml", ".yml")
_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_OTHER_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
MAX_DEPTH = 64
_TOO_DEEP = f"values are nested deeper than {MAX_DEPTH} levels"
MAX_VALUES = 10_000
CHARACTERS_PER_VALUE = 200
"""A longer string counts as several values, since an alias may repeat it."""
MAX_KEY_CHARACTERS = 200
_SHOWN_CHARACTERS = 80
"""Longest part of a line in a message."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Document:
    """Plain values, the place of every value and key, and the problems so far."""

    file: str
    root: Value
    value_marks: dict[KeyPath, Mark] = field(repr=False)
    key_marks: dict[KeyPath, Mark] = field(repr=False)
    problems: tuple[Problem, ...] = ()
    spoiled: frozenset[KeyPath] = frozenset()
    """Values with a problem that is reported already, so that nothing more is said about them."""
    parents: tuple[str, ...] = ()
    """The files that this one extends, and theirs."""
    uses: dict[KeyPath, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """The variables that a value is made of, with those that they need themselves."""

    def locate(self, path: KeyPath, *, on_key: bool = False) -> Mark | None:
        """The mark of a value or its key, or of the nearest parent that has one."""
        for end in range(len(path), -1, -1):
            first, second = self.value_marks, self.key_marks
            if on_key and end == len(path):
                first, second = second, first
            mark = first.get(path[:end]) or second.get(path[:end])
            if mark is not None:
                return mark
        return None


def read_file(file: str, *, kind: str = "recipe", max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a recipe, or of another `kind` of file.

    Raises RecipeError when it is missing, a folder, not an ordinary file, or larger than `max_bytes`.
    """
    whole = Mark(file, 0, 0)
    try:
        with open_ordinary(file) as stream:
            data = stream.read(max_bytes + 1)
    except FileNotFoundError:
        near = nearest_file(file)
        hint = f'did you mean "{os.path.join(os.path.dirname(file), near)}"?' if near else None
        raise RecipeError.of("no such file", code="no-such-file", mark=whole, hint=hint) from None
    except IsADirectoryError:
        hint = f"name a file in it, or {file.rstrip('/')}/*.yaml" if kind == "recipe" else "name a file in it"
        message = f"this is a folder; a {kind} is a file"
        raise RecipeError.of(message, code="path-is-a-folder", mark=whole, hint=hint) from None
    except NotOrdinary as error:
        message, hint = (
            f"this is {error.kind}; a {kind} is an ordinary file",
            f"save the {kind} in a file first",
        )
        raise RecipeError.of(message, code="not-an-ordinary-file", mark=whole, hint=hint) from None
    except (OSError, ValueError) as error:
        message, reason = "the file cannot be read", getattr(error, "strerror", None) or str(error)
        raise RecipeError.of(message, code="file-cannot-be-read", mark=whole, found=reason) from None
    if len(data) > max_bytes:
        message = f"the file is larger than {max_bytes:,} bytes; this isn't a {kind}"
        raise RecipeError.of(message, code="file-too-large", mark=whole)
    return data


def nearest_file(file: str) -> str | None:
    """The YAML file in the same folder that was probably meant; None if no name is near."""
    folder, name = os.path.split(file)
    try:
        return nearest(name, [entry for entry in os.listdir(folder or ".") if entry.endswith(ENDINGS)])
    except (OSError, ValueError):
        return None


def decode(data: bytes, file: str) -> str:
    """The text of UTF-8 bytes, without a byte order mark. Raises RecipeError for anything else."""
    for signature, encoding in _OTHER_ENCODINGS:
        if data.startswith(signature):
            raise _not_utf8(Mark(file, 0, 0), encoding)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        lines = split_lines(data[: error.start].decode("utf-8-sig", "replace"))
        mark = mark_at(file, lines, len(lines) - 1, len(lines[-1]))
        raise _not_utf8(mark, f"byte 0x{data[error.start]:02X}") from None
    strange = _NOT_TEXT.search(text)
    if strange:
        before = split_lines(text[: strange.start()])
        raise RecipeError.of(
            "a character that is not allowed in YAML",
            code="invalid-yaml-character",
            mark=mark_at(file, split_lines(text), len(before) - 1, len(before[-1])),
            found=f"U+{ord(strange.group()):04X}",
            hint="remove it; is this a binary file?",
        )
    return text


def _not_utf8(mark: Mark, found: str) -> RecipeError:
    return RecipeError.of(
        "the file is not UTF-8", code="file-not-text", mark=mark, found=found, hint="save it as UTF-8"
    )


def parse_source(source: str | bytes, file: str) -> Document:
    """A whole recipe, read from its YAML. Raises RecipeError when the YAML cannot be read at all.

    Faults that leave the rest readable (duplicate keys, tags, numbers out of range) become its problems.
    """
    text = decode(source, file) if isinstance(source, bytes) else source
    document = parse_value(text, file)
    if not isinstance(document.root, dict):
        message, mark = "a recipe is a mapping of keys to values", document.value_marks.get(())
        if document.root is None:
            message, mark = "the file contains no recipe", Mark(file, 0, 0)
        raise RecipeError.of(message, code="recipe-empty", mark=mark, hint="start with `version: 1`")
    return document


def parse_value(text: str, file: str) -> Document:
    """One YAML value of any kind, with its marks. Raises as `parse_source`."""
    node = _compose(text, file, split_lines(text))
    layout = _Layout()
    root = layout.lay_out(node, (), None)
    spoiled = frozenset(problem.path for problem in layout.problems if problem.path and not problem.on_key)
    return Document(file, root, layout.value_marks, layout.key_marks, tuple(layout.problems), spoiled)


@dataclass
class _Node:
    mark: Mark
    value: bool | int | float | str | None = None
    entries: list[_Node] | None = None
    pairs: list[tuple[_Node, _Node]] | None = None
    fault: Problem | None = None
    on_key_line: bool = False
    size: int = 1
    height: int = 1


def _compose(text: str, file: str, lines: list[str]) -> _Node:
    try:
        return _Composer(file, lines).compose(text)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        if place is not None and "exceeded maximum nesting depth" in str(error):
            # PyYAML from 6.0.4 on has a limit too, and reaches it by looking ahead, before ours is reached.
            # The text before that place is deeper than ours, and PyYAML can read it.
            before = [*lines[: place.line], lines[place.line][: place.column]]
            _compose("\n".join(before), file, lines)
        raise RecipeError(_syntax_problem(error, file, lines)) from None


class _Composer:
    """Build the tree of nodes from YAML's events, within the limits."""

    def __init__(self, file: str, lines: list[str]) -> None:
        self.file, self.lines = file, lines
        self.anchors: dict[str, _Node] = {}
        self.open: list[tuple[_Node, list[_Node], str | None]] = []
        self.root: _Node | None = None

    def compose(self, text: str) -> _Node:
        num_documents = 0
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.DocumentStartEvent):
                num_documents += 1
                if num_documents > 1:
                    message, hint = "a second document starts here", "remove `---`: one recipe per file"
                    raise self.refuse(event, message, hint, code="second-document")
            elif isinstance(event, yaml.ScalarEvent):
                self.add(self.scalar(event), event.anchor)
            elif isinstance(event, yaml.AliasEvent):
                self.add(self.alias(event), None)
            elif isinstance(event, yaml.CollectionStartEvent):
                self.start(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self.finish(event)
        return self.root or _Node(Mark(self.file, 0, 0))

    def refuse(self, event: yaml.Event, message: str, hint: str | None = None, *, code: str) -> RecipeError:
        return RecipeError.of(message, code=code, mark=self.mark(event), hint=hint)

    def mark(self, event: yaml.Event) -> Mark:
        start, end = event.start_mark, event.end_mark
        assert start is not None and end is not None
        width = end.column - start.column
        if end.line != start.line:
            width = len(self.lines[start.line].rstrip()) - start.column
        return mark_at(self.file, self.lines, start.line, start.column, width)

    def tag_fault(self, tag: str | None, mark: Mark) -> Problem | None:
        if tag is None:
            return None
        return Problem(
            f"the tag `{tag.replace('tag:yaml.org,2002:', '!!')}` is not allowed",
            code="yaml-tag",
            mark=mark,
            hint="remove the tag: a recipe has plain values only; for a string use quotes",
        )

    def scalar(self, event: yaml.ScalarEvent) -> _Node:
        mark = self.mark(event)
        node = _Node(mark, fault=self.tag_fault(event.tag, mark))
        plain = not event.style
        node.value = event.value
        try:
            check_text(event.value)
            if plain and event.tag is None:
                node.value = resolve_scalar(event.value)
        except ScalarError as error:
            node.fault = Problem(str(error), code="scalar-cannot-be-read", mark=mark)
        node.on_key_line = plain and event.value == ""
        node.size += len(event.value) // CHARACTERS_PER_VALUE
        return node

    def alias(self, event: yaml.AliasEvent) -> _Node:
        mark = self.mark(event)
        node = self.anchors.get(event.anchor or "")
        if node is None:
            inside = any(anchor == event.anchor for _, _, anchor in self.open)
            fault = "is inside itself" if inside else f"needs an anchor `&{event.anchor}` above it"
            message, hint = f"`*{event.anchor}` {fault}", "put text that starts with `*` in quotes"
            raise RecipeError.of(message, code="alias-without-anchor", mark=mark, hint=hint)
        return replace(node, mark=mark, on_key_line=False)

    def start(self, event: yaml.CollectionStartEvent) -> None:
        if len(self.open) >= MAX_DEPTH:
            raise self.refuse(event, _TOO_DEEP, code="recipe-too-large")
        mark = self.mark(event)
        node = _Node(mark, fault=self.tag_fault(event.tag, mark), on_key_line=not event.flow_style)
        self.open.append((node, [], event.anchor))

    def finish(self, event: yaml.CollectionEndEvent) -> None:
        node, inside, anchor = self.open.pop()
        if isinstance(event, yaml.SequenceEndEvent):
            node.entries = inside
        else:
            node.pairs = list(zip(inside[::2], inside[1::2], strict=True))
        node.height += max((child.height for child in inside), default=0)
        if node.on_key_line:
            node.mark = inside[0].mark if inside else node.mark
        else:
            end = self.mark(event)
            if end.line == node.mark.line:
                node.mark = replace(node.mark, width=end.column + end.width - node.mark.column)
        self.add(node, anchor)

    def add(self, node: _Node, anchor: str | None) -> None:
        # Aliases make a small file large, so the limits count the values that they repeat.
        num_values = node.size
        if self.open:
            parent = self.open[-1][0]
            parent.size += node.size
            num_values = parent.size
        if num_values > MAX_VALUES:
            message, hint = (
                f"more than {MAX_VALUES:,} values in one file",
                "an alias counts as all its values",
            )
            raise RecipeError.of(message, code="recipe-too-large", mark=node.mark, hint=hint)
        if len(self.open) + node.height > MAX_DEPTH + 1:
            raise RecipeError.of(_TOO_DEEP, code="recipe-too-large", mark=node.mark)
        if anchor is not None:
            self.anchors[anchor] = node
        if self.open:
            self.open[-1][1].append(node)
        else:
            self.root = node


class _Layout:
    """Turn a tree of nodes into plain values and marks by path."""

    def __init__(self) -> None:
        self.value_marks: dict[KeyPath, Mark] = {}
        self.key_marks: dict[KeyPath, Mark] = {}
        self.problems: list[Problem] = []

    def lay_out(self, node: _Node, path: KeyPath, key_mark: Mark | None) -> Value:
        self.value_marks[path] = key_mark if node.on_key_line and key_mark is not None else node.mark
        if node.fault is not None:
            self.problems.append(replace(node.fault, path=path))
        if node.entries is not None:
            return [self.lay_out(entry, (*path, index), None) for index, entry in enumerate(node.entries)]
        if node.pairs is not None:
            keys = self.keys(node.pairs, path)
            return {key: self.lay_out(child, (*path, key), mark) for key, mark, child in keys}
        return node.value

    def keys(self, pairs: list[tuple[_Node, _Node]], path: KeyPath) -> Iterator[tuple[str, Mark, _Node]]:
        seen: dict[str, Mark] = {}
        for key, child in pairs:
            fault = key.fault or _key_fault(key)
            if fault is not None:
                self.problems.append(replace(fault, path=path, on_key=True))
                continue
            assert isinstance(key.value, str)
            if key.value in seen:
                self.problems.append(_duplicate(key, seen[key.value], path))
                continue
            seen[key.value] = key.mark
            self.key_marks[(*path, key.value)] = key.mark
            yield key.value, key.mark, child


def _key_fault(key: _Node) -> Problem | None:
    if key.value == "<<":
        return Problem(
            "the merge key `<<` is not supported",
            code="yaml-merge-key",
            mark=key.mark,
            hint="write the keys here, or repeat a whole block with an anchor: `&name` there, `*name` here",
        )
    if not isinstance(key.value, str) or key.entries is not None or key.pairs is not None:
        hint = "put the key in quotes, or remove it"
        return Problem("a key must be a string", code="key-not-text", mark=key.mark, hint=hint)
    if len(key.value) <= MAX_KEY_CHARACTERS:
        return None
    return Problem(
        f"a key is longer than {MAX_KEY_CHARACTERS} characters",
        code="key-too-long",
        mark=key.mark,
        found=f"{len(key.value):,} characters: {key.value[:_SHOWN_CHARACTERS]}…",
        hint="put text that contains `: ` in quotes",
    )


def _duplicate(key: _Node, first: Mark, path: KeyPath) -> Problem:
    line = (first.text or "").strip()
    shown = line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…"
    return Problem(
        f"the key `{key.value}` is repeated",
        code="duplicate-key",
        path=(*path, str(key.value)),
        mark=key.mark,
        found=f"first on line {first.line}:  {shown}",
        hint="keep one of the two",
        on_key=True,
    )


def _syntax_problem(error: yaml.YAMLError, file: str, lines: Sequence[str]) -> Problem:
    """YAML's own error as a problem, at the place where a person would look."""
    place = getattr(error, "problem_mark", None)
    reason = str(getattr(error, "problem", None) or error)
    line, column = (place.line, place.column) if place is not None else (0, 0)
    if line < len(lines) and (tab := _LEADING_TAB.match(lines[line])):
        return Problem(
            "a tab in the indentation",
            code="yaml-tab",
            mark=mark_at(file, lines, line, tab.end() - 1),
            hint="indent with spaces; YAML does not allow tabs here",
        )
    for theirs, ours, hint in _IN_OUR_WORDS:
        if theirs in reason:
            opened = getattr(error, "context_mark", None)
            if opened is not None and ours in _POINT_BACK:
                written = "".join(lines[opened.line : line + 1])
                line, column = opened.line, opened.column
                if "${" in written and "opens with" in ours:
                    hint = f"{hint}; inside brackets, text with `${{…}}` needs quotes"
            mark = mark_at(file, lines, line, column)
            return Problem(f"bad YAML: {ours}", code="yaml-syntax", mark=mark, hint=hint)
    return Problem(f"bad YAML: {reason}", code="yaml-syntax", mark=mark_at(file, lines, line, column))


def split_lines(text: str) -> list[str]:
    """The lines of a text, split where YAML breaks them."""
    return _LINE_BREAK.split(text)


def mark_at(file: str, lines: Sequence[str], line: int, column: int, width: int = 1) -> Mark:
    """A mark from a line and a column that count from 0."""
    text = lines[line] if line < len(lines) else ""
    return Mark(file, line + 1, column + 1, max(width, 1), text)
