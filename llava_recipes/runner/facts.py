"""Read from disk what a plan needs: configs, kinds of tokenizer, numbers of samples, earlier runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

from llava_recipes.deepspeed_presets import DEEPSPEED_PRESETS
from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.files import expanded, odd_kind, system_folder
from llava_recipes.plan import families
from llava_recipes.plan.compile import Compiled, Earlier, Facts, compile_recipe
from llava_recipes.plan.exports import SENTENCEPIECE
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.foreign import folder_problems, read_object
from llava_recipes.recipe.load import LoadedRecipe
from llava_recipes.recipe.renames import did_you_mean
from llava_recipes.recipe.schema import LanguageModel, Model, Recipe, Source, Stage

ALL_BUT_THE_TOWER = frozenset({"projector", "language_model", "lm_head"})
SENTENCEPIECE_FILE, TOKENIZER_FILE = "tokenizer.model", "tokenizer.json"

Config = dict[str, JsonValue]


def choose_stages(
    loaded: LoadedRecipe, *, names: Sequence[str] = (), first: str | None = None
) -> tuple[int, ...]:
    """Numbers of the stages with these names, or of all from `first` on, in the recipe's order.

    All of them where neither is given. Raises RecipeError for a name that no stage has.
    """
    known = [stage.name for stage in loaded.recipe.stages]
    foreign = [name for name in (*names, *((first,) if first else ())) if name not in known]
    if foreign:
        raise loaded.fail(
            *(
                Problem(
                    f"the recipe has no stage `{name}`",
                    code="unknown-stage",
                    path=("stages",),
                    on_key=True,
                    found=f"its stages are {', '.join(f'`{each}`' for each in known)}",
                    hint=did_you_mean(name, known),
                )
                for name in foreign
            )
        )
    if first is not None:
        return tuple(range(known.index(first), len(known)))
    return tuple(index for index, name in enumerate(known) if not names or name in names)


def plan_recipe(loaded: LoadedRecipe, *, world_size: int) -> Plan:
    """The plan of a loaded recipe. Raises RecipeError with every problem at its line."""
    return compile_loaded(loaded, world_size=world_size).plan


def compile_loaded(loaded: LoadedRecipe, *, world_size: int) -> Compiled:
    """The plan with all that was found out on the way. Raises as `plan_recipe` does."""
    try:
        return compile_recipe(loaded.recipe, world_size=world_size, facts=gather_facts(loaded))
    except RecipeError as error:
        raise loaded.fail(*error.problems) from None


def gather_facts(loaded: LoadedRecipe) -> Facts:
    """Read the files that exist. One that exists and cannot be read becomes one of the facts' problems.

    Raises RecipeError, before anything is opened, for pipes and other places that a read might never leave.
    """
    recipe, problems = loaded.recipe, list(_place_problems(loaded.recipe))
    if problems:
        raise RecipeError(*problems)
    language, *_, tower = _model_sources(recipe.model)
    language_config = _read_config(*language, families.LANGUAGE_MODELS, problems)
    vision_config = _read_config(*tower, families.VISION_TOWERS, problems)
    problems += _code_problems(recipe.model)
    starts = {stage.init_from for stage in recipe.stages if stage.init_from is not None}
    return Facts(
        language_config=language_config,
        vision_config=vision_config,
        tokenizer=_tokenizer_of(recipe.model.language_model),
        num_samples=_count_samples(recipe, problems),
        deepspeed_files=read_deepspeed_files(loaded, problems),
        earlier={folder: _read_earlier(Path(folder)) for folder in starts},
        problems=tuple(problems),
    )


def _place_problems(recipe: Recipe) -> Iterator[Problem]:
    """Pipes, sockets, devices and files of the system where a recipe names a file or a folder."""
    for path, place in _places(recipe):
        kind = odd_kind(place)
        if kind is None and path[-1] == "output_dir" and (folder := system_folder(place)) is not None:
            kind = f"a place in {folder}"
        if kind is not None:
            key = next(segment for segment in reversed(path) if isinstance(segment, str))
            yield Problem(
                f"`{key}` leads to {kind}, not to an ordinary file or folder",
                code="not-an-ordinary-file",
                path=path,
                found=place,
                hint="name an ordinary file or folder; pipes and devices are not read",
            )


def _places(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """Every file and folder that a recipe names, hub ids among them."""
    given: list[tuple[KeyPath, str | None]] = [
        (path, source) for path, source, _ in _model_sources(recipe.model)
    ]
    given.append((("model", "projector", "init_from"), recipe.model.projector.init_from))
    names = {"base", *(stage.name for stage in recipe.stages)}
    for index, stage in enumerate(recipe.stages):
        path: KeyPath = ("stages", index)
        for where, source in _sources(stage, path):
            given += [((*where, "annotations"), source.annotations), ((*where, "images"), source.images)]
        if stage.init_from not in names:
            given.append(((*path, "init_from"), stage.init_from))
        given.append(((*path, "deepspeed"), _deepspeed_file(stage)))
        for number, file in enumerate((stage.samples and stage.samples.images) or ()):
            given.append(((*path, "samples", "images", number), file))
        given.append(((*path, "output_dir"), stage.output_dir))
    yield from ((path, place) for path, place in given if place is not None)


def _model_sources(model: Model) -> Iterator[tuple[KeyPath, str | None, str | None]]:
    """Path in the recipe, folder or hub id, and revision: language model, tokenizer, tower."""
    language, path = model.language_model, ("model", "language_model")
    if isinstance(language, LanguageModel):
        yield (*path, "source"), language.source, language.revision
        yield (*path, "tokenizer"), language.tokenizer, None
    else:
        yield path, language, None
    yield ("model", "vision_tower", "source"), model.vision_tower.source, model.vision_tower.revision


def _sources(stage: Stage, path: KeyPath) -> Iterator[tuple[KeyPath, Source]]:
    for number, source in enumerate(stage.data.sources):
        yield (*path, "data", "sources", number), source
    validation = stage.data.validation
    for number, source in enumerate((validation and validation.sources) or ()):
        yield (*path, "data", "validation", "sources", number), source


def _deepspeed_file(stage: Stage) -> str | None:
    choice = stage.deepspeed
    return choice if isinstance(choice, str) and choice not in ("none", *DEEPSPEED_PRESETS) else None


def _read_config(
    path: KeyPath,
    source: str | None,
    revision: str | None,
    known: Mapping[str, object],
    problems: list[Problem],
) -> Config | None:
    """A config.json from a local folder, or from the hub's cache where the catalog has no numbers."""
    if source is None:
        return None
    file: Path | None = Path(source) / "config.json"
    if not Path(source).is_dir():
        file = None if source in known else _cached_file(source, revision, "config.json")
    return _read_object(file, path, problems) if file is not None and file.is_file() else None


def _code_problems(model: Model) -> Iterator[Problem]:
    """Settings of the model's parts that name code, in local folders and in the hub's cache."""
    for path, source, revision in _model_sources(model):
        folder = model_folder(source, revision, ("config.json", "tokenizer_config.json"))
        if folder is not None:
            yield from folder_problems(folder, path)


def _tokenizer_of(choice: str | LanguageModel) -> str | None:
    """The kind of the tokenizer, from a local folder or from the hub's cache."""
    source, revision = (choice, None) if isinstance(choice, str) else (choice.source, choice.revision)
    if isinstance(choice, LanguageModel) and choice.tokenizer not in (None, source):
        source, revision = choice.tokenizer, None
    folder = model_folder(source, revision, (SENTENCEPIECE_FILE, TOKENIZER_FILE))
    return None if folder is None else tokenizer_kind(folder)


def tokenizer_kind(folder: Path) -> str | None:
    """`sentencepiece`, or the type that tokenizer.json gives its model: `BPE`, `WordLevel`, ….

    None where the folder has neither file, or one that cannot be read.
    """
    if (folder / SENTENCEPIECE_FILE).is_file():
        return SENTENCEPIECE
    try:
        model = json.loads((folder / TOKENIZER_FILE).read_text("utf-8"))["model"]
        # Files of the first versions leave it out, and only byte pair encoding was written by them.
        return str(model.get("type") or "BPE")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def model_folder(source: str | None, revision: str | None, names: tuple[str, ...]) -> Path | None:
    """A local folder, or that of the hub's cache with one of these files; None where neither exists."""
    if source is None:
        return None
    folder = expanded(source)
    if folder.is_dir():
        return folder
    cached = (_cached_file(source, revision, name) for name in names)
    return next((file.parent for file in cached if file is not None), None)


def _cached_file(source: str, revision: str | None, name: str) -> Path | None:
    """Where the hub's cache keeps a file of a model that was downloaded before."""
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    cache = expanded(os.environ.get("HF_HUB_CACHE") or home / "hub")
    folder = cache / f"models--{source.replace('/', '--')}"
    wanted = revision or "main"
    try:
        commit = (folder / "refs" / wanted).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = wanted
    file = folder / "snapshots" / commit / name
    # Unlike Path's, this takes a name that is too long for any file.
    return file if os.path.isfile(file) else None


def _read_object(file: Path, path: KeyPath, problems: list[Problem]) -> Config | None:
    """The mapping that a JSON file contains; what is wrong with it goes to `problems`."""
    try:
        return read_object(file, path=path)
    except RecipeError as error:
        problems += error.problems
        return None


def _count_samples(recipe: Recipe, problems: list[Problem]) -> dict[str, int]:
    """Records of every annotation file that exists and whose `num_samples` is not set."""
    counts: dict[str, int] = {}
    stages = enumerate(recipe.stages)
    for path, source in (each for index, stage in stages for each in _sources(stage, ("stages", index))):
        file = source.annotations
        if source.num_samples is not None or file in counts:
            continue
        from llava_recipes.data.records import annotations_exist, open_file

        if not annotations_exist(file):
            continue
        try:
            counts[file] = len(open_file(file))
        except RecipeError as error:
            problems += [
                problem if problem.mark else replace(problem, path=(*path, "annotations"))
                for problem in error.problems
            ]
    return counts


def read_deepspeed_files(loaded: LoadedRecipe, problems: list[Problem]) -> dict[str, Config]:
    """The DeepSpeed files of a recipe that exist here; adds a problem for each that isn't JSON."""
    found: dict[str, Config] = {}
    for index, stage in enumerate(loaded.recipe.stages):
        file = _deepspeed_file(stage)
        if file is not None and Path(file).is_file():
            config = _read_object(Path(file), ("stages", index, "deepspeed"), problems)
            if config is not None:
                found[file] = config
    return found


def _read_earlier(folder: Path) -> Earlier:
    """The folders that a run was started from, the oldest first, as seen from here.

    Empty for what is neither a run of ours nor a checkpoint of one; its plan is checked when its weights are
    looked at.
    """
    from llava_recipes.runner.run_folder import PLAN
    from llava_recipes.train.checkpoints import SEAL

    if (folder / SEAL).is_file() and not (folder / PLAN).is_file():
        folder = folder.parent

    try:
        plan = json.loads((folder / PLAN).read_text("utf-8"))
        (stage,) = plan["stages"]
        started = [str(each) for each in stage["starts_from"]]
        output_dir, trained = str(stage["output_dir"]), set(stage["trainable_modules"] or ())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Earlier((), ())
    found: list[str] = []
    missing: list[str] = []
    for each in started:
        place = _seen_from_here(Path(each), folder, output_dir)
        # A run that trained all of it itself needs no earlier folder.
        gone = not place.exists() and trained >= ALL_BUT_THE_TOWER
        (missing if gone else found).append(str(place))
    return Earlier(tuple(found), tuple(missing))


def _seen_from_here(path: Path, folder: Path, output_dir: str) -> Path:
    """A path of a run's plan, which starts where the run was started; the run's own path shows where."""
    from llava_recipes.runner.run_folder import started_in

    start = None if path.is_absolute() or path.exists() else started_in(folder, output_dir)
    return start / path if start is not None and (start / path).exists() else path
