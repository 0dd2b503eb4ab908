"""Module globs: what they match, what trains by them, and what is wrong with one.

A glob names modules by dotted segments. `*` stays inside one segment, `**` spans any number of them,
`{30..39}` is a range of whole numbers, both ends included. A matched module brings everything under it,
and a glob may also name a single parameter.

Nothing is tried twice: a glob is matched with a name in time of the product of their lengths at most, and
with all names of a model at once, by the tree of its modules.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Literal, TypeAlias, get_args

from llava_recipes.errors import KeyPath, Problem
from llava_recipes.recipe.renames import OTHER_MODULES, nearest
from llava_recipes.recipe.scalars import spell_value

Root: TypeAlias = Literal["vision_tower", "projector", "language_model", "image_newline", "lm_head"]

ROOTS: tuple[Root, ...] = get_args(Root)
"""What a model consists of, in the order of plans; the names of its parameters begin with one of these."""

MODULES: tuple[Root, ...] = tuple(root for root in ROOTS if root != "image_newline")
"""Those of every model; `image_newline` is there with `mm_patch_merge_type: spatial_unpad`."""

GLOB_ROOTS = (*ROOTS, "image_tokens")
"""What a glob may begin with: also the embeddings of `<im_start>` and `<im_end>`."""

MAX_CHARACTERS = 500
"""Of one glob. Names of parameters have below 100."""

_RANGE = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
_STRANGE = re.compile(r"[^A-Za-z0-9_.*-]")
_SYNTAX = "globs hold names, dots, `*` inside a name, `**` across dots, and ranges such as `{30..39}`"
_NUM_SHOWN = 8
_PIECE = re.compile(r"\*+|\{(\d{1,9})\.\.(\d{1,9})\}|[^*{]+|\{")
# The dots inside a range do not part segments.
_SEGMENT = re.compile(r"(?:\{\d+\.\.\d+\}|[^.])*")
# A number in the middle of a name or at its end, the last one: that of a layer.
_LAYER = re.compile(r"(?P<owner>.*\.)(?P<number>0|[1-9][0-9]*)(?P<rest>(\.[^.0-9][^.]*)*)")

Freeze: TypeAlias = Literal["all", "none"] | tuple[str, ...]
"""What a stage freezes: everything, nothing, or what these globs match."""


@dataclass(frozen=True)
class Decision:
    """What trains and what does not: together the whole model, with no name in both."""

    trainable: tuple[str, ...]
    frozen: tuple[str, ...]
    unmatched: tuple[str, ...]
    """Globs that match no module."""


@dataclass(frozen=True)
class _Range:
    first: int
    last: int

    def ends(self, text: str, start: int) -> Iterator[int]:
        """Where a number of the range that begins at `start` may end; numbers have no leading zero."""
        most = 1 if text.startswith("0", start) else len(str(self.last))
        for end in range(start + 1, min(start + most, len(text)) + 1):
            if not "0" <= text[end - 1] <= "9":
                return
            if self.first <= int(text[start:end]) <= self.last:
                yield end


@dataclass(frozen=True)
class _Segment:
    """One segment of a glob: texts, ranges, and None where anything may stand."""

    pieces: tuple[str | _Range | None, ...]
    num_letters: int
    """What it takes at least."""

    def accepts(self, text: str) -> bool:
        if self.num_letters > len(text):
            return False
        places = {0}
        for piece in self.pieces:
            if piece is None:
                places = set(range(min(places), len(text) + 1))
            elif isinstance(piece, str):
                places = {place + len(piece) for place in places if text.startswith(piece, place)}
            else:
                places = {end for place in places for end in piece.ends(text, place)}
            if not places:
                return False
        return len(text) in places


@lru_cache(maxsize=16_384)
def _parse_segment(text: str) -> _Segment:
    pieces: list[str | _Range | None] = []
    for piece in _PIECE.finditer(text):
        if piece[0].startswith("*"):
            pieces.append(None)
        elif piece[1] is not None:
            pieces.append(_Range(int(piece[1]), int(piece[2])))
        elif pieces and isinstance(pieces[-1], str):
            pieces[-1] += piece[0]
        else:
            pieces.append(piece[0])
    letters = (len(piece) if isinstance(piece, str) else 1 for piece in pieces if piece is not None)
    return _Segment(tuple(pieces), sum(letters))


def split_glob(glob: str) -> tuple[str, ...]:
    """The dotted segments of a glob; a range such as `{30..39}` stays whole."""
    segments, start = [], 0
    while start <= len(glob):
        found = _SEGMENT.match(glob, start)
        assert found is not None, "the pattern also matches nothing at all"
        segments.append(found[0])
        start = found.end() + 1
    return tuple(segments)


class _Module:
    """A module or a parameter: its number, and the largest number under it."""

    __slots__ = ("children", "last", "number", "parameter")

    def __init__(self) -> None:
        self.number = self.last = 0
        self.children: dict[str, _Module] = {}
        self.parameter: int | None = None
        """The place of its name among those given, where it is a parameter."""


class ModuleTree:
    """The modules that the names of parameters imply, to match a glob with all of them at once."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._root = _Module()
        self._depth = 0
        for place, name in enumerate(self._names):
            module, segments = self._root, name.split(".")
            self._depth = max(self._depth, len(segments))
            for segment in segments:
                module = module.children.setdefault(segment, _Module())
            module.parameter = place
        self._modules, self._called = _numbered(self._root)
        self._accepted: dict[str, tuple[str, ...]] = {}

    def matched(self, glob: str) -> tuple[str, ...]:
        """The names of parameters that a glob matches, or a module that holds them, in the order given."""
        places: list[int] = []
        for first, last in _outermost(self._reached(split_glob(glob))):
            inside = (module.parameter for module in self._modules[first : last + 1])
            places += (place for place in inside if place is not None)
        return tuple(self._names[place] for place in sorted(places))

    def depth_of(self, segments: Sequence[str]) -> int:
        """How many of the first segments, none of them `**`, name modules that have others under them."""
        modules = [self._root]
        for depth, segment in enumerate(segments):
            modules = self._step(modules, segment)
            if not any(module.children for module in modules):
                return depth
        return len(segments)

    def below(self, segments: Sequence[str]) -> list[str]:
        """What stands directly under the modules that these segments name, none of which is `**`."""
        modules = [self._root]
        for segment in segments:
            modules = self._step(modules, segment)
        return list(dict.fromkeys(child for module in modules for child in module.children))

    def _reached(self, segments: Sequence[str]) -> list[_Module]:
        """What the last segment of a glob matches, after all those before it."""
        plain = [segment for segment in segments if segment != "**"]
        if not plain:
            return list(self._root.children.values())
        if len(plain) > self._depth:
            return []
        modules, spans = [self._root], False
        for segment in segments:
            if segment != "**":
                modules = self._under(modules, segment) if spans else self._step(modules, segment)
            spans = segment == "**"
        return modules

    def _step(self, modules: list[_Module], segment: str) -> list[_Module]:
        texts = self._texts(segment)
        return [module.children[text] for module in modules for text in texts if text in module.children]

    def _under(self, modules: list[_Module], segment: str) -> list[_Module]:
        """What a segment names anywhere under some modules."""
        named = [module for text in self._texts(segment) for module in self._called[text]]
        if modules == [self._root]:
            return named
        outermost = _outermost(modules)
        firsts = [first for first, _ in outermost]
        return [
            module
            for module in named
            for above in [bisect_left(firsts, module.number) - 1]
            if above >= 0 and module.number <= outermost[above][1]
        ]

    def _texts(self, segment: str) -> tuple[str, ...]:
        """The names of modules that a segment accepts."""
        known = self._accepted.get(segment)
        if known is None:
            accepts = _parse_segment(segment).accepts
            known = self._accepted[segment] = tuple(filter(accepts, self._called))
        return known


def _numbered(root: _Module) -> tuple[list[_Module], dict[str, list[_Module]]]:
    """All modules in the order of their numbers, each before what it holds; and those of each last name."""
    ordered: list[_Module] = []
    called: dict[str, list[_Module]] = {}
    waiting = [("", root)]
    while waiting:
        name, module = waiting.pop()
        module.number = len(ordered)
        ordered.append(module)
        if module is not root:
            called.setdefault(name, []).append(module)
        waiting += reversed(module.children.items())
    for module in reversed(ordered):
        module.last = max((child.last for child in module.children.values()), default=module.number)
    return ordered, called


def _outermost(modules: Iterable[_Module]) -> list[tuple[int, int]]:
    """The first and the last number under those modules that lie in no other of them, in order."""
    spans: list[tuple[int, int]] = []
    for first, last in sorted((module.number, module.last) for module in modules):
        if not spans or first > spans[-1][1]:
            spans.append((first, last))
    return spans


@lru_cache(maxsize=16)
def _tree_of(names: tuple[str, ...]) -> ModuleTree:
    return ModuleTree(names)


def tree_of(names: Iterable[str]) -> ModuleTree:
    """The tree of these names; that of a model is built once."""
    return _tree_of(tuple(names))


@lru_cache(maxsize=16_384)
def match_glob(glob: str, name: str) -> bool:
    """Whether the glob matches this parameter or a module that holds it."""
    return bool(ModuleTree([name]).matched(glob))


def decide(names: Iterable[str], *, freeze: Freeze, trainable: tuple[str, ...]) -> Decision:
    """Which of these parameters train, in the order given.

    `freeze` freezes everything, nothing, or what its globs match; what `trainable` matches trains anyway.
    """
    names = tuple(names)
    tree, unmatched = tree_of(names), dict[str, None]()
    held = set(names if freeze == "all" else ())
    for globs, is_frozen in ((freeze if isinstance(freeze, tuple) else (), True), (trainable, False)):
        for glob in dict.fromkeys(globs):
            matched = tree.matched(glob)
            if not matched:
                unmatched[glob] = None
            (held.update if is_frozen else held.difference_update)(matched)
    return Decision(
        tuple(name for name in names if name not in held),
        tuple(name for name in names if name in held),
        tuple(unmatched),
    )


def summarize_modules(names_trainable: Collection[str], names_all: Collection[str]) -> tuple[str, ...]:
    """The shortest list of modules that hold exactly the trainable names, in the order of `names_all`."""
    trains = set(names_trainable)
    mixed: set[str] = set()
    for name in names_all:
        if name not in trains:
            mixed.update(_prefixes(name))
    modules: dict[str, None] = {}
    for name in names_all:
        if name in trains:
            modules[next((prefix for prefix in _prefixes(name) if prefix not in mixed), name)] = None
    return tuple(modules)


@lru_cache(maxsize=16_384)
def _prefixes(name: str) -> tuple[str, ...]:
    """The modules that hold a parameter, from its root on, and the parameter itself."""
    segments = name.split(".")
    return tuple(".".join(segments[:end]) for end in range(1, len(segments) + 1))


def fold_layers(modules: Iterable[str]) -> tuple[str, ...]:
    """The same modules with runs of layers written as one glob, `layers.{30..39}`, where the first stands."""
    layers: dict[tuple[str, str], list[int]] = {}
    for name in modules:
        found = _LAYER.fullmatch(name)
        around = (found["owner"], found["rest"]) if found else (name, "")
        layers.setdefault(around, []).extend([int(found["number"])] if found else [])
    return tuple(
        f"{owner}{run}{rest}" for (owner, rest), numbers in layers.items() for run in _runs(numbers) or [""]
    )


def _runs(numbers: Collection[int]) -> list[str]:
    """Stretches of successive numbers, as a glob writes them."""
    runs = []
    for _, members in groupby(enumerate(sorted(numbers)), key=lambda each: each[1] - each[0]):
        run = [number for _, number in members]
        runs.append(f"{{{run[0]}..{run[-1]}}}" if len(run) > 1 else str(run[0]))
    return runs


def check_glob(glob: str, path: KeyPath) -> Iterator[Problem]:
    """What is wrong with a glob that can be told from its text."""
    spelled, key = spell_value(glob), next(segment for segment in reversed(path) if isinstance(segment, str))
    if len(glob) > MAX_CHARACTERS:
        yield Problem(
            f"a glob in `{key}` is longer than {MAX_CHARACTERS} characters",
            code="glob-too-long",
            path=path,
            found=f"{len(glob):,} characters: {spelled}",
            hint="name a module, which brings all that is in it",
        )
        return
    for first, last in _RANGE.findall(glob):
        if len(first) > 9 or len(last) > 9 or int(first) > int(last):
            hint = "write the smaller number first; numbers have at most 9 digits"
            yield Problem(
                f"the range in the glob {spelled} in `{key}` is empty",
                code="invalid-glob",
                path=path,
                hint=hint,
            )
            return
    plain = _RANGE.sub("0", glob)
    strange = _STRANGE.search(plain)
    if strange:
        message = f"the glob {spelled} in `{key}` holds `{strange.group()}`"
        yield Problem(message, code="invalid-glob", path=path, hint=_SYNTAX)
        return
    if "" in plain.split("."):
        message = f"the glob {spelled} in `{key}` has an empty name between dots"
        yield Problem(message, code="invalid-glob", path=path, hint=_SYNTAX)
        return
    if not any(match_glob(plain.split(".")[0], root) for root in GLOB_ROOTS):
        yield Problem(
            f"glob {spelled} in `{key}` matches no module",
            code="glob-matches-no-module",
            path=path,
            found=f"the model has {', '.join(sorted(MODULES))}",
            hint=_root_hint(glob),
        )


def _root_hint(glob: str) -> str:
    first, dot, rest = glob.partition(".")
    if first == "model" and rest.partition(".")[0] in (*GLOB_ROOTS, *OTHER_MODULES):
        first, dot, rest = rest.partition(".")
    if first in GLOB_ROOTS:
        return f'did you mean "{first}{dot}{rest}"?'
    if first in ("layers", "embed_tokens"):
        return f'did you mean "language_model.{first}{dot}{rest}"?'
    root = OTHER_MODULES.get(first) or nearest(first, GLOB_ROOTS)
    return f'did you mean "{root}{dot}{rest}"?' if root else "start with one of these names, or with `**.`"


def explain_glob(glob: str, names: Collection[str], *, key: str, path: KeyPath) -> Problem:
    """What is wrong with a glob that matches none of these names, and what is there instead."""
    segments = split_glob(glob)
    tree = tree_of(names)
    depth = 0 if "**" in segments else tree.depth_of(segments[:-1])
    known = ".".join(segments[:depth])
    children = tree.below(segments[:depth]) if known else _roots(names)
    hint = _suggest(segments, depth, children)
    if segments[0] == "image_newline" and "image_newline" not in children:
        hint = "a model has an image_newline where a stage says `mm_patch_merge_type: spatial_unpad`"
    if segments[0] == "lm_head" and "lm_head" not in children:
        hint = "this model has no lm_head of its own: it shares the weights of language_model.embed_tokens"
    return Problem(
        f'glob "{glob}" in `{key}` matches no module',
        code="glob-matches-no-module",
        path=path,
        found=f"{known or 'the model'} has {_listed(children)}",
        hint=hint,
    )


def check_ranges(glob: str, names: Collection[str], *, key: str, path: KeyPath) -> Iterator[Problem]:
    """A range that begins inside the model and ends beyond it, as one copied from a larger model does.

    The glob matches something.
    """
    segments = split_glob(glob)
    for depth, segment in enumerate(segments):
        found = _RANGE.fullmatch(segment)
        if "**" in segments[:depth]:
            return
        if found is None:
            continue
        owner = ".".join(segments[:depth])
        numbers = [int(child) for child in tree_of(names).below(segments[:depth]) if child.isdigit()]
        if numbers and int(found[2]) > max(numbers):
            yield Problem(
                f'the range in the glob "{glob}" of `{key}` goes beyond what there is',
                code="glob-range-too-large",
                path=path,
                found=f"{owner} has {min(numbers)} to {max(numbers)}",
                hint=f"write `{{{found[1]}..{max(numbers)}}}`",
            )


def _roots(names: Collection[str]) -> list[str]:
    return sorted({name.split(".", 1)[0] for name in names} - {"image_tokens"})


def _suggest(segments: tuple[str, ...], depth: int, children: list[str]) -> str | None:
    word = segments[depth]
    # Another layer's number is no misspelling.
    near = None if word.isdigit() else nearest(word, children)
    near = near or (OTHER_MODULES.get(word) if depth == 0 else None)
    if near is None or near not in children:
        return None
    return f'did you mean "{".".join((*segments[:depth], near, *segments[depth + 1 :]))}"?'


def _listed(words: list[str]) -> str:
    if len(words) > 2 and words == [str(number) for number in range(len(words))]:
        return f"0 to {len(words) - 1}"
    shown = ", ".join(words[:_NUM_SHOWN])
    return shown if len(words) <= _NUM_SHOWN else f"{shown}, … ({len(words)} in all)"
