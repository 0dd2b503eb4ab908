"""Merge a recipe with the files that it extends, values and marks together; recognize a recipe."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.files import odd_kind
from llava_recipes.recipe.exclusions import displaced
from llava_recipes.recipe.locations import foreign_reference, is_web_address
from llava_recipes.recipe.renames import OTHER_NAMES, nearest
from llava_recipes.recipe.scalars import Value, as_list, as_mapping, kind_of, spell_value
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

MAX_LEVELS = 8
MAX_FILES = 16
MAX_SEARCHED = 20
"""With more stages than this, no other stage's name is suggested."""

_TOP_KEY = re.compile(r"""^["']?([A-Za-z_][A-Za-z0-9_.-]{0,199})["']?[ ]*:(?=\s|$)""", re.MULTILINE)
_OWN_KEY = re.compile(
    r"""(?:^|[\s{,"'-])(language_model|vision_tower|projector|per_device_train_batch_size|output_dir)["']?\s*:"""
)
_MOST_KEYS = 100

Kept = TypeVar("Kept")


def extend(document: Document) -> Document:
    """The document merged over the files that it extends, without the key `extends`.

    Later parents are merged over earlier ones, the document over all of them. Raises RecipeError when a
    parent cannot be read: without it nothing more can be said about the recipe.
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
        self.num_files = self.num_bytes = self.num_values = 0

    def put_together(self, document: Document, real: tuple[str, ...], shown: tuple[str, ...]) -> Document:
        """A document over its parents. `real` and `shown` are the files down to it, itself included."""
        whole: Document | None = None
        for path, name in self.names(document):
            try:
                parent = self.read(name, real, shown)
            except RecipeError as error:
                mark = document.locate(path)
                self.problems += (replace(problem, mark=problem.mark or mark) for problem in error.problems)
                continue
            whole = parent if whole is None else lay_over(whole, parent)
        gone = {("extends",)}
        own = replace(
            document,
            root={key: value for key, value in as_mapping(document.root).items() if key != "extends"},
            value_marks=_kept(document.value_marks, gone),
            key_marks=_kept(document.key_marks, gone),
        )
        return own if whole is None else lay_over(whole, own)

    def names(self, document: Document) -> Iterator[tuple[KeyPath, str]]:
        """The paths in `extends`, each with its place in the document."""
        keys = as_mapping(document.root)
        extends = keys.get("extends")
        entries: list[tuple[KeyPath, Value]] = [(("extends",), extends)] if "extends" in keys else []
        if isinstance(extends, list):
            entries = [(("extends", index), entry) for index, entry in enumerate(extends[: MAX_FILES + 1])]
        for path, name in entries:
            if path in document.spoiled:
                continue
            if isinstance(name, str) and name:
                yield path, name
                continue
            given = "an empty string" if name == "" else kind_of(name)
            message = f"`extends` needs the path of a recipe file, or a list of paths; {given} is given"
            mark = document.locate(path, on_key=name is None)
            hint = "write `extends: base/common.yaml`, from the folder of this file"
            self.problems.append(Problem(message, code="extends-not-a-path", mark=mark, hint=hint))

    def read(self, name: str, real: tuple[str, ...], shown: tuple[str, ...]) -> Document:
        """A parent merged over its own parents; raises RecipeError."""
        _check_name(name)
        file = _beside(shown[-1], name)
        if _real(file) in real:
            chain = (*shown[real.index(_real(file)) :], file)
            message = "the file extends itself" if len(chain) == 2 else "the files extend each other"
            hint = "remove one of these `extends`"
            raise RecipeError.of(message, code="extends-circular", found=" → ".join(chain), hint=hint)
        if len(shown) > MAX_LEVELS:
            message = f"`extends` is nested more than {MAX_LEVELS} levels deep"
            raise RecipeError.of(message, code="extends-too-much", found=" → ".join((*shown, file)))
        content = self.content(file, name)
        if not looks_like_recipe(content):
            message = "`extends` names a file that isn't a recipe"
            hint = "a recipe has keys such as `model:` and `stages:` at the start of a line"
            raise RecipeError.of(message, code="extends-names-no-recipe", found=file, hint=hint)
        document = parse_source(content, file)
        self.num_values += len(document.value_marks)
        if self.num_values > MAX_VALUES:
            message = f"the files that the recipe extends contain more than {MAX_VALUES:,} values in total"
            raise RecipeError.of(message, code="extends-too-much")
        whole = self.put_together(document, (*real, _real(file)), (*shown, file))
        return replace(whole, parents=(*whole.parents, file))

    def content(self, file: str, name: str) -> bytes:
        """The bytes of a parent; raises RecipeError."""
        _check_file(file, name)
        data = read_file(file)
        self.num_files += 1
        self.num_bytes += len(data)
        if self.num_files > MAX_FILES:
            message, hint = f"the recipe extends more than {MAX_FILES} files", "each use of a file counts"
            raise RecipeError.of(message, code="extends-too-much", hint=hint)
        if self.num_bytes > MAX_BYTES:
            message = f"the files that the recipe extends are larger than {MAX_BYTES:,} bytes in total"
            raise RecipeError.of(message, code="extends-too-much")
        return data


def _beside(file: str, name: str) -> str:
    """The path of a name that a file contains, as short as it can be written."""
    joined = os.path.join(os.path.dirname(file), name)
    short = os.path.normpath(joined)
    # `..` after a link leads elsewhere than it seems to.
    return short if _real(short) == _real(joined) else joined


def _real(file: str) -> str:
    # A file name may contain what the system cannot look up; reading the file then reports it.
    try:
        return os.path.realpath(file)
    except (OSError, ValueError):
        return file


def _check_name(name: str) -> None:
    """Raise RecipeError for what cannot be the path of a file on this machine."""
    code = "extends-not-a-path"
    hint = "write the path itself: variables are filled in only after all files are read"
    reference = foreign_reference(name)
    if is_web_address(name):
        message = "`extends` needs a file on this machine, not a web address"
        hint = "download it next to the recipe: a recipe must not depend on a server"
    elif name.startswith("~"):
        message = "`~` is not expanded in `extends`"
        hint = "write an absolute path, or one from the folder of this file"
    elif reference is not None:
        message, code = f"`{reference.group()}` is not filled in by `extends`", "reference-of-another-program"
    elif "${" in name:
        message = "`extends` cannot contain variables"
    else:
        return
    raise RecipeError.of(message, code=code, found=spell_value(name), hint=hint)


def _check_file(file: str, name: str) -> None:
    """Raise RecipeError unless there is an ordinary file at the path."""
    try:
        is_file, is_folder, kind = os.path.isfile(file), os.path.isdir(file), odd_kind(file)
    except ValueError:
        is_file, is_folder, kind = False, False, None
    if is_file and kind is None:
        return
    if is_folder:
        message, hint = "`extends` names a folder", "list the files in it"
        raise RecipeError.of(message, code="extends-not-a-file", found=file, hint=hint)
    if kind is not None:
        message, found = "`extends` names something that isn't an ordinary file", f"{file} is {kind}"
        raise RecipeError.of(message, code="not-an-ordinary-file", found=found)
    near = nearest_file(file)
    hint = "a path in `extends` starts from the folder of the file that contains it"
    if near is not None:
        hint = f"did you mean `{os.path.join(os.path.dirname(name), near)}`?"
    message = "`extends` names a file that doesn't exist"
    raise RecipeError.of(message, code="extends-file-missing", found=file, hint=hint)


def lay_over(below: Document, above: Document) -> Document:
    """Both documents merged into one; where both set a value, `above` wins.

    Mappings merge key by key, `stages` by their names, `env` is joined; any other value is replaced.
    """
    roots = (as_mapping(below.root), as_mapping(above.root))
    shared = [key for key in ("stages", "env") if all(isinstance(root.get(key), list) for root in roots)]
    under, over = _by_name(below, shared), _by_name(above, shared)
    gone: set[KeyPath] = set()
    root = _merge(under.root, over.root, (), gone)
    lost = list(_lost_stages(under.root, over.root))
    kept_spoiled = _kept(dict.fromkeys(under.spoiled), gone)
    merged = replace(
        above,
        root=root,
        value_marks={**_kept(under.value_marks, gone), **over.value_marks},
        key_marks={**_kept(under.key_marks, gone), **over.key_marks},
        problems=(*under.problems, *over.problems, *lost),
        spoiled=over.spoiled.union(kept_spoiled, (problem.path[:2] for problem in lost if problem.path)),
        parents=(*below.parents, *above.parents),
    )
    return _by_number(merged)


class _Named(dict[str, Value]):
    """A list whose entries have names while two files are merged."""


def _merge(under: Value, over: Value, path: KeyPath, gone: set[KeyPath]) -> Value:
    """One value of two; adds to `gone` the paths of the lower values that it does not contain."""
    if not isinstance(under, dict) or not isinstance(over, dict) or type(under) is not type(over):
        gone.add(path)
        return over
    merged = type(under)(under)
    for key, value in over.items():
        for other in displaced((*path, key), value, given=over, below=under):
            if merged.pop(str(other[-1]), None) is not None:
                gone.add(other)
        merged[key] = _merge(under[key], value, (*path, key), gone) if key in under else value
    return merged


def _kept(marks: dict[KeyPath, Kept], gone: Collection[KeyPath]) -> dict[KeyPath, Kept]:
    """The marks of the values that are not gone."""
    if () in gone:
        return {}
    heads = {path[0] for path in gone}
    return {
        path: mark
        for path, mark in marks.items()
        if not path or path[0] not in heads or not any(path[:end] in gone for end in range(1, len(path) + 1))
    }


def _lost_stages(under: Value, over: Value) -> Iterator[Problem]:
    """Stages that were meant to change one below, and name none."""
    below, above = as_mapping(under).get("stages"), as_mapping(over).get("stages")
    if not isinstance(below, _Named) or not isinstance(above, _Named) or len(below) > MAX_SEARCHED:
        return
    needed = [name for name, field in Stage.model_fields.items() if field.is_required()]
    for name, stage in above.items():
        if name in below or not isinstance(stage, dict) or all(key in stage for key in needed):
            continue
        path: KeyPath = ("stages", name)
        if "name" not in stage:
            message = "this stage has no name, and `stages` merge by name"
            hint = f"write its `name:`; the extended recipe has {', '.join(f'`{other}`' for other in below)}"
            yield Problem(message, code="stage-without-name", path=path, hint=hint)
        elif (near := nearest(name, below)) is not None:
            message = f"the extended recipe has no stage `{name}`, and this stage is incomplete"
            path, hint = (*path, "name"), f"did you mean `{near}`?"
            yield Problem(message, code="stage-is-incomplete", path=path, hint=hint)


def _by_name(document: Document, keys: Sequence[str]) -> Document:
    """The document with the entries of some lists, stages or environment variables, under their names."""
    root, names = dict(as_mapping(document.root)), dict[str | int, dict[str | int, str | int]]()
    for key in keys:
        entries = as_list(root[key])
        given = _names(entries, document.file)
        names[key] = dict(enumerate(given))
        root[key] = _Named(zip(given, entries, strict=True))
    return _moved(document, root, names)


def _by_number(document: Document) -> Document:
    """The same undone: lists again, in the order in which their names first occur."""
    root, numbers = dict(as_mapping(document.root)), dict[str | int, dict[str | int, str | int]]()
    for key, entries in root.items():
        if isinstance(entries, _Named):
            numbers[key] = {name: index for index, name in enumerate(entries)}
            root[key] = list(entries.values())
    return _moved(document, root, numbers)


def _names(entries: list[Value], file: str) -> list[str]:
    """A name for each entry; without one of its own, or with another's, it gets one that nobody writes."""
    names: list[str] = []
    for index, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else entry
        names.append(name if isinstance(name, str) and name not in names else f"\0{file}\0{index}")
    return names


def _moved(document: Document, root: Value, entries: dict[str | int, dict[str | int, str | int]]) -> Document:
    """The document with another root; `entries` maps the second segment of the paths under its keys."""
    if not entries:
        return document

    def move(path: KeyPath) -> KeyPath:
        if len(path) < 2 or path[0] not in entries:
            return path
        return (path[0], entries[path[0]][path[1]], *path[2:])

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


def looks_like_recipe(data: bytes) -> bool:
    """Whether a file has keys that only recipes have, or at its top only keys of recipes and near misses."""
    text = data.decode("utf-8", "replace")
    if _OWN_KEY.search(text):
        return True
    keys = set(_TOP_KEY.findall(text))
    known = keys.intersection(Recipe.model_fields)
    return (
        bool(known)
        and len(keys) <= _MOST_KEYS
        and all(key in OTHER_NAMES or nearest(key, Recipe.model_fields) is not None for key in keys - known)
    )


def is_named_as_recipe(file: str) -> bool:
    """Whether a file that a person names has a recipe's file ending itself, and not through a link."""
    return file.lower().endswith(ENDINGS) and not os.path.islink(file)
