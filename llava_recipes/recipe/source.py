"""Read YAML text into plain values, with the place of every key and value.

YAML is read as a stream of events: lines and columns are known, duplicate keys are visible, and the limits
on size, depth and aliases hold before anything recurses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import yaml

from llava_recipes.recipe.errors import KeyPath, Mark, Problem, RecipeError
from llava_recipes.recipe.reading import decode
from llava_recipes.recipe.scalars import ScalarError, Value, check_text, resolve_scalar
from llava_recipes.recipe.syntax import explain_syntax, mark_at, split_lines

MAX_DEPTH = 64
MAX_VALUES = 10_000
CHARACTERS_PER_VALUE = 200
"""A longer text counts as several values, since an alias may repeat it."""

MAX_KEY_CHARACTERS = 200
_SHOWN_CHARACTERS = 80
"""Of a line that a message repeats."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Document:
    """Plain values, the place of every value and key, and what is wrong so far."""

    file: str
    root: Value
    value_marks: dict[KeyPath, Mark] = field(repr=False)
    key_marks: dict[KeyPath, Mark] = field(repr=False)
    problems: tuple[Problem, ...] = ()
    spoiled: frozenset[KeyPath] = frozenset()
    """Values that a problem has been told of already, so that nothing more is said about them."""
    parents: tuple[str, ...] = ()
    """The files that this one extends, and theirs."""
    uses: dict[KeyPath, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """The variables that a value was filled in from, with those that they need themselves."""

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


def parse_source(source: str | bytes, file: str) -> Document:
    """Read a whole recipe; raises RecipeError when the YAML cannot be read at all.

    Faults that leave the rest readable (duplicate keys, tags, numbers out of range) come back as problems.
    """
    text = decode(source, file) if isinstance(source, bytes) else source
    document = parse_value(text, file)
    if not isinstance(document.root, dict):
        mark = document.value_marks.get(())
        empty = document.root is None
        raise RecipeError(
            Problem(
                "the file holds no recipe" if empty else "a recipe is a mapping of keys to values",
                code="recipe-empty",
                mark=Mark(file, 0, 0) if empty else mark,
                hint="start with `version: 1`",
            )
        )
    return document


def parse_value(text: str, file: str) -> Document:
    """Read one YAML value of any kind, with its marks."""
    node = _compose(text, file, split_lines(text))
    layout = _Layout()
    root = layout.lay_out(node, (), None)
    spoiled = frozenset(problem.path for problem in layout.problems if problem.path and not problem.on_key)
    return Document(file, root, layout.value_marks, layout.key_marks, tuple(layout.problems), spoiled)


def _compose(text: str, file: str, lines: list[str]) -> _Node:
    try:
        return _Composer(file, lines).compose(text)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        if place is not None and "exceeded maximum nesting depth" in str(error):
            # PyYAML from 6.0.4 on has a limit too, and meets it in looking ahead, before it gives what ours
            # would stop at. What stands before that place is deeper than ours, and PyYAML can read it.
            before = [*lines[: place.line], lines[place.line][: place.column]]
            _compose("\n".join(before), file, lines)
        raise RecipeError(explain_syntax(error, file, lines)) from None


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
                    raise self.refuse(
                        event,
                        "a second document starts here",
                        "remove `---`: one recipe per file",
                        code="second-document",
                    )
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
        return RecipeError(Problem(message, code=code, mark=self.mark(event), hint=hint))

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
            hint="a recipe holds plain values: remove the tag; quotes make text",
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
            fault = "stands inside itself" if inside else f"needs an anchor `&{event.anchor}` above it"
            message = f"`*{event.anchor}` {fault}"
            raise RecipeError(
                Problem(
                    message,
                    code="alias-without-anchor",
                    mark=mark,
                    hint="put text that starts with `*` in quotes",
                )
            )
        return replace(node, mark=mark, on_key_line=False)

    def start(self, event: yaml.CollectionStartEvent) -> None:
        if len(self.open) >= MAX_DEPTH:
            raise self.refuse(
                event,
                f"values are nested deeper than {MAX_DEPTH} levels",
                code="recipe-too-large",
            )
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
        # Aliases make a small file large, so the limits count what they stand for.
        num_values = node.size
        if self.open:
            parent = self.open[-1][0]
            parent.size += node.size
            num_values = parent.size
        if num_values > MAX_VALUES:
            message = f"more than {MAX_VALUES:,} values in one file"
            raise RecipeError(
                Problem(
                    message,
                    code="recipe-too-large",
                    mark=node.mark,
                    hint="an alias counts as all that it stands for",
                )
            )
        if len(self.open) + node.height > MAX_DEPTH + 1:
            raise RecipeError(
                Problem(
                    f"values are nested deeper than {MAX_DEPTH} levels",
                    code="recipe-too-large",
                    mark=node.mark,
                )
            )
        if anchor is not None:
            self.anchors[anchor] = node
        if self.open:
            self.open[-1][1].append(node)
        else:
            self.root = node


class _Layout:
    """Spread a tree of nodes into plain values and flat marks."""

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
            hint="write the keys out, or repeat a whole block with an anchor: `&name` there, `*name` here",
        )
    if isinstance(key.value, str) and key.entries is None and key.pairs is None:
        return _long_key_fault(key.value, key.mark)
    return Problem(
        "a key must be text",
        code="key-not-text",
        mark=key.mark,
        hint="put the key in quotes, or remove it",
    )


def _long_key_fault(key: str, mark: Mark) -> Problem | None:
    if len(key) <= MAX_KEY_CHARACTERS:
        return None
    return Problem(
        f"a key is longer than {MAX_KEY_CHARACTERS} characters",
        code="key-too-long",
        mark=mark,
        found=f"{len(key):,} characters: {key[:_SHOWN_CHARACTERS]}…",
        hint="is a `: ` in it that belongs to a text? put the text in quotes",
    )


def _duplicate(key: _Node, first: Mark, path: KeyPath) -> Problem:
    line = (first.text or "").strip()
    shown = line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…"
    return Problem(
        f"the key `{key.value}` stands here a second time",
        code="duplicate-key",
        path=(*path, str(key.value)),
        mark=key.mark,
        found=f"first on line {first.line}:  {shown}",
        hint="keep one of the two",
        on_key=True,
    )
