"""Every path of a recipe that leads to what is no ordinary file: found before anything is opened."""

from __future__ import annotations

from collections.abc import Iterator

from llava_recipes.deepspeed_presets import DEEPSPEED_PRESETS
from llava_recipes.files import odd_kind, system_folder
from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.schema import LanguageModel, Model, Recipe, Source, Stage


def place_problems(recipe: Recipe) -> Iterator[Problem]:
    """Pipes, sockets, devices and files of the system where a recipe names a file or a folder."""
    for path, place in (*_places_of_model(recipe.model), *_places_of_stages(recipe)):
        kind = odd_kind(place)
        if kind is not None:
            yield _problem(path, place, kind)
    for index, stage in enumerate(recipe.stages):
        folder = system_folder(stage.output_dir)
        if folder is not None and odd_kind(stage.output_dir) is None:
            yield _problem(("stages", index, "output_dir"), stage.output_dir, f"a place in {folder}")


def _problem(path: KeyPath, place: str, kind: str) -> Problem:
    key = next(segment for segment in reversed(path) if isinstance(segment, str))
    return Problem(
        f"`{key}` leads to {kind}, not to an ordinary file or folder",
        code="not-an-ordinary-file",
        path=path,
        found=place,
        hint="name an ordinary file or folder; pipes and devices are not read",
    )


def _places_of_model(model: Model) -> Iterator[tuple[KeyPath, str]]:
    language = model.language_model
    if isinstance(language, LanguageModel):
        yield from _given(("model", "language_model", "source"), language.source)
        yield from _given(("model", "language_model", "tokenizer"), language.tokenizer)
    else:
        yield ("model", "language_model"), language
    yield from _given(("model", "vision_tower", "source"), model.vision_tower.source)
    yield from _given(("model", "projector", "init_from"), model.projector.init_from)


def _places_of_stages(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    names = {"base", *(stage.name for stage in recipe.stages)}
    for index, stage in enumerate(recipe.stages):
        path: KeyPath = ("stages", index)
        for where, source in _sources(stage, path):
            yield (*where, "annotations"), source.annotations
            yield from _given((*where, "images"), source.images)
        if stage.init_from not in names:
            yield from _given((*path, "init_from"), stage.init_from)
        if isinstance(stage.deepspeed, str) and stage.deepspeed not in ("none", *DEEPSPEED_PRESETS):
            yield (*path, "deepspeed"), stage.deepspeed
        for number, file in enumerate((stage.samples and stage.samples.images) or ()):
            yield (*path, "samples", "images", number), file
        yield (*path, "output_dir"), stage.output_dir


def _sources(stage: Stage, path: KeyPath) -> Iterator[tuple[KeyPath, Source]]:
    for number, source in enumerate(stage.data.sources):
        yield (*path, "data", "sources", number), source
    validation = stage.data.validation
    for number, source in enumerate((validation and validation.sources) or ()):
        yield (*path, "data", "validation", "sources", number), source


def _given(path: KeyPath, place: str | None) -> Iterator[tuple[KeyPath, str]]:
    if place is not None:
        yield path, place
