"""Everything that can be known to be wrong before a model is loaded, for every stage at once."""

from __future__ import annotations

import functools
import importlib.util
import netrc
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llava_recipes.data.images import BadImage, check_image
from llava_recipes.data.records import at_source, check_records, open_records
from llava_recipes.deepspeed_presets import DEEPSPEED_PRESETS
from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.files import expanded, odd_kind, real_path, system_folder
from llava_recipes.layouts import LAYOUTS
from llava_recipes.plan.data import every_record
from llava_recipes.plan.types import Plan, SourcePlan, StagePlan
from llava_recipes.recipe.load import LoadedRecipe
from llava_recipes.recipe.schema import LanguageModel, Model, Recipe, Source, Stage
from llava_recipes.runner.hand_off import Shapes, base_weights_problems, hand_off_problems, projector_problems
from llava_recipes.runner.run_folder import DONE, FolderState, find_obstacle, read_folder_state, stage_plan
from llava_recipes.versions import check_versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llava_recipes.data.prompts import Prompts


def wording_problems(plan: Plan, stages: Iterable[int]) -> Iterator[Problem]:
    """A tokenizer that cannot be loaded; tokens that a stage's template needs and it has not; chat templates
    that cannot be learned from."""
    from llava_recipes.data.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(plan.model.language_model, plan.model.image_tokens)
    except RecipeError as error:
        yield from error.problems
        return
    for index in stages:
        template = plan.stages[index].data.template
        if template is None or LAYOUTS[template].tokens:
            try:
                _prompts(plan, index, tokenizer)
            except RecipeError as error:
                yield from error.problems


def open_prompts(plan: Plan, index: int) -> Prompts:
    """What writes the conversations of a stage. Raises RecipeError at its place in the recipe."""
    from llava_recipes.data.tokenizer import load_tokenizer

    return _prompts(plan, index, load_tokenizer(plan.model.language_model, plan.model.image_tokens))


def _prompts(plan: Plan, index: int, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    from llava_recipes.data.prompts import Prompts

    try:
        return Prompts(plan.stages[index].data, tokenizer, start_end=plan.model.image_tokens.start_end)
    except RecipeError as error:
        problems = (replace(found, path=("stages", index, *(found.path or ()))) for found in error.problems)
        raise RecipeError(*problems) from None


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check_before_loading(loaded: LoadedRecipe, plan: Plan, stages: Collection[int]) -> None:
    """Raise RecipeError with every problem of models, data, folders and reporting, each at its line.

    `stages` are the numbers of those that are run: what the others need may be on another machine.
    """
    problems = [*model_problems(loaded, plan)]
    # A look at the model's own names needs what it is made of.
    is_there = not problems
    problems += _quantization_problems(plan)
    for index in stages:
        stage, path = plan.stages[index], ("stages", index)
        problems += _data_problems(stage, path)
        problems += _output_problems(plan, index, path)
        problems += _report_problems(stage, path)
        problems += _deepspeed_problems(stage, path)
        problems += _samples_problems(stage, path)
    is_fit = not problems
    shapes = _shapes_of(plan)
    if is_there:
        problems += base_weights_problems(plan.model)
        problems += projector_problems(plan.model, shapes)
        problems += hand_off_problems(plan, stages, shapes, fetch=True)
    if plan.model.sizes is None and not problems:
        try:
            problems += _freezing_problems(plan, shapes())
        except RecipeError as error:
            # A config of the hub that cannot be had.
            problems += error.problems
    # A model that is not there has no tokenizer either.
    if is_fit and not any(problem.path == ("model", "language_model") for problem in problems):
        problems += wording_problems(plan, stages)
    if problems:
        # What the model's parts say wrongly is met wherever its shapes are asked for.
        raise loaded.fail(*dict.fromkeys(problems))


def model_problems(loaded: LoadedRecipe, plan: Plan) -> Iterator[Problem]:
    """Folders and files of the model that are not there, or are not what they should be."""
    model = loaded.recipe.model
    language: KeyPath = ("model", "language_model")
    if isinstance(model.language_model, LanguageModel):
        source_path: KeyPath = (*language, "source")
        if model.language_model.tokenizer is not None:
            yield from _source_problems(
                model.language_model.tokenizer, (*language, "tokenizer"), "tokenizer", ()
            )
    else:
        source_path = language
    weights = plan.model.language_model.source
    if weights is not None:
        yield from _source_problems(weights, source_path, "language model", ("config.json",))
    if model.vision_tower.source is not None:
        tower: KeyPath = ("model", "vision_tower", "source")
        # A whole model that transformers saved has its pictures' settings in the other file.
        is_whole = (expanded(model.vision_tower.source) / "processor_config.json").is_file()
        needs = ("config.json", *(() if is_whole else ("preprocessor_config.json",)))
        yield from _source_problems(model.vision_tower.source, tower, "vision tower", needs)
    start = model.projector.init_from
    if start is not None and not Path(start).is_file():
        yield Problem(
            "the projector's initial weights are not there",
            code="weights-missing",
            path=("model", "projector", "init_from"),
            found=f"no file {start}",
            hint="give a `.bin` or `.safetensors` file, or leave `init_from` out for random weights",
        )


def _source_problems(source: str, path: KeyPath, what: str, needs: tuple[str, ...]) -> Iterator[Problem]:
    """A local folder must be there and whole; anything else must look like a hub id."""
    folder = expanded(source)
    if folder.is_dir():
        for name in needs:
            if not (folder / name).is_file():
                yield Problem(
                    f"the {what}'s folder has no {name}",
                    code="model-folder-is-incomplete",
                    path=path,
                    found=str(folder),
                )
    elif folder.exists():
        yield Problem(
            f"the {what}'s source is a file; a folder or a hub id is needed",
            code="model-source-is-a-file",
            path=path,
            found=source,
        )
    elif source.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(source):
        yield Problem(
            f"the {what}'s folder does not exist",
            code="folder-does-not-exist",
            path=path,
            found=f"no folder {source}",
            hint="give a folder, or a hub id such as lmsys/vicuna-7b-v1.5",
        )


def _quantization_problems(plan: Plan) -> Iterator[Problem]:
    """bitsandbytes must be here, and do its work on what this machine has."""
    quantization = plan.model.language_model.quantization
    if quantization is None:
        return
    path: KeyPath = ("model", "language_model", "quantization")
    if importlib.util.find_spec("bitsandbytes") is None:
        hint = "pip install 'llava-recipes[quantized]', or remove `quantization`"
        yield Problem("bitsandbytes is not installed", code="library-not-installed", path=path, hint=hint)
        return
    check_versions("quantized")
    from llava_recipes.model.placing import find_obstacle

    obstacle = find_obstacle(quantization)
    if obstacle is not None:
        hint = "quantization needs a GPU that bitsandbytes knows; remove it to train without"
        yield Problem(
            "bitsandbytes does not work on this machine",
            code="bitsandbytes-unusable",
            path=path,
            found=obstacle,
            hint=hint,
        )


def _data_problems(stage: StagePlan, path: KeyPath) -> Iterator[Problem]:
    for number, source in enumerate(stage.data.sources):
        yield from _source_data_problems(source, (*path, "data", "sources", number))
    validation = stage.data.validation
    if validation is not None and validation.split is None:
        for number, source in enumerate(validation.sources):
            yield from _source_data_problems(source, (*path, "data", "validation", "sources", number))


def _samples_problems(stage: StagePlan, path: KeyPath) -> Iterator[Problem]:
    """Pictures that are asked about during training, and are none."""
    for number, file in enumerate(stage.sampling.images if stage.sampling else ()):
        place = real_path(expanded(file))
        try:
            check_image(str(place.parent), place.name)
        except BadImage as error:
            where = (*path, "samples", "images", number)
            yield Problem("this picture cannot be used", code="bad-image", path=where, found=error.reason)


def _source_data_problems(source: SourcePlan, path: KeyPath) -> list[Problem]:
    """What is wrong with the records that a source uses, to train on or held out."""
    try:
        found = check_records(open_records([every_record(source)]))
    except RecipeError as error:
        found = list(error.problems)
    return at_source(found, path)


def _output_problems(plan: Plan, index: int, path: KeyPath) -> Iterator[Problem]:
    folder = Path(plan.stages[index].output_dir)
    obstacle = find_obstacle(folder)
    if obstacle is not None:
        yield Problem(
            "output_dir cannot be written to",
            code="output-cannot-be-written",
            path=(*path, "output_dir"),
            found=obstacle,
        )
    elif read_folder_state(folder, stage_plan(plan, index)).kind == "foreign":
        yield Problem(
            "output_dir holds files that no run of ours wrote; they stay untouched",
            code="output-dir-holds-files-no-run",
            path=(*path, "output_dir"),
            found=f"{folder} is not empty and has no plan.json",
            hint="choose another folder",
        )


def _report_problems(stage: StagePlan, path: KeyPath) -> Iterator[Problem]:
    wanted = stage.train.training_arguments.get("report_to")
    reports = wanted if isinstance(wanted, list) else [wanted]
    where = (*path, "train", "report_to")
    for name in ("wandb", "tensorboard"):
        if name in reports and importlib.util.find_spec(name) is None:
            yield Problem(
                f"{name} is not installed",
                code="library-not-installed",
                path=where,
                hint=f"pip install {name}, or write `none`",
            )
        elif name == "wandb" and name in reports and not _has_wandb_login():
            yield Problem(
                "Weights & Biases has no login on this machine",
                code="wandb-login-missing",
                path=where,
                hint="run `wandb login`, set WANDB_API_KEY or WANDB_MODE=offline, or write `report_to: none`",
            )


def _has_wandb_login() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _deepspeed_problems(stage: StagePlan, path: KeyPath) -> Iterator[Problem]:
    if stage.deepspeed is not None and importlib.util.find_spec("deepspeed") is None:
        yield Problem(
            "deepspeed is not installed",
            code="library-not-installed",
            path=(*path, "deepspeed"),
            hint="pip install deepspeed",
        )


def _shapes_of(plan: Plan) -> Callable[[], Shapes]:
    """What gives the shapes of the plan's model, which is built without weights at the first call."""

    @functools.cache
    def shapes() -> Shapes:
        from llava_recipes.model.assemble import skeleton_shapes

        return skeleton_shapes(plan.model)

    return shapes


def _freezing_problems(plan: Plan, shapes: Shapes) -> Iterator[Problem]:
    """What trains, for models whose parameter names only transformers knows."""
    from llava_recipes.plan.trainable import tuning_problems, what_trains

    quantized = plan.model.language_model.quantization is not None
    for index, stage in enumerate(plan.stages):
        trains = what_trains(shapes, stage)
        yield from tuning_problems(trains, stage, quantized=quantized, stage_path=("stages", index))


def waiting_problems(plan: Plan, chosen: Collection[int]) -> Iterator[Problem]:
    """Stages that a chosen one starts from, that are not chosen themselves, and that are not finished."""
    numbers = {stage.output_dir: index for index, stage in enumerate(plan.stages)}
    for index in sorted(chosen):
        stage = plan.stages[index]
        for folder in stage.starts_from:
            earlier = numbers.get(folder)
            if earlier is None or earlier in chosen:
                continue
            lack = _lack(Path(folder), read_folder_state(Path(folder), stage_plan(plan, earlier)))
            if lack is not None:
                name = plan.stages[earlier].name
                yield Problem(
                    f"stage `{stage.name}` starts from `{name}`, which is not finished",
                    code="run-not-finished",
                    path=("stages", index, "init_from"),
                    on_key=True,
                    found=lack,
                    hint=f"run it first, or both with `--from-stage {name}`; `init_from:` with a folder "
                    "starts from another run",
                )


def _lack(folder: Path, state: FolderState) -> str | None:
    """Why a stage's folder is no beginning for another stage, or None."""
    if state.kind == "done" and not state.differences:
        return None
    if state.kind == "done":
        return f"{folder} was trained by another plan: {state.differences[0]}"
    if state.kind == "new":
        return f"{folder} is empty" if folder.exists() else f"there is no folder {folder}"
    return f"{folder} has no {DONE}"


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
