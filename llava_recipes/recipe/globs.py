"""Module globs: what they match, which parameters train, and what is wrong with a glob.

A glob names modules by dotted segments. `*` stays inside one segment, `**` spans any number of them, and
`{30..39}` is a range of whole numbers, both ends included. A matched module includes everything under it;
a glob may also name a single parameter.

Nothing is tried twice: matching a glob with a name takes at most the product of their lengths, and the tree
of a model's modules matches it with all names at once.
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
"""The parts of a model in the order of plans; every parameter's name starts with one of these."""

MODULES: tuple[Root, ...] = tuple(root for root in ROOTS if root != "image_newline")
"""The parts of every model; `mm_patch_merge_type: spatial_unpad` adds `image_newline`."""

GLOB_ROOTS = (*ROOTS, "image_tokens")
"""What a glob may start with; `image_tokens` are the embeddings of `<im_start>` and `<im_end>`."""

MAX_CHARACTERS = 500
"""Of one glob. Names of parameters have fewer than 100."""

_RANGE = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
_STRANGE = re.compile(r"[^A-Za-z0-9_.*-]")
_SYNTAX = "a glob has names, dots, `*` within a name, `**` across dots, and ranges such as `{30..39}`"
_NUM_SHOWN = 8
_PIECE = re.compile(r"\*+|\{(\d{1,9})\.\.(\d{1,9})\}|[^*{]+|\{")
# The last number in a name: that of a layer.
_LAYER = re.compile(r"(?P<owner>.*\.)(?P<number>0|[1-9][0-9]*)(?P<rest>(\.[^.0-9][^.]*)*)")

Freeze: TypeAlias = Literal["all", "none"] | tuple[str, ...]
"""What a stage freezes: everything, nothing, or what these globs match."""


@dataclass(frozen=True)
class Decision:
    """What trains and what does not: each parameter of the model is in exactly one of the two."""

    trainable: tuple[str, ...]
    frozen: tuple[str, ...]
    unmatched: tuple[str, ...]
    """Globs that match no module."""


def decide(names: Iterable[str], *, freeze: Freeze, trainable: tuple[str, ...]) -> Decision:
    """Which of these parameters train, in the order given.

    `freeze` freezes everything, nothing, or what its globs match; `trainable` overrides it.
    """
    names = tuple(names)
    tree, unmatched = tree_of(names), dict[str, None]()
    frozen = set(names if freeze == "all" else ())
    for globs, is_frozen in ((freeze if isinstance(freeze, tuple) else (), True), (trainable, False)):
        for glob in dict.fromkeys(globs):
            matched = tree.matched(glob)
            if not matched:
                unmatched[glob] = None
            (frozen.update if is_frozen else frozen.difference_update)(matched)
    return Decision(
        tuple(name for name in names if name not in frozen),
        tuple(name for name in names if name in frozen),
        tuple(unmatched),
    )


@lru_cache(maxsize=16_384)
def match_glob(glob: str, name: str) -> bool:
    """Whether the glob matches this parameter or a module that contains it."""
    return bool(ModuleTree([name]).matched(glob))


def summarize_modules(names_trainable: Collection[str], names_all: Collection[str]) -> tuple[str, ...]:
    """The shortest list of modules that contain exactly the trainable names, in the order of `names_all`."""
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
    """The modules that contain a parameter, from its root on, and the parameter itself."""
    segments = name.split(".")
    return tuple(".".join(segments[:end]) for end in range(1, len(segments) + 1))


def fold_layers(modules: Iterable[str]) -> tuple[str, ...]:
    """The same modules with each run of layers as one glob, `layers.{30..39}`, in place of its first."""
    layers: dict[tuple[str, str], list[int]] = {}
    for name in modules:
        found = _LAYER.fullmatch(name)
        around = (found["owner"], found["rest"]) if found else (name, "")
        layers.setdefault(around, []).extend([int(found["number"])] if found else [])
    return tuple(
        f"{owner}{run}{rest}" for (owner, rest), numbers in layers.items() for run in _runs(numbers) or [""]
    )


def _runs(numbers: Collection[int]) -> list[str]:
    """Runs of consecutive numbers, as a glob writes them."""
    runs = []
    for _, members in groupby(enumerate(sorted(numbers)), key=lambda each: each[1] - each[0]):
        run = [number for _, number in members]
        runs.append(f"{{{run[0]}..{run[-1]}}}" if len(run) > 1 else str(run[0]))
    return runs


def check_glob(glob: str, path: KeyPath) -> Problem | None:
    """What is wrong with a glob on its own, without the names of a model."""
    spelled, key = spell_value(glob), next(segment for segment in reversed(path) if isinstance(segment, str))
    if len(glob) > MAX_CHARACTERS:
        message = f"a glob in `{key}` is longer than {MAX_CHARACTERS} characters"
        found, hint = f"{len(glob):,} characters: {spelled}", "name a module: it includes everything under it"
        return Problem(message, code="glob-too-long", path=path, found=found, hint=hint)
    plain = _RANGE.sub("0", glob)
    problem = None
    if any(max(map(len, ends)) > 9 or int(ends[0]) > int(ends[1]) for ends in _RANGE.findall(glob)):
        problem, hint = "an invalid range", "write the smaller number first, and at most 9 digits"
    elif strange := _STRANGE.search(plain):
        problem, hint = f"the invalid character `{strange.group()}`", _SYNTAX
    elif "" in plain.split("."):
        problem, hint = "an empty name between dots", _SYNTAX
    if problem is not None:
        message = f"the glob {spelled} in `{key}` has {problem}"
        return Problem(message, code="invalid-glob", path=path, hint=hint)
    if any(match_glob(plain.split(".")[0], root) for root in GLOB_ROOTS):
        return None
    return _no_match(
        spelled, key, path, found=f"the model has {', '.join(sorted(MODULES))}", hint=_root_hint(glob)
    )


def _no_match(spelled: str, key: str, path: KeyPath, *, found: str, hint: str | None) -> Problem:
    message = f"glob {spelled} in `{key}` matches no module"
    return Problem(message, code="glob-matches-no-module", path=path, found=found, hint=hint)


def _root_hint(glob: str) -> str:
    first, dot, rest = glob.partition(".")
    if first == "model" and rest.partition(".")[0] in (*GLOB_ROOTS, *OTHER_MODULES):
        first, dot, rest = rest.partition(".")
    root = first if first in GLOB_ROOTS else OTHER_MODULES.get(first) or nearest(first, GLOB_ROOTS)
    if first in ("layers", "embed_tokens"):
        root = f"language_model.{first}"
    return f'did you mean "{root}{dot}{rest}"?' if root else "start with one of these names, or with `**.`"


def explain_glob(glob: str, names: Collection[str], *, key: str, path: KeyPath) -> Problem:
    """The problem of a glob that matches none of these names, with the names that it could match."""
    segments = split_glob(glob)
    tree = tree_of(names)
    depth = 0 if "**" in segments else tree.depth_of(segments[:-1])
    known = ".".join(segments[:depth])
    children = tree.below(segments[:depth]) if known else sorted({*tree.below(())} - {"image_tokens"})
    hint = _suggest(segments, depth, children)
    if segments[0] == "image_newline" and "image_newline" not in children:
        hint = "only a stage with `mm_patch_merge_type: spatial_unpad` gives a model an image_newline"
    if segments[0] == "lm_head" and "lm_head" not in children:
        hint = "this model has no lm_head of its own: it shares the weights of language_model.embed_tokens"
    return _no_match(
        f'"{glob}"', key, path, found=f"{known or 'the model'} has {_listed(children)}", hint=hint
    )


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


def check_ranges(glob: str, names: Collection[str], *, key: str, path: KeyPath) -> Iterator[Problem]:
    """Ranges of a matching glob that end beyond the model, as those copied from a larger model do."""
    segments = split_glob(glob)
    for depth, segment in enumerate(segments):
        found = _RANGE.fullmatch(segment)
        if "**" in segments[:depth]:
            return
        if found is None:
            continue
        numbers = [int(child) for child in tree_of(names).below(segments[:depth]) if child.isdigit()]
        if numbers and int(found[2]) > max(numbers):
            yield Problem(
                f'the range in the glob "{glob}" in `{key}` goes beyond the model',
                code="glob-range-too-large",
                path=path,
                found=f"{'.'.join(segments[:depth])} has {min(numbers)} to {max(numbers)}",
                hint=f"write `{{{found[1]}..{max(numbers)}}}`",
            )


def split_glob(glob: str) -> tuple[str, ...]:
    """The dotted segments of a glob; a range such as `{30..39}` stays whole."""
    segments = _RANGE.sub("{\\1\0\\2}", glob).split(".")
    return tuple(segment.replace("\0", "..") for segment in segments)


def tree_of(names: Iterable[str]) -> ModuleTree:
    """The tree of these names, built once per model."""
    return _built_once(tuple(names))


class ModuleTree:
    """The modules implied by the names of parameters, to match a glob with all of them at once."""

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
        """The parameters that a glob matches, by their own name or a module's, in the order given."""
        places: list[int] = []
        for first, last in _outermost(self._reached(split_glob(glob))):
            inside = (module.parameter for module in self._modules[first : last + 1])
            places += (place for place in inside if place is not None)
        return tuple(self._names[place] for place in sorted(places))

    def depth_of(self, segments: Sequence[str]) -> int:
        """How many of the first segments, none of them `**`, name modules that contain others."""
        depths = (depth for depth in range(len(segments)) if not self.below(segments[: depth + 1]))
        return next(depths, len(segments))

    def below(self, segments: Sequence[str]) -> list[str]:
        """The names directly under the modules that these segments, none of them `**`, match."""
        modules = [self._root]
        for segment in segments:
            modules = self._step(modules, segment)
        return list(dict.fromkeys(child for module in modules for child in module.children))

    def _reached(self, segments: Sequence[str]) -> list[_Module]:
        """The modules that a whole glob matches."""
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
        """The modules that a segment matches anywhere under some modules."""
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
        if segment not in self._accepted:
            self._accepted[segment] = tuple(filter(_parse_segment(segment).accepts, self._called))
        return self._accepted[segment]


class _Module:
    """A module or a parameter: its number, and the largest number under it."""

    __slots__ = ("children", "last", "number", "parameter")

    def __init__(self) -> None:
        self.number = self.last = 0
        self.children: dict[str, _Module] = {}
        self.parameter: int | None = None
        """The index of its name among those given, if it is a parameter."""


_built_once = lru_cache(maxsize=16)(ModuleTree)


def _numbered(root: _Module) -> tuple[list[_Module], dict[str, list[_Module]]]:
    """All modules in the order of their numbers, each before its children; and those of each last name."""
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
    """The first and last number under each of the modules that is in no other of them, in order."""
    spans: list[tuple[int, int]] = []
    for first, last in sorted((module.number, module.last) for module in modules):
        if not spans or first > spans[-1][1]:
            spans.append((first, last))
    return spans


@dataclass(frozen=True)
class _Range:
    first: int
    last: int

    def ends(self, text: str, start: int) -> Iterator[int]:
        """Every place where a number of the range that starts at `start` ends; no leading zeros."""
        most = 1 if text.startswith("0", start) else len(str(self.last))
        for end in range(start + 1, min(start + most, len(text)) + 1):
            if not "0" <= text[end - 1] <= "9":
                return
            if self.first <= int(text[start:end]) <= self.last:
                yield end


@dataclass(frozen=True)
class _Segment:
    """One segment of a glob: strings, ranges, and None for any characters."""

    pieces: tuple[str | _Range | None, ...]
    min_characters: int

    def accepts(self, text: str) -> bool:
        if self.min_characters > len(text):
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
    lengths = (len(piece) if isinstance(piece, str) else 1 for piece in pieces if piece is not None)
    return _Segment(tuple(pieces), sum(lengths))
