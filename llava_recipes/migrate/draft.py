"""A recipe in the making: its values so far, what became of every setting, and the whole as text."""

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
    ("mapped", "has its key in the recipe"),
    ("default", "left out there, and so at that program's default, which the recipe now says"),
    ("needless", "has no place in a recipe, and nothing is lost"),
    ("lost", "HAS NO PLACE IN A RECIPE: the run differs without it"),
)
MAX_VALUE_CHARACTERS = 60
_FOLLOWS = "the stage starts from the one before"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Entry:
    """What became of one setting of the other program.

    `mapped`    it has a key of its own in the recipe
    `default`   the other program was left to its default, which the recipe now says
    `needless`  it has no place in a recipe, and nothing is lost by that
    `lost`      it has no place in a recipe, and the run differs
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

    A path is written as in the report: `model.projector.type` is in the model, `train.seed` in the stage.
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

    def put(self, path: str, value: Value, comment: str | None = None) -> None:
        """Set a value, and make the mappings around it."""
        *parents, last = path.split(".")
        place = self.values
        for key in parents:
            inner = place.setdefault(key, {})
            assert isinstance(inner, dict)
            place = inner
        place[last] = value
        if comment is not None:
            self.comments[path] = comment

    @property
    def stage(self) -> dict[str, Value]:
        """The values without the model."""
        return {key: value for key, value in self.values.items() if key != "model"}

    def read(self, path: str) -> Value:
        """A value set before, or None."""
        place: Value = self.values
        for key in path.split("."):
            place = place.get(key) if isinstance(place, dict) else None
        return place

    def drop(self, path: str) -> None:
        """Take a value out again, with its comment."""
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
        comment: str = "left out there: its default",
    ) -> None:
        """A setting that was left out: the recipe says what it was."""
        self.put(path, value, comment)
        spelled = value if isinstance(value, str) else spell_value(value)
        self.entries.append(Entry("default", name, spelled, path, remark))

    def needless(self, name: str, spelled: str, why: str, mark: Mark | None = None) -> None:
        """A setting that nothing is lost without."""
        self.entries.append(Entry("needless", name, spelled, "", why, mark))

    def lost(self, name: str, spelled: str, why: str, mark: Mark | None = None, *, path: str = "") -> None:
        """A setting without which the run differs; `path` says where the nearest that recipes have stands."""
        self.entries.append(Entry("lost", name, spelled, path, why, mark))

    def retell(self, key: str, *, instead: str = "", kind: Kind | None = None, remark: str) -> None:
        """Say other things of the settings that have a key, and name another key or none."""
        self.entries = [
            replace(entry, kind=kind or entry.kind, key=instead, remark=remark) if entry.key == key else entry
            for entry in self.entries
        ]

    def settle(self) -> None:
        """Tell each setting in one section: where a part of it is lost, it is lost, with the key it has."""
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
    """The recipe's text, and per stage what became of the settings it comes from."""

    text: str
    name: str
    stages: tuple[tuple[str, tuple[Entry, ...]], ...]
    num_processes: int | None
    programs: tuple[str, ...]
    """What trained each stage, empty where that is no program of a script."""


def combine(
    drafts: Sequence[Draft],
    *,
    file: str,
    recipe_file: str,
    is_folder: IsFolder,
    marks: Sequence[Mark | None] = (None,),
) -> Migration:
    """One recipe of all drafts, a stage each. Raises RecipeError where they do not share one model."""
    problems = [problem for draft in drafts for problem in draft.problems]
    problems += _unknown_towers(drafts, is_folder)
    if problems:
        raise RecipeError(*problems)
    _hand_on(drafts)
    for draft in drafts[:-1]:
        draft.retell("name", kind="needless", remark="the recipe is named after its last stage")
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
        stages.append({"name": names[-1], **draft.stage})
        for path, comment in draft.comments.items():
            keys = _keys_of(path)
            if keys[0] != "model":
                comments["stages", index, *keys] = comment
            elif index == 0:
                comments[keys] = comment
    name = _clean_name(drafts[-1].name) or "migrated"
    values: dict[str, Value] = {"version": 1, "name": name, "model": model, "stages": stages}
    return Migration(
        text=write_recipe(values, comments, _header(file, recipe_file, drafts)),
        name=name,
        stages=tuple((word, tuple(draft.entries)) for word, draft in zip(names, drafts, strict=True)),
        num_processes=drafts[0].num_processes,
        programs=tuple(draft.program for draft in drafts),
    )


def _keys_of(path: str) -> KeyPath:
    """`data.sources[0].images` as its keys."""
    return tuple(int(key) if key.isdecimal() else key for key in re.findall(r"[^.\[\]]+", path))


def _unknown_towers(drafts: Sequence[Draft], is_folder: IsFolder) -> Iterator[Problem]:
    """Vision towers by a name that only the other program's code gives a meaning."""
    for draft in drafts:
        name = draft.read("model.vision_tower.source")
        # Hub ids of towers have an owner, and a path has a folder.
        if not isinstance(name, str) or re.search(r"[/\\]|^~", name) or is_folder(name):
            continue
        marks = [entry.mark for entry in draft.entries if entry.key == "model.vision_tower.source"]
        layers = "four layers of CLIP joined, of which a recipe has one: it can't say this model"
        yield Problem(
            f"the vision tower `{name}` is neither a hub id nor a folder here",
            code="unknown-vision-tower",
            mark=marks[0] if marks else None,
            found=f"ViP-LLaVA's name for {layers}" if name.startswith("clip_4layers") else name,
            hint="name the tower by its hub id, OWNER/NAME, or write a folder as ./NAME",
        )


def _header(file: str, recipe_file: str, drafts: Sequence[Draft]) -> str:
    processes = drafts[0].num_processes
    run = f"llava-recipe run {recipe_file}" + (f" --processes {processes}" if processes else "")
    lost = sum(entry.kind == "lost" for draft in drafts for entry in draft.entries)
    lines = [f"Migrated from {file}", f"Run       {run}"]
    if lost:
        lines.append(
            f"Lost      {lost} of its settings have no place here; `llava-recipe migrate` lists them"
        )
    return "\n".join(lines)


def _hand_on(drafts: Sequence[Draft]) -> None:
    """A stage that takes the projector or the whole folder of the one before it starts from that stage."""
    for before, draft in itertools.pairwise(drafts):
        folder = before.read("output_dir")
        if not isinstance(folder, str):
            continue
        folder = folder.rstrip("/")
        start = draft.read("init_from")
        if isinstance(start, str) and start.rstrip("/") == folder:
            draft.drop("init_from")
            draft.retell("init_from", kind="needless", remark=_FOLLOWS)
        projector = "model.projector.init_from"
        if draft.read(projector) == f"{folder}/mm_projector.bin":
            draft.drop(projector)
            draft.retell(projector, kind="needless", remark=_FOLLOWS)


def _differences(left: Value, right: Value, path: str = "") -> list[str]:
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
        f"training command {number} has another model than the first: one recipe has one model",
        code="commands-of-several-models",
        mark=mark,
        found=f"they differ in {names}",
        hint="migrate them one by one: --command 1, --command 2, …",
    )


def _stage_name(draft: Draft) -> str:
    is_first = draft.read("trainable") == ["projector"] and draft.read("lora") is None
    return "pretrain" if is_first else "finetune"


def _clean_name(name: str) -> str:
    return _NOT_IN_NAMES.sub("-", name).lstrip("._-")[:100]


def report_lines(migration: Migration, file: str) -> Iterator[str]:
    """What became of every setting of a whole migration, stage by stage, as text for a person."""
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
    """The file, the stage, and how many settings of each kind."""
    kinds = [entry.kind for entry in entries]
    words = (("mapped", "mapped"), ("default", "defaults"), ("needless", "not needed"), ("lost", "lost"))
    counts = ", ".join(f"{kinds.count(kind)} {word}" for kind, word in words if kind in kinds)
    return f"{shown(file)}: stage {name}: {counts}"


def value_of(entry: Entry) -> str:
    """What a setting has there; hidden where its name says that it is secret."""
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
