"""The stages of a migration as one recipe."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from llava_recipes.migrate.draft import MODEL, STAGE, Draft, Entry
from llava_recipes.recipe.errors import KeyPath, Mark, Problem, RecipeError
from llava_recipes.recipe.scalars import Value
from llava_recipes.recipe.writer import write_recipe

IsFolder = Callable[[str], bool]
"""Whether a path in a script or config is a folder here."""

_FOLLOWS = "the stage starts from the one before"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


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
    marks: Sequence[Mark | None],
    is_folder: IsFolder,
) -> Migration:
    """One recipe of all drafts, a stage each. Raises RecipeError where they do not share one model."""
    problems = [problem for draft in drafts for problem in draft.problems]
    problems += _unknown_towers(drafts, is_folder)
    if problems:
        raise RecipeError(*problems)
    _hand_on(drafts)
    for draft in drafts[:-1]:
        _retell(draft, "name", "the recipe is named after its last stage")
    first = drafts[0]
    for number, (draft, mark) in enumerate(zip(drafts[1:], marks[1:], strict=True), 2):
        different = _differences(first.values[MODEL], draft.values[MODEL])
        if different:
            raise RecipeError(_two_models(number, different, mark))
    values: dict[str, Value] = {"version": 1}
    comments: dict[KeyPath, str] = {}
    values["name"] = _clean_name(drafts[-1].name) or "migrated"
    values["model"] = first.values[MODEL]
    names: list[str] = []
    stages: list[Value] = []
    for index, draft in enumerate(drafts):
        name = _stage_name(draft)
        names.append(name if name not in names else f"{name}-{index + 1}")
        stage = draft.values[STAGE]
        assert isinstance(stage, dict)
        stages.append({"name": names[-1], **stage})
        for path, comment in draft.comments.items():
            if path[0] == STAGE:
                comments[("stages", index, *path[1:])] = comment
            elif index == 0:
                comments[path] = comment
    values["stages"] = stages
    return Migration(
        text=write_recipe(values, comments, _header(file, recipe_file, drafts)),
        name=str(values["name"]),
        stages=tuple((name, tuple(draft.entries)) for name, draft in zip(names, drafts, strict=True)),
        num_processes=first.num_processes,
        programs=tuple(draft.program for draft in drafts),
    )


def _unknown_towers(drafts: Sequence[Draft], is_folder: IsFolder) -> Iterator[Problem]:
    """Vision towers by a name that only the other program's code gives a meaning."""
    for draft in drafts:
        name = draft.read(MODEL, "vision_tower", "source")
        # Hub ids of towers have an owner, and a path has a folder.
        if (
            not isinstance(name, str)
            or "/" in name
            or "\\" in name
            or name.startswith("~")
            or is_folder(name)
        ):
            continue
        entry = next((entry for entry in draft.entries if entry.key == "model.vision_tower.source"), None)
        layers = "four layers of CLIP joined, of which a recipe has one: it can't say this model"
        yield Problem(
            f"the vision tower `{name}` is neither a hub id nor a folder here",
            code="unknown-vision-tower",
            mark=entry.mark if entry is not None else None,
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
        folder = before.read(STAGE, "output_dir")
        if not isinstance(folder, str):
            continue
        start = draft.read(STAGE, "init_from")
        if isinstance(start, str) and start.rstrip("/") == folder.rstrip("/"):
            stage = draft.values[STAGE]
            assert isinstance(stage, dict)
            del stage["init_from"]
            _retell(draft, "init_from", _FOLLOWS)
        projector = draft.read(MODEL, "projector")
        if (
            isinstance(projector, dict)
            and projector.get("init_from") == f"{folder.rstrip('/')}/mm_projector.bin"
        ):
            del projector["init_from"]
            _retell(draft, "model.projector.init_from", _FOLLOWS)


def _retell(draft: Draft, key: str, why: str) -> None:
    """Say of a setting that had a key why it needs none."""
    draft.entries = [
        replace(entry, key="", kind="needless", remark=why) if entry.key == key else entry
        for entry in draft.entries
    ]


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
    if draft.read(STAGE, "trainable") == ["projector"]:
        return "finetune" if draft.read(STAGE, "lora") is not None else "pretrain"
    return "finetune"


def _clean_name(name: str) -> str:
    return _NOT_IN_NAMES.sub("-", name).lstrip("._-")[:100]
