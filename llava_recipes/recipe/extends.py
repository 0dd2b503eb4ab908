"""Put a recipe together from its own file and from those that it extends; values and marks together."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.files import odd_kind
from llava_recipes.recipe.exclusions import displaced
from llava_recipes.recipe.locations import foreign_reference, is_web_address
from llava_recipes.recipe.renames import OTHER_NAMES, nearest
from llava_recipes.recipe.scalars import Value, kind_of, spell_value
from llava_recipes.recipe.schema import Recipe, Stage
from llava_recipes.recipe.source import (
    ENDINGS,
    MAX_BYTES,
    MAX_VALUES,
    Document,
    nearest_file,
    parse_source,
    read_file,
)

_TOP_KEY = re.compile(r"""^["']?([A-Za-z_][A-Za-z0-9_.-]{0,199})["']?[ ]*:(?=\s|$)""", re.MULTILINE)
_OWN_KEY = re.compile(
    r"""(?:^|[\s{,"'-])(language_model|vision_tower|projector|per_device_train_batch_size|output_dir)["']?\s*:"""
)
_MOST_KEYS = 100


def looks_like_recipe(data: bytes) -> bool:
    """Whether text has keys that only recipes have, or at its top only keys of recipes and near misses."""
    text = data.decode("utf-8", "replace")
    if _OWN_KEY.search(text):
        return True
    keys = set(_TOP_KEY.findall(text))
    known = keys.intersection(Recipe.model_fields)
    return bool(known) and len(keys) <= _MOST_KEYS and all(map(_may_be_meant, keys - known))


def is_named_as_recipe(file: str) -> bool:
    """Whether a file that a person names has a recipe's name itself, and not through a link."""
    return file.lower().endswith(ENDINGS) and not os.path.islink(file)


def _may_be_meant(key: str) -> bool:
    return key in OTHER_NAMES or nearest(key, Recipe.model_fields) is not None


MAX_SEARCHED = 20
"""With more stages than this, none is suggested in the place of another."""

Kept = TypeVar("Kept")

MAX_LEVELS = 8
MAX_FILES = 16


def lay_over(below: Document, above: Document) -> Document:
    """One document of two: where both say something, `above` is right.

    Mappings merge key by key, `stages` by their names, `env` is joined; any other value is replaced.
    """
    shared = [key for key in ("stages", "env") if all(map(partial(_holds_list, key), (below, above)))]
    under, over = _by_name(below, shared), _by_name(above, shared)
    merging = _Merging()
    root = merging.merge(under.root, over.root, ())
    lost = list(_lost_stages(under.root, over.root))
    merged = replace(
        above,
        root=root,
        value_marks={**merging.kept(under.value_marks), **over.value_marks},
        key_marks={**merging.kept(under.key_marks), **over.key_marks},
        problems=(*under.problems, *over.problems, *lost),
        spoiled=frozenset(
            (
                *merging.kept(dict.fromkeys(under.spoiled)),
                *over.spoiled,
                *(problem.path[:2] for problem in lost if problem.path is not None),
            )
        ),
        parents=(*below.parents, *above.parents),
    )
    return _by_number(merged)


class _Named(dict[str, Value]):
    """A list whose entries are known by name while two files are merged."""


class _Merging:
    """Merge values, and remember which of the lower ones are gone."""

    def __init__(self) -> None:
        self.gone: set[KeyPath] = set()

    def merge(self, under: Value, over: Value, path: KeyPath) -> Value:
        if not isinstance(under, dict) or not isinstance(over, dict) or type(under) is not type(over):
            self.gone.add(path)
            return over
        merged = type(under)(under)
        for key, value in over.items():
            for other in displaced((*path, key), value, given=over, below=under):
                if merged.pop(str(other[-1]), None) is not None:
                    self.gone.add(other)
            merged[key] = self.merge(under[key], value, (*path, key)) if key in under else value
        return merged

    def kept(self, marks: dict[KeyPath, Kept]) -> dict[KeyPath, Kept]:
        """The lower marks whose values are still there."""
        if () in self.gone:
            return {}
        heads = {path[0] for path in self.gone}
        return {
            path: mark
            for path, mark in marks.items()
            if not path
            or path[0] not in heads
            or not any(path[:end] in self.gone for end in range(1, len(path) + 1))
        }


def _lost_stages(under: Value, over: Value) -> Iterator[Problem]:
    """Stages that were meant for one below and do not find it."""
    below = under.get("stages") if isinstance(under, dict) else None
    above = over.get("stages") if isinstance(over, dict) else None
    if not isinstance(below, _Named) or not isinstance(above, _Named):
        return
    needed = [name for name, field in Stage.model_fields.items() if field.is_required()]
    if len(below) > MAX_SEARCHED:
        return
    names = ", ".join(f"`{name}`" for name in below)
    for name, stage in above.items():
        if name in below or not isinstance(stage, dict) or all(key in stage for key in needed):
            continue
        path: KeyPath = ("stages", name)
        if "name" not in stage:
            hint = f"write its `name:` first; what is extended has {names}"
            yield Problem(
                "`stages` merge by name, and this one has none",
                code="stage-without-name",
                path=path,
                hint=hint,
            )
        elif (near := nearest(name, below)) is not None:
            message = f"what is extended has no stage `{name}`, and this is not a whole one"
            yield Problem(
                message, code="stage-is-incomplete", path=(*path, "name"), hint=f"did you mean `{near}`?"
            )


def _holds_list(key: str, document: Document) -> bool:
    return isinstance(document.root, dict) and isinstance(document.root.get(key), list)


def _by_name(document: Document, keys: Sequence[str]) -> Document:
    """The document with the entries of some lists, stages or environment variables, under their names."""
    if not keys or not isinstance(document.root, dict):
        return document
    root, names = dict(document.root), dict[str, list[str]]()
    for key in keys:
        entries = root[key]
        assert isinstance(entries, list)
        names[key] = _names(entries, document.file)
        root[key] = _Named(zip(names[key], entries, strict=True))

    def move(path: KeyPath) -> KeyPath:
        if len(path) < 2 or path[0] not in names:
            return path
        number = path[1]
        assert isinstance(number, int)
        return (path[0], names[str(path[0])][number], *path[2:])

    return _moved(document, root, move)


def _by_number(document: Document) -> Document:
    """The same undone: lists again, in the order in which their names came up."""
    if not isinstance(document.root, dict):
        return document
    root, numbers = dict(document.root), dict[str, dict[str, int]]()
    for key, entries in document.root.items():
        if isinstance(entries, _Named):
            numbers[key] = {name: index for index, name in enumerate(entries)}
            root[key] = list(entries.values())
    if not numbers:
        return document

    def move(path: KeyPath) -> KeyPath:
        if len(path) < 2 or path[0] not in numbers:
            return path
        return (path[0], numbers[str(path[0])][str(path[1])], *path[2:])

    return _moved(document, root, move)


def _names(entries: list[Value], file: str) -> list[str]:
    """A name for each entry; one that has none of its own, or another's, gets one that nobody writes."""
    names: list[str] = []
    for index, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else entry
        names.append(name if isinstance(name, str) and name not in names else f"\0{file}\0{index}")
    return names


def _moved(document: Document, root: Value, move: Callable[[KeyPath], KeyPath]) -> Document:
    """The document with another root, and every path where it belongs in it."""
    return replace(
        document,
        root=root,
        value_marks={move(path): mark for path, mark in document.value_marks.items()},
        key_marks={move(path): mark for path, mark in document.key_marks.items()},
        problems=tuple(
            problem if problem.path is None else replace(problem, path=move(problem.path))
            for problem in document.problems
        ),
        spoiled=frozenset(map(move, document.spoiled)),
    )


def extend(document: Document) -> Document:
    """The document laid over the files that it extends, without the key `extends`.

    Later parents are laid over earlier ones, the document over all of them. Raises RecipeError when a parent
    cannot be read: without it nothing more can be said about the recipe.
    """
    if not isinstance(document.root, dict) or "extends" not in document.root:
        return document
    family = _Family()
    whole = family.put_together(document, (_real(document.file),), (document.file,))
    if family.problems:
        raise RecipeError(*document.problems, *family.problems)
    return whole


class _Family:
    """Read the parents of one recipe, and theirs, within the limits."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.num_files = 0
        self.num_bytes = 0
        self.num_values = 0

    def put_together(self, document: Document, real: tuple[str, ...], shown: tuple[str, ...]) -> Document:
        """A document over its parents. `real` and `shown` are the files on the way here, itself included."""
        whole: Document | None = None
        for path, name in self.names(document):
            mark = document.locate(path)
            try:
                parent = self.read(name, real, shown)
            except RecipeError as error:
                self.problems += (replace(problem, mark=problem.mark or mark) for problem in error.problems)
                continue
            whole = parent if whole is None else lay_over(whole, parent)
        own = _without_extends(document)
        return own if whole is None else lay_over(whole, own)

    def names(self, document: Document) -> Iterator[tuple[KeyPath, str]]:
        """Where the parents of a document are named, and how."""
        assert isinstance(document.root, dict)
        extends = document.root.get("extends")
        entries: list[tuple[KeyPath, Value]] = [(("extends",), extends)] if "extends" in document.root else []
        if isinstance(extends, list):
            entries = [(("extends", index), entry) for index, entry in enumerate(extends[: MAX_FILES + 1])]
        for path, name in entries:
            if path in document.spoiled:
                continue
            if isinstance(name, str) and name:
                yield path, name
            else:
                given = "empty text" if name == "" else kind_of(name)
                problem = Problem(
                    f"`extends` needs the path of a recipe file, or a list of paths; {given} is given",
                    code="extends-not-a-path",
                    mark=document.locate(path, on_key=name is None),
                    hint="write `extends: base/common.yaml`, from the folder of this file",
                )
                self.problems.append(problem)

    def read(self, name: str, real: tuple[str, ...], shown: tuple[str, ...]) -> Document:
        """A parent with its own parents under it; raises RecipeError."""
        _check_name(name)
        file = _beside(shown[-1], name)
        if _real(file) in real:
            chain = (*shown[real.index(_real(file)) :], file)
            message = "a file that extends itself" if len(chain) == 2 else "files that extend each other"
            hint = "remove one of these `extends`"
            raise _refusal(message, code="extends-circular", found=" → ".join(chain), hint=hint)
        if len(shown) > MAX_LEVELS:
            message = f"files that extend files, more than {MAX_LEVELS} levels deep"
            raise _refusal(message, code="extends-too-much", found=" → ".join((*shown, file)))
        content = self.content(file, name)
        if not looks_like_recipe(content):
            message = "`extends` names a file that is no recipe"
            hint = "a recipe has keys such as `model:` and `stages:` at the beginning of a line"
            raise _refusal(message, code="extends-names-no-recipe", found=file, hint=hint)
        document = parse_source(content, file)
        self.num_values += len(document.value_marks)
        if self.num_values > MAX_VALUES:
            message = f"the files that the recipe extends hold more than {MAX_VALUES:,} values together"
            raise _refusal(message, code="extends-too-much")
        whole = self.put_together(document, (*real, _real(file)), (*shown, file))
        return replace(whole, parents=(*whole.parents, file))

    def content(self, file: str, name: str) -> bytes:
        """The bytes of a parent; raises RecipeError."""
        _check_file(file, name)
        data = read_file(file)
        self.num_files += 1
        self.num_bytes += len(data)
        if self.num_files > MAX_FILES:
            message = f"the recipe extends more than {MAX_FILES} files"
            hint = "a file counts each time it is extended"
            raise _refusal(message, code="extends-too-much", hint=hint)
        if self.num_bytes > MAX_BYTES:
            message = f"the files that the recipe extends are larger than {MAX_BYTES:,} bytes together"
            raise _refusal(message, code="extends-too-much")
        return data


def _beside(file: str, name: str) -> str:
    """The path that a name in a file stands for, as short as it can be written."""
    joined = os.path.join(os.path.dirname(file), name)
    short = os.path.normpath(joined)
    # `..` behind a link leads elsewhere than it seems to.
    return short if _real(short) == _real(joined) else joined


def _real(file: str) -> str:
    # A file name may hold what the system cannot look up; reading it then tells.
    try:
        return os.path.realpath(file)
    except (OSError, ValueError):
        return file


def _refusal(message: str, *, code: str, found: str | None = None, hint: str | None = None) -> RecipeError:
    return RecipeError.of(message, code=code, found=found, hint=hint)


def _check_name(name: str) -> None:
    """Refuse what is no path of a file on this machine."""
    code = "extends-not-a-path"
    hint = "write the path itself: variables are known only when all files are read"
    reference = foreign_reference(name)
    if is_web_address(name):
        message = "`extends` names a file on this machine, not a web address"
        hint = "download it beside the recipe: what a recipe says must not depend on a server"
    elif name.startswith("~"):
        message = "`~` is not expanded in `extends`"
        hint = "write the path from the folder of this file, or the whole path"
    elif reference is not None:
        message, code = f"`{reference.group()}` is not filled in by `extends`", "reference-of-another-program"
    elif "${" in name:
        message = "`extends` cannot hold variables"
    else:
        return
    raise _refusal(message, code=code, found=spell_value(name), hint=hint)


def _check_file(file: str, name: str) -> None:
    """Refuse a path where no ordinary file lies."""
    try:
        is_file, is_folder, kind = os.path.isfile(file), os.path.isdir(file), odd_kind(file)
    except ValueError:
        is_file, is_folder, kind = False, False, None
    if is_file and kind is None:
        return
    if is_folder:
        hint = "name the files in it that are meant, in a list"
        raise _refusal("`extends` names a folder", code="extends-not-a-file", found=file, hint=hint)
    if kind is not None:
        message = "`extends` names something that is no ordinary file"
        raise _refusal(message, code="not-an-ordinary-file", found=f"{file}: it is {kind}")
    message, hint = "`extends` names a file that is not there", _nearby(file, name)
    raise _refusal(message, code="extends-file-missing", found=file, hint=hint)


def _nearby(file: str, name: str) -> str:
    """What may have been meant, spelled as it would be written."""
    near = nearest_file(file)
    if near is not None:
        return f"did you mean `{os.path.join(os.path.dirname(name), near)}`?"
    return "paths in `extends` start from the folder of the file that holds them"


def _without_extends(document: Document) -> Document:
    assert isinstance(document.root, dict)
    return replace(
        document,
        root={key: value for key, value in document.root.items() if key != "extends"},
        value_marks={path: mark for path, mark in document.value_marks.items() if path[:1] != ("extends",)},
        key_marks={path: mark for path, mark in document.key_marks.items() if path[:1] != ("extends",)},
    )
