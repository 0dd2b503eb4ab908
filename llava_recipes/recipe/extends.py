"""Put a recipe together from its own file and from those that it extends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

from llava_recipes.files import odd_kind
from llava_recipes.recipe.errors import KeyPath, Problem, RecipeError
from llava_recipes.recipe.likeness import looks_like_recipe
from llava_recipes.recipe.locations import foreign_reference, is_web_address
from llava_recipes.recipe.merge import lay_over
from llava_recipes.recipe.reading import MAX_BYTES, nearest_file, read_file
from llava_recipes.recipe.scalars import Value, kind_of, spell_value
from llava_recipes.recipe.source import MAX_VALUES, Document, parse_source

MAX_LEVELS = 8
MAX_FILES = 16


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
            raise RecipeError(
                Problem(
                    "a file that extends itself" if len(chain) == 2 else "files that extend each other",
                    code="extends-circular",
                    found=" → ".join(chain),
                    hint="remove one of these `extends`",
                )
            )
        if len(shown) > MAX_LEVELS:
            message = f"files that extend files, more than {MAX_LEVELS} levels deep"
            raise RecipeError(Problem(message, code="extends-too-much", found=" → ".join((*shown, file))))
        content = self.content(file, name)
        if not looks_like_recipe(content):
            raise RecipeError(
                Problem(
                    "`extends` names a file that is no recipe",
                    code="extends-names-no-recipe",
                    found=file,
                    hint="a recipe has keys such as `model:` and `stages:` at the beginning of a line",
                )
            )
        document = parse_source(content, file)
        self.num_values += len(document.value_marks)
        if self.num_values > MAX_VALUES:
            message = f"the files that the recipe extends hold more than {MAX_VALUES:,} values together"
            raise RecipeError(Problem(message, code="extends-too-much"))
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
            raise RecipeError(
                Problem(
                    message,
                    code="extends-too-much",
                    hint="a file counts each time it is extended",
                )
            )
        if self.num_bytes > MAX_BYTES:
            message = f"the files that the recipe extends are larger than {MAX_BYTES:,} bytes together"
            raise RecipeError(Problem(message, code="extends-too-much"))
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


def _check_name(name: str) -> None:
    """Refuse what is no path of a file on this machine."""
    found = spell_value(name)
    if is_web_address(name):
        raise RecipeError(
            Problem(
                "`extends` names a file on this machine, not a web address",
                code="extends-not-a-path",
                found=found,
                hint="download it beside the recipe: what a recipe says must not depend on a server",
            )
        )
    if name.startswith("~"):
        hint = "write the path from the folder of this file, or the whole path"
        raise RecipeError(
            Problem("`~` is not expanded in `extends`", code="extends-not-a-path", found=found, hint=hint)
        )
    hint = "write the path itself: variables are known only when all files are read"
    reference = foreign_reference(name)
    if reference is not None:
        raise RecipeError(
            Problem(
                f"`{reference.group()}` is not filled in by `extends`",
                code="reference-of-another-program",
                found=found,
                hint=hint,
            )
        )
    if "${" in name:
        raise RecipeError(
            Problem(
                "`extends` cannot hold variables",
                code="extends-not-a-path",
                found=found,
                hint=hint,
            )
        )


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
        raise RecipeError(
            Problem("`extends` names a folder", code="extends-not-a-file", found=file, hint=hint)
        )
    if kind is not None:
        raise RecipeError(
            Problem(
                "`extends` names something that is no ordinary file",
                code="not-an-ordinary-file",
                found=f"{file}: it is {kind}",
            )
        )
    hint = _nearby(file, name)
    raise RecipeError(
        Problem(
            "`extends` names a file that is not there", code="extends-file-missing", found=file, hint=hint
        )
    )


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
