"""What a plan needs to know from disk: configs, sizes of annotation files, DeepSpeed files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

from llava_recipes.deepspeed_presets import DEEPSPEED_PRESETS
from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.files import expanded
from llava_recipes.plan import catalog
from llava_recipes.plan.compile import Compiled, Earlier, Facts, compile_recipe
from llava_recipes.plan.exports import SENTENCEPIECE
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.foreign import folder_problems, read_object
from llava_recipes.recipe.load import LoadedRecipe
from llava_recipes.recipe.renames import did_you_mean
from llava_recipes.recipe.schema import LanguageModel, Model, Recipe, Source
from llava_recipes.runner.preflight import place_problems
from llava_recipes.runner.run_folder import PLAN, started_in

SENTENCEPIECE_FILE, TOKENIZER_FILE = "tokenizer.model", "tokenizer.json"


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
    """Read what there is. A file that is there and cannot be read becomes one of the facts' problems."""
    model, problems = loaded.recipe.model, list(place_problems(loaded.recipe))
    if problems:
        # Nothing is opened that might never end.
        raise RecipeError(*problems)
    source, revision, path = _language_source(model.language_model)
    language = _read_model_config(source, revision, catalog.LANGUAGE_MODELS, path, problems)
    tower = model.vision_tower
    tower_path = ("model", "vision_tower", "source")
    vision = _read_model_config(tower.source, tower.revision, catalog.VISION_TOWERS, tower_path, problems)
    problems += _code_problems(model)
    return Facts(
        language_config=language,
        vision_config=vision,
        tokenizer=_tokenizer_of(model.language_model),
        num_samples=_count_samples(loaded, problems),
        deepspeed_files=read_deepspeed_files(loaded, problems),
        earlier=_read_earlier(loaded.recipe),
        problems=tuple(problems),
    )


def _read_earlier(recipe: Recipe) -> dict[str, Earlier]:
    folders = {stage.init_from for stage in recipe.stages if stage.init_from is not None}
    if not folders:
        return {}
    # Here, since most recipes start from nothing and are read at once.

    return {folder: read_earlier(Path(folder)) for folder in folders}


def _language_source(choice: str | LanguageModel) -> tuple[str | None, str | None, KeyPath]:
    path: KeyPath = ("model", "language_model")
    if isinstance(choice, str):
        return choice, None, path
    return choice.source, choice.revision, (*path, "source")


def _read_model_config(
    source: str | None,
    revision: str | None,
    known: Mapping[str, object],
    path: KeyPath,
    problems: list[Problem],
) -> Config | None:
    """A config.json from a local folder, or from the hub's cache where the catalog has no numbers."""
    if source is None:
        return None
    file = Path(source) / "config.json"
    if not Path(source).is_dir():
        cached = None if source in known else _cached_file(source, revision, "config.json")
        if cached is None:
            return None
        file = cached
    return _read_object(file, path, problems) if file.is_file() else None


def _code_problems(model: Model) -> Iterator[Problem]:
    """Settings of the model's parts that name code, in local folders and in the hub's cache."""
    sources = [_language_source(model.language_model)]
    if isinstance(model.language_model, LanguageModel) and model.language_model.tokenizer is not None:
        sources.append((model.language_model.tokenizer, None, ("model", "language_model", "tokenizer")))
    tower = model.vision_tower
    sources.append((tower.source, tower.revision, ("model", "vision_tower", "source")))
    for source, revision, path in dict.fromkeys(sources):
        folder = None if source is None else _model_folder(source, revision)
        if folder is not None:
            yield from folder_problems(folder, path)


def _model_folder(source: str, revision: str | None) -> Path | None:
    folder = expanded(source)
    if folder.is_dir():
        return folder
    cached = (_cached_file(source, revision, name) for name in ("config.json", "tokenizer_config.json"))
    return next((file.parent for file in cached if file is not None), None)


def _tokenizer_of(choice: str | LanguageModel) -> str | None:
    """The kind of the tokenizer, from a local folder or from the hub's cache."""
    source, revision, _ = _language_source(choice)
    if isinstance(choice, LanguageModel) and choice.tokenizer not in (None, source):
        source, revision = choice.tokenizer, None
    if source is None:
        return None
    folder = expanded(source)
    if folder.is_dir():
        return tokenizer_kind(folder)
    cached = [_cached_file(source, revision, name) for name in (SENTENCEPIECE_FILE, TOKENIZER_FILE)]
    return next((tokenizer_kind(file.parent) for file in cached if file is not None), None)


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
    # Unlike Path's, this takes a name that is too long for one of a file that is not there.
    return file if os.path.isfile(file) else None


def _read_object(file: Path, path: KeyPath, problems: list[Problem]) -> Config | None:
    """The mapping that a JSON file holds; what is wrong with it goes to `problems`."""
    try:
        return read_object(file, path=path)
    except RecipeError as error:
        problems += error.problems
        return None


def _count_samples(loaded: LoadedRecipe, problems: list[Problem]) -> dict[str, int]:
    """Records of every annotation file that is there and whose `num_samples` is not given."""
    counts: dict[str, int] = {}
    for path, source in _all_sources(loaded):
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


def _all_sources(loaded: LoadedRecipe) -> Iterator[tuple[KeyPath, Source]]:
    for index, stage in enumerate(loaded.recipe.stages):
        path: KeyPath = ("stages", index, "data")
        for number, source in enumerate(stage.data.sources):
            yield (*path, "sources", number), source
        validation = stage.data.validation
        for number, source in enumerate((validation and validation.sources) or ()):
            yield (*path, "validation", "sources", number), source


def read_deepspeed_files(loaded: LoadedRecipe, problems: list[Problem]) -> dict[str, Config]:
    """The DeepSpeed files that a recipe names and that are here; adds a problem for each that isn't JSON."""
    found: dict[str, Config] = {}
    for index, stage in enumerate(loaded.recipe.stages):
        choice = stage.deepspeed
        if (
            not isinstance(choice, str)
            or choice in ("none", *DEEPSPEED_PRESETS)
            or not Path(choice).is_file()
        ):
            continue
        config = _read_object(Path(choice), ("stages", index, "deepspeed"), problems)
        if config is not None:
            found[choice] = config
    return found


ALL_BUT_THE_TOWER = frozenset({"projector", "language_model", "lm_head"})


def read_earlier(folder: Path) -> Earlier:
    """The folders whose weights lie under those of a run, the oldest first, as seen from here.

    Empty for what is no run of ours; its plan is checked when its weights are looked at.
    """
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
        # A run that trained all of it itself stands alone, whatever became of the folder before it.
        gone = not place.exists() and trained >= ALL_BUT_THE_TOWER
        (missing if gone else found).append(str(place))
    return Earlier(tuple(found), tuple(missing))


def _seen_from_here(path: Path, folder: Path, output_dir: str) -> Path:
    """A path of a run's plan, which starts where the run was started: told by the run's own path."""
    start = None if path.is_absolute() or path.exists() else started_in(folder, output_dir)
    return start / path if start is not None and (start / path).exists() else path
