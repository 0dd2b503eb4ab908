"""The recipe being built: its values, what became of every setting, and both as text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from llava_recipes.errors import KeyPath, Mark, Problem, RecipeError
from llava_recipes.masking import HIDDEN, is_secret_name
from llava_recipes.recipe.scalars import Value, spell_value
from llava_recipes.recipe.writer import write_recipe
from llava_recipes.screen import shown

Kind = Literal["mapped", "default", "needless", "lost"]
IsFolder = Callable[[str], bool]
"""Whether a path in a script or config is a folder here."""

_SEVERITY: Mapping[Kind, int] = MappingProxyType({"needless": 0, "default": 1, "mapped": 2, "lost": 3})
TITLES: tuple[tuple[Kind, str], ...] = (
    ("mapped", "has a key in the recipe"),
    ("default", "left out, so the program's default applies; the recipe now states it"),
    ("needless", "has no key in a recipe, and nothing is lost"),
    ("lost", "HAS NO KEY IN A RECIPE: the run differs without it"),
)
MAX_VALUE_CHARACTERS = 60


@dataclass(frozen=True)
class Entry:
    """What became of one setting of the other program.

    `mapped`    it has a key in the recipe
    `default`   it was left out, and the recipe states the other program's default
    `needless`  it has no key in a recipe, and nothing is lost
    `lost`      it has no key in a recipe, and the run differs
    """

    kind: Kind
    name: str
    value: str
    key: str = ""
    remark: str = ""
    mark: Mark | None = None


@dataclass
class Draft:
    """One stage and the model it trains.

    Paths are written as in the report: `model.projector.type` is in the model, `train.seed` in the stage.
    """

    name: str = ""
    values: dict[str, Value] = field(default_factory=lambda: {"model": {}})
    """The stage's keys, and the model under `model`."""
    comments: dict[str, str] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    num_processes: int | None = None
    program: str = ""
    """The program that trained, as the report names it."""
    source: Literal["script", "file"] = "file"
    """What the settings are from, as comments name it."""

    def put(self, path: str, value: Value, comment: str | None = None) -> None:
        """Set a value, and create the mappings around it."""
        *parents, last = path.split(".")
        place = self.values
        for key in parents:
            inner = place.setdefault(key, {})
            assert isinstance(inner, dict)
            place = inner
        place[last] = value
        if comment is not None:
            self.comments[path] = comment

    def read(self, path: str) -> Value:
        """A value that was set before, or None."""
        place: Value = self.values
        for key in path.split("."):
            place = place.get(key) if isinstance(place, dict) else None
        return place

    def drop(self, path: str) -> None:
        """Remove a value and its comment."""
        parent, _, last = path.rpartition(".")
        place = self.read(parent) if parent else self.values
        if isinstance(place, dict):
            place.pop(last, None)
        self.comments.pop(path, None)

    def default(
        self,
        name: str,
        path: str,
        value: Value,
        *,
        remark: str = "",
        comment: str | None = None,
    ) -> None:
        """State the default of a setting that was left out."""
        self.put(path, value, comment or f"not in the {self.source}: the program's default")
        spelled = value if isinstance(value, str) else spell_value(value)
        self.entries.append(Entry("default", name, spelled, path, remark))

    def report(self, kind: Kind, name: str, spelled: str, why: str, mark: Mark | None = None) -> None:
        """Report a setting that has no key."""
        self.entries.append(Entry(kind, name, spelled, remark=why, mark=mark))

    def change_report(self, key: str, remark: str, *, kind: Kind | None = None, new_key: str = "") -> None:
        """Change the report of the settings that have a key: they get another key, or none."""
        self.entries = [
            replace(entry, kind=kind or entry.kind, key=new_key, remark=remark) if entry.key == key else entry
            for entry in self.entries
        ]

    def settle(self) -> None:
        """Report each setting in one section: it is lost if a part of it is, with the key that it has."""
        kinds: dict[str, Kind] = {}
        for entry in self.entries:
            kinds[entry.name] = max(kinds.get(entry.name, "needless"), entry.kind, key=_SEVERITY.__getitem__)
        keys = {entry.name: entry.key for entry in self.entries if entry.key}
        self.entries = [
            replace(entry, key=entry.key or (keys.get(entry.name, "") if entry.kind == "lost" else ""))
            for entry in self.entries
            if entry.kind == kinds[entry.name]
        ]


@dataclass(frozen=True)
class Migration:
    """The recipe's text, and what became of the settings of each stage."""

    text: str
    name: str
    stages: tuple[tuple[str, tuple[Entry, ...]], ...]
    num_processes: int | None
    programs: tuple[str, ...]
    """The program that trained each stage; empty for a config, which names none."""


def combine(
    drafts: Sequence[Draft],
    *,
    file: str,
    recipe_file: str,
    is_folder: IsFolder,
    marks: Sequence[Mark | None] = (None,),
) -> Migration:
    """One recipe with a stage for each draft. Raises RecipeError unless they share one model."""
    problems = [problem for draft in drafts for problem in draft.problems]
    problems += _unknown_towers(drafts, is_folder)
    if problems:
        raise RecipeError(*problems)
    _hand_on(drafts)
    for draft in drafts[:-1]:
        draft.change_report("name", "the recipe is named after its last stage", kind="needless")
    model = drafts[0].values["model"]
    for number, (draft, mark) in enumerate(zip(drafts[1:], marks[1:], strict=True), 2):
        if different := _differences(model, draft.values["model"]):
            raise RecipeError(_two_models(number, different, mark))
    comments: dict[KeyPath, str] = {}
    names: list[str] = []
    stages: list[Value] = []
    for index, draft in enumerate(drafts):
        word = _stage_name(draft)
        names.append(word if word not in names else f"{word}-{index + 1}")
        own = {key: value for key, value in draft.values.items() if key != "model"}
        stages.append({"name": names[-1], **own})
        for path, comment in draft.comments.items():
            # `data.sources[0].images` as its keys.
            keys = tuple(int(key) if key.isdecimal() else key for key in re.findall(r"[^.\[\]]+", path))
            if keys[0] != "model":
                comments["stages", index, *keys] = comment
            elif index == 0:
                comments[keys] = comment
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", drafts[-1].name).lstrip("._-")[:100] or "migrated"
    values: dict[str, Value] = {"version": 1, "name": name, "model": model, "stages": stages}
    return Migration(
        text=write_recipe(values, comments, _header(file, recipe_file, drafts)),
        name=name,
        stages=tuple((word, tuple(draft.entries)) for word, draft in zip(names, drafts, strict=True)),
        num_processes=drafts[0].num_processes,
        programs=tuple(draft.program for draft in drafts),
    )


def _unknown_towers(drafts: Sequence[Draft], is_folder: IsFolder) -> Iterator[Problem]:
    """Problems with vision towers whose name has a meaning only in the other program's code."""
    for draft in drafts:
        name = draft.read("model.vision_tower.source")
        # Hub ids of towers have an owner, and a path has a folder.
        if not isinstance(name, str) or re.search(r"[/\\]|^~", name) or is_folder(name):
            continue
        marks = [entry.mark for entry in draft.entries if entry.key == "model.vision_tower.source"]
        layers = "four joined layers of CLIP; a recipe uses one layer and can't express this model"
        yield Problem(
            f"the vision tower `{name}` is neither a hub id nor a folder here",
            code="unknown-vision-tower",
            mark=marks[0] if marks else None,
            found=f"ViP-LLaVA's name for {layers}" if name.startswith("clip_4layers") else name,
            hint="write the tower's hub id, OWNER/NAME, or a folder as ./NAME",
        )


def _header(file: str, recipe_file: str, drafts: Sequence[Draft]) -> str:
    processes = drafts[0].num_processes
    run = f"llava-recipe run {recipe_file}" + (f" --processes {processes}" if processes else "")
    lost = sum(entry.kind == "lost" for draft in drafts for entry in draft.entries)
    lines = [f"Migrated from {file}", f"Run       {run}"]
    if lost:
        settings = "1 setting has" if lost == 1 else f"{lost} settings have"
        lines.append(f"Lost      {settings} no key in a recipe; `llava-recipe migrate` lists them")
    return "\n".join(lines)


def _hand_on(drafts: Sequence[Draft]) -> None:
    """Remove the start of a stage that takes the projector or the whole folder of the stage before it."""
    follows = "the stage starts from the one before"
    for before, draft in itertools.pairwise(drafts):
        folder = before.read("output_dir")
        if not isinstance(folder, str):
            continue
        folder = folder.rstrip("/")
        start = draft.read("init_from")
        if isinstance(start, str) and start.rstrip("/") == folder:
            draft.drop("init_from")
            draft.change_report("init_from", follows, kind="needless")
        projector = "model.projector.init_from"
        if draft.read(projector) == f"{folder}/mm_projector.bin":
            draft.drop(projector)
            draft.change_report(projector, follows, kind="needless")


def _differences(left: Value, right: Value, path: str = "") -> list[str]:
    """The paths at which two models differ."""
    if not isinstance(left, dict) or not isinstance(right, dict):
        return [] if left == right else [path]
    return [
        name
        for key in {**left, **right}
        for name in _differences(left.get(key), right.get(key), f"{path}.{key}" if path else key)
    ]


def _two_models(number: int, different: Sequence[str], mark: Mark | None) -> Problem:
    names = ", ".join(f"`{name}`" for name in different)
    return Problem(
        f"training command {number} trains another model than the first; a recipe has one model",
        code="commands-of-several-models",
        mark=mark,
        found=f"they differ in {names}",
        hint="migrate them one at a time: --command 1, --command 2, …",
    )


def _stage_name(draft: Draft) -> str:
    is_first = draft.read("trainable") == ["projector"] and draft.read("lora") is None
    return "pretrain" if is_first else "finetune"


def report_lines(migration: Migration, file: str) -> Iterator[str]:
    """What became of every setting, stage by stage, as lines of text."""
    for (name, entries), program in zip(migration.stages, migration.programs, strict=True):
        yield stage_title(file, name, entries)
        if program:
            yield f"  program: {shown(program)}"
        for kind, title in TITLES:
            chosen = [entry for entry in entries if entry.kind == kind]
            if chosen:
                yield from ("", f"  {title}")
                yield from _table(chosen)
        yield ""


def stage_title(file: str, name: str, entries: Iterable[Entry]) -> str:
    """The file, the stage, and the number of settings of each kind."""
    kinds = [entry.kind for entry in entries]
    words = (("mapped", "mapped"), ("default", "defaults"), ("needless", "not needed"), ("lost", "lost"))
    counts = ", ".join(f"{kinds.count(kind)} {word}" for kind, word in words if kind in kinds)
    return f"{shown(file)}: stage {name}: {counts}"


def value_of(entry: Entry) -> str:
    """A setting's value in the other program; hidden if its name says that it is secret."""
    return HIDDEN if is_secret_name(entry.name.lstrip("-")) else shown(entry.value)


def _table(entries: Sequence[Entry]) -> Iterator[str]:
    rows = [(shown(entry.name), _short(value_of(entry)), entry.key, shown(entry.remark)) for entry in entries]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, value, key, remark in rows:
        arrow = "->" if key else "  " if widths[2] else ""
        line = f"    {name:<{widths[0]}}  {value:<{widths[1]}}  {arrow} {key:<{widths[2]}}"
        yield f"{line}  {remark}".rstrip()


def _short(text: str) -> str:
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"…{text[1 - MAX_VALUE_CHARACTERS :]}"
