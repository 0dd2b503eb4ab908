"""The gallery: find its recipes, read what their heads say, copy one into a file of its own."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llava_recipes.errors import RecipeError
from llava_recipes.recipe.renames import nearest
from llava_recipes.screen import shown

_PACKAGE = Path(__file__).parent.parent
_NOT_IN_A_RECIPE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
_LABEL = re.compile(r"#\s(?P<label>[A-Z][a-z]+)\s{2,}(?P<text>\S.*)")
_AMOUNT = r"(?:\d+(?:\.\d+)?|one|two|three|four|five|ten)"
_DURATION = re.compile(rf"(?:{_AMOUNT}(?: to |–|-))?{_AMOUNT} ?(?:h|hours?|min|minutes?|s|seconds?|days?)\b")
_ELSEWHERE = re.compile(r" on \d+×[\w-]+")
# A comma ends a clause, but not inside a number.
_CLAUSE = re.compile(r";\s*|,\s+")
_SENTENCE = re.compile(r"[:.](?:\s+|$)")
_REMARK = re.compile(r"[:;.](?:\s+|$)")


def gallery_folder() -> Path:
    """The folder of the shipped recipes."""
    return _shipped("gallery", "recipes")


def schema_file() -> Path:
    """The JSON Schema of recipes, as committed."""
    return _shipped("schemas", "schemas") / "recipe.schema.json"


def templates_folder() -> Path:
    """The folder of the templates of `llava-recipe new`."""
    return _PACKAGE / "authoring" / "templates"


def _shipped(in_package: str, in_checkout: str) -> Path:
    packaged = _PACKAGE / in_package
    return packaged if packaged.is_dir() else _PACKAGE.parent / in_checkout


@dataclass(frozen=True)
class GalleryRecipe:
    """One recipe of the gallery. Strings are empty where its head has no such line."""

    name: str
    family: str
    file: Path
    purpose: str
    hardware: str
    time: str
    loss: str
    expect: str
    needs: str
    data: str
    source: str

    @property
    def title(self) -> str:
        """The purpose up to its first colon or full stop."""
        return _SENTENCE.split(self.purpose, maxsplit=1)[0]

    @property
    def machine(self) -> str:
        """The hardware without remarks about it."""
        return _REMARK.split(self.hardware, maxsplit=1)[0]

    @property
    def duration(self) -> str:
        """The time as a number, on another machine if it says so, and whether it is an estimate.

        Empty where none is known.
        """
        found = _DURATION.search(self.time)
        if found is None:
            return ""
        elsewhere = _ELSEWHERE.match(self.time, found.end())
        estimate = " (estimate)" if "estimate" in self.time else ""
        return found.group() + (elsewhere.group() if elsewhere else "") + estimate


def gallery() -> tuple[GalleryRecipe, ...]:
    """Every recipe, by name. A base that others extend has no `Run` line in its head and is left out."""
    folder = gallery_folder()
    entries = []
    for file in sorted(folder.rglob("*.yaml")):
        head = read_head(file.read_text(encoding="utf-8"))
        if "Run" in head:
            entries.append(_entry(file.relative_to(folder).with_suffix("").as_posix(), file, head))
    return tuple(entries)


def families() -> dict[str, tuple[GalleryRecipe, ...]]:
    """The gallery by family, families by name; their recipes by title: 7B, 13B; Stage 1, Stage 2."""
    entries = sorted(gallery(), key=lambda entry: _counting(entry.title))
    names = sorted({entry.family for entry in entries})
    return {name: tuple(entry for entry in entries if entry.family == name) for name in names}


def _counting(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that compares the numbers in a text as numbers."""
    parts = re.split(r"(\d+)", text)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


def find_all(name: str) -> tuple[GalleryRecipe, ...]:
    """The recipes of a family, or the one of that name; raises RecipeError with a near miss."""
    wanted = name.casefold()
    for family, entries in families().items():
        if family.casefold() == wanted:
            return entries
    return (find(name),)


def find(name: str) -> GalleryRecipe:
    """The recipe of that name, with or without folder and `.yaml`; raises RecipeError with a near miss."""
    entries = gallery()
    wanted = name.removeprefix("recipes/").removesuffix(".yaml")
    for entry in entries:
        if wanted == entry.name:
            return entry
    same_stem = [entry for entry in entries if entry.file.stem == wanted]
    if len(same_stem) == 1:
        return same_stem[0]
    near = nearest(wanted, [entry.name for entry in entries])
    hint = f"did you mean `{near}`?" if near else "`llava-recipe list` shows all recipes"
    raise RecipeError.of(f"no recipe `{name}` in the gallery", code="unknown-gallery-recipe", hint=hint)


def read_head(text: str) -> dict[str, str]:
    """The labeled lines of the comment at the head of a recipe; the lines before them are under ""."""
    head: dict[str, str] = {"": ""}
    label = ""
    for line in _comment_lines(text):
        found = _LABEL.fullmatch(line.rstrip())
        if found:
            label = found["label"]
            head[label] = found["text"]
        else:
            words = line.lstrip("#").strip()
            head[label] = f"{head[label]} {words}".strip()
    return head


def _comment_lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        if "yaml-language-server" not in line:
            yield line


def _entry(name: str, file: Path, head: dict[str, str]) -> GalleryRecipe:
    expect = head.get("Expect", "")
    clauses = [clause for clause in _CLAUSE.split(expect) if clause]
    loss = next((clause for clause in clauses if re.search(r"\bloss\b", clause)), "")
    # "no duration is published" is kept too.
    timed = next((clause for clause in clauses if _DURATION.search(clause) or "duration" in clause), "")
    spoken = _DURATION.search(f"{head.get('Hardware', '')} {head['']}")
    return GalleryRecipe(
        name=name,
        family=head.get("Family", ""),
        file=file,
        purpose=head[""],
        hardware=head.get("Hardware", ""),
        time=timed or (spoken.group() if spoken else ""),
        loss=loss,
        expect=expect,
        needs=head.get("Needs", ""),
        data=head.get("Data", ""),
        source=head.get("Source", ""),
    )


def readdress(text: str, old: str, output: Path) -> str:
    """A recipe's text for a new file: the editor's schema, and `output` for `old` in its comments.

    Raises RecipeError if a recipe can't contain the name of `output`.
    """
    check_words(str(output))
    quoted = shown(shlex.quote(str(output)))
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if line.startswith("# yaml-language-server"):
            lines[number] = modeline(output) + "\n"
        elif line.startswith("#"):
            lines[number] = re.sub(rf"(?<![\w/]){re.escape(old)}(?!\w)", lambda _: quoted, line)
    return "".join(lines)


def check_words(*words: str) -> None:
    """Raise RecipeError for a character that YAML can't contain, such as an unpaired surrogate."""
    for word in words:
        found = _NOT_IN_A_RECIPE.search(word)
        if found:
            message = (
                f"{word!a} contains the character U+{ord(found.group()):04X}, which a recipe can't contain"
            )
            raise RecipeError.of(message, code="invalid-yaml-character", hint="rename it")


def modeline(output: Path) -> str:
    """The comment by which an editor of `output` finds the schema.

    Its path is relative inside a checkout, so that the file can be committed, and absolute elsewhere.
    """
    schema = schema_file().resolve()
    folder = output.parent.resolve()
    checkout = schema.parent.parent
    place = os.path.relpath(schema, folder) if folder.is_relative_to(checkout) else str(schema)
    return f"# yaml-language-server: $schema={Path(place).as_posix()}"
