"""A gallery recipe as one file of its own: what it extends is merged into it.

Apart from the gallery, since only this reads recipes: `list` and completion answer without Pydantic.
"""

from __future__ import annotations

import re
from pathlib import Path

from llava_recipes.authoring.gallery import GalleryRecipe, readdress
from llava_recipes.recipe.extends import extend
from llava_recipes.recipe.scalars import Value
from llava_recipes.recipe.source import Document, parse_source, parse_value
from llava_recipes.recipe.variables import references_in
from llava_recipes.recipe.writer import add_remarks, block_lines, in_order

_LINE_REMARK = re.compile(r"\s+# ?(.*)")
_KEY_REMARK = re.compile(r":\s+# ?(.*)")
_REMARK_COLUMN = 47


def copied_text(entry: GalleryRecipe, output: Path) -> str:
    """The text of a copy of a gallery recipe, written for `output`.

    A recipe without `extends` is copied as it is, comments included. Otherwise its parents are merged
    into it; variables, its head and the comments after values are kept.
    """
    text = entry.file.read_text(encoding="utf-8")
    document = parse_source(text, str(entry.file))
    assert isinstance(document.root, dict)
    if "extends" in document.root:
        text = _head(text) + _flat(extend(document))
    return readdress(text, f"recipes/{entry.name}.yaml", output)


def _head(text: str) -> str:
    """The comment at the top of a recipe."""
    lines = text.splitlines(keepends=True)
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "".join(lines[:end])


def _flat(document: Document) -> str:
    """The values of a merged document, in block style and with their comments."""
    root = in_order(_without_unused(document.root))
    return _spaced(_with_remarks("\n".join(block_lines(root)), document))


def _without_unused(root: Value) -> Value:
    """The values without unused variables, used by other children of the parents; they would be an error."""
    assert isinstance(root, dict)
    variables, environment = root.get("vars"), root.get("env")
    used = references_in(root)
    kept: dict[str, Value] = dict(root)
    if isinstance(variables, dict):
        kept["vars"] = {name: value for name, value in variables.items() if name in used}
    if isinstance(environment, list):
        kept["env"] = [name for name in environment if name in used]
    kept = {key: value for key, value in kept.items() if key not in ("vars", "env") or value}
    # A removed variable may have been the only one to use another.
    return kept if kept == root else _without_unused(kept)


def _with_remarks(text: str, document: Document) -> str:
    """The text with the comments after its values and keys in the files they come from."""
    places = parse_value(text, "")
    remarks: dict[int, str] = {}
    for marks, written in (
        (places.value_marks, document.value_marks),
        (places.key_marks, document.key_marks),
    ):
        pattern = _LINE_REMARK if marks is places.value_marks else _KEY_REMARK
        for path, mark in marks.items():
            source = written.get(path)
            found = source and pattern.fullmatch((source.text or "")[source.column + source.width - 1 :])
            if found:
                remarks.setdefault(mark.line, found.group(1))
    return add_remarks(text, remarks, column=_REMARK_COLUMN)


def _spaced(text: str) -> str:
    """The text with an empty line before `model`, `stages` and every stage but the first."""
    text = re.sub(r"^(?=model:|stages:)", "\n", text, flags=re.MULTILINE)
    first, *others = re.split(r"^(?=  - name:)", text, flags=re.MULTILINE)
    return first + "\n".join(others)
