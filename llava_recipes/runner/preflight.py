"""Find whatever is wrong with a run before a model is loaded, in every stage at once."""

from __future__ import annotations

import functools
import importlib.util
import netrc
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llava_recipes.data.records import at_source, check_records, open_records
from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.files import expanded, real_path
from llava_recipes.layouts import LAYOUTS
from llava_recipes.plan.arguments import packages_of
from llava_recipes.plan.data import every_record
from llava_recipes.plan.trainable import tuning_problems, what_trains
from llava_recipes.plan.types import Plan, SourcePlan, StagePlan
from llava_recipes.recipe.load import LoadedRecipe
from llava_recipes.recipe.locations import HUB_ID
from llava_recipes.recipe.schema import LanguageModel, Recipe
from llava_recipes.runner.free_space import free_space_problems
from llava_recipes.runner.hand_off import Shapes, base_weights_problems, hand_off_problems, projector_problems
from llava_recipes.runner.history import HISTORY
from llava_recipes.runner.inputs import compare_inputs
from llava_recipes.runner.launch import has_gpu
from llava_recipes.runner.refusals import written
from llava_recipes.runner.results import DONE
from llava_recipes.runner.run_folder import (
    PLAN,
    FolderState,
    find_obstacle,
    folder_kind,
    read_folder_state,
    stage_plan,
)
from llava_recipes.versions import check_versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llava_recipes.data.prompts import Prompts


def check_before_loading(loaded: LoadedRecipe, plan: Plan, stages: Collection[int]) -> None:
    """Raise RecipeError with every problem of models, data, folders and reporting, each at its line.

    `stages` are the numbers of those to run: what the others need may be on another machine.
    """
    problems = [*model_problems(loaded, plan)]
    # The model's own names are known only where its files exist.
    has_files = not problems
    problems += _quantization_problems(plan)
    for index in stages:
        stage, path = plan.stages[index], ("stages", index)
        problems += _data_problems(stage, path)
        problems += _output_problems(plan, index, path)
        problems += _report_problems(stage, path)
        problems += _deepspeed_problems(stage, path)
        problems += _optimizer_problems(stage, path)
        problems += _samples_problems(stage, path)
    problems += free_space_problems(plan, stages)
    is_sound = not problems
    shapes = _shapes_of(plan)
    if has_files:
        problems += base_weights_problems(plan.model)
        problems += projector_problems(plan.model, shapes)
        problems += hand_off_problems(plan, stages, shapes, fetch=True)
    if plan.model.sizes is None and not problems:
        try:
            problems += _freezing_problems(plan, shapes())
        except RecipeError as error:
            # A config that cannot be fetched from the hub.
            problems += error.problems
    # A model that does not exist has no tokenizer either.
    if is_sound and not any(problem.path == ("model", "language_model") for problem in problems):
        problems += _prompt_problems(plan, stages)
    if problems:
        # A fault in the model's files is found again wherever its shapes are needed.
        raise loaded.fail(*dict.fromkeys(problems))


def node_problems(plan: Plan, stages: Collection[int]) -> Iterator[Problem]:
    """What a machine lacks that trains along: data, base weights, libraries.

    The run's folders are the first machine's, and so are the weights that a stage starts from.
    """
    yield from _quantization_problems(plan)
    given = {
        "language model": (plan.model.language_model.source, ("model", "language_model")),
        "tokenizer": (plan.model.language_model.tokenizer, ("model", "language_model")),
        "vision tower": (plan.model.vision_tower.source, ("model", "vision_tower", "source")),
    }
    for what, (source, path) in given.items():
        if source is not None:
            yield from _source_problems(source, path, what, ())
    yield from base_weights_problems(plan.model)
    yield from _start_problems(plan.model.projector.init_from)
    for index in stages:
        stage, place = plan.stages[index], ("stages", index)
        yield from _data_problems(stage, place)
        yield from _deepspeed_problems(stage, place)
        yield from _optimizer_problems(stage, place)


def model_problems(loaded: LoadedRecipe, plan: Plan) -> Iterator[Problem]:
    """Folders and files of the model that do not exist, or are not what they should be."""
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
        # A whole model that transformers saved has the settings of images in the other file.
        is_whole = (expanded(model.vision_tower.source) / "processor_config.json").is_file()
        needs = ("config.json", *(() if is_whole else ("preprocessor_config.json",)))
        yield from _source_problems(model.vision_tower.source, tower, "vision tower", needs)
    yield from _start_problems(model.projector.init_from)


def _start_problems(start: str | None) -> Iterator[Problem]:
    if start is not None and not Path(start).is_file():
        yield Problem(
            "the projector's initial weights do not exist",
            code="weights-missing",
            path=("model", "projector", "init_from"),
            found=f"no file {start}",
            hint="name a `.bin` or `.safetensors` file, or leave `init_from` out for random weights",
        )


def _source_problems(source: str, path: KeyPath, what: str, needs: tuple[str, ...]) -> Iterator[Problem]:
    """A source that is neither a local folder with the files that it needs nor, by its form, a hub id."""
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
    elif source.startswith((".", "/", "~")) or not HUB_ID.fullmatch(source):
        yield Problem(
            f"the {what}'s folder does not exist",
            code="folder-does-not-exist",
            path=path,
            found=f"no folder {source}",
            hint="name a folder, or a hub id such as lmsys/vicuna-7b-v1.5",
        )


def _quantization_problems(plan: Plan) -> Iterator[Problem]:
    """bitsandbytes, where it is missing or does not work on this machine."""
    quantization = plan.model.language_model.quantization
    if quantization is None:
        return
    path: KeyPath = ("model", "language_model", "quantization")
    if importlib.util.find_spec("bitsandbytes") is None:
        hint = "pip install '.[quantized]' in the checkout, or remove `quantization`"
        yield Problem("bitsandbytes is not installed", code="library-not-installed", path=path, hint=hint)
        return
    check_versions("quantized")
    from llava_recipes.model.placing import find_obstacle

    obstacle = find_obstacle(quantization)
    if obstacle is not None:
        hint = "quantization needs a GPU that bitsandbytes supports; or remove `quantization`"
        yield Problem(
            "bitsandbytes does not work on this machine",
            code="bitsandbytes-unusable",
            path=path,
            found=obstacle,
            hint=hint,
        )


def _data_problems(stage: StagePlan, path: KeyPath) -> Iterator[Problem]:
    for where, source in stage_sources(stage, path):
        try:
            found = check_records(open_records([source]))
        except RecipeError as error:
            found = list(error.problems)
        yield from at_source(found, where)


def stage_sources(stage: StagePlan, path: KeyPath) -> Iterator[tuple[KeyPath, SourcePlan]]:
    """Every source of a stage with each of its records once, and its path in the recipe."""
    for number, source in enumerate(stage.data.sources):
        yield (*path, "data", "sources", number), every_record(source)
    validation = stage.data.validation
    if validation is not None and validation.split is None:
        for number, source in enumerate(validation.sources):
            yield (*path, "data", "validation", "sources", number), every_record(source)


def _samples_problems(stage: StagePlan, path: KeyPath) -> Iterator[Problem]:
    """Images of `samples` that cannot be used."""
    # Here and below, so that a recipe is refused without waiting for torch where nothing of it is needed.
    from llava_recipes.data.images import BadImage, check_image

    for number, file in enumerate(stage.sampling.images if stage.sampling else ()):
        place = real_path(expanded(file))
        try:
            check_image(str(place.parent), place.name)
        except BadImage as error:
            where = (*path, "samples", "images", number)
            yield Problem("this image cannot be used", code="bad-image", path=where, found=error.reason)


def _output_problems(plan: Plan, index: int, path: KeyPath) -> Iterator[Problem]:
    folder = Path(plan.stages[index].output_dir)
    obstacle = find_obstacle(folder)
    if obstacle is not None:
        hint = "choose another folder"
        if obstacle.endswith("not writable"):
            hint = f"make it writable, or {hint}"
        if (folder / DONE).is_file() and index + 1 < len(plan.stages):
            hint += (
                f"; `--from-stage {plan.stages[index + 1].name}` leaves this stage, which is done, as it is"
            )
        yield Problem(
            "output_dir cannot be written to",
            code="output-cannot-be-written",
            path=(*path, "output_dir"),
            found=obstacle,
            hint=hint,
        )
    elif folder_kind(folder) == "foreign":
        is_run = any((folder / name).is_file() for name in (DONE, HISTORY))
        yield Problem(
            f"output_dir contains a run without its {PLAN}"
            if is_run
            else "output_dir contains files that no run of llava-recipe wrote; they stay untouched",
            code="output-dir-holds-files-no-run",
            path=(*path, "output_dir"),
            found=f"{folder} is not empty and has no {PLAN}",
            hint=f"restore {PLAN} from a copy, or choose another folder"
            if is_run
            else "choose another folder",
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
                hint=f"pip install {name}, or write `report_to: none`",
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
            "DeepSpeed is not installed",
            code="library-not-installed",
            path=(*path, "deepspeed"),
            hint="pip install deepspeed",
        )


def _optimizer_problems(stage: StagePlan, path: KeyPath) -> Iterator[Problem]:
    optimizer = str(stage.train.training_arguments.get("optim"))
    for module, package in packages_of(optimizer):
        if importlib.util.find_spec(module) is None:
            yield Problem(
                f"`optim: {optimizer}` needs {package}, which is not installed",
                code="library-not-installed",
                path=(*path, "train", "optim"),
                hint=f"pip install {package}, or write `optim: adamw_torch`",
            )
    if optimizer == "galore_adamw_8bit" and not has_gpu():
        yield Problem(
            f"`optim: {optimizer}` needs a GPU",
            code="optimizer-needs-a-gpu",
            path=(*path, "train", "optim"),
            hint="write `optim: galore_adamw`, or `optim: adamw_torch`",
        )


def _shapes_of(plan: Plan) -> Callable[[], Shapes]:
    """A function that returns the shapes of the plan's model, built without weights at its first call."""

    @functools.cache
    def shapes() -> Shapes:
        from llava_recipes.model.assemble import skeleton_shapes

        return skeleton_shapes(plan.model)

    return shapes


def _freezing_problems(plan: Plan, shapes: Shapes) -> Iterator[Problem]:
    """What is wrong with `trainable` and its like, for models whose names only transformers knows."""
    quantized = plan.model.language_model.quantization is not None
    for index, stage in enumerate(plan.stages):
        trains = what_trains(shapes, stage)
        yield from tuning_problems(trains, stage, quantized=quantized, stage_path=("stages", index))


def _prompt_problems(plan: Plan, stages: Iterable[int]) -> Iterator[Problem]:
    """What keeps prompts from being written.

    A tokenizer that cannot be loaded or lacks tokens of a stage's template; a chat template that does not
    show what to learn.
    """
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
                open_prompts(plan, index, tokenizer)
            except RecipeError as error:
                yield from error.problems


def open_prompts(plan: Plan, index: int, tokenizer: PreTrainedTokenizerBase | None = None) -> Prompts:
    """What writes the conversations of stage `index`; without `tokenizer` the plan's is loaded.

    Raises RecipeError at its place in the recipe.
    """
    from llava_recipes.data.prompts import Prompts
    from llava_recipes.data.tokenizer import load_tokenizer

    if tokenizer is None:
        tokenizer = load_tokenizer(plan.model.language_model, plan.model.image_tokens)
    try:
        return Prompts(plan.stages[index].data, tokenizer, start_end=plan.model.image_tokens.start_end)
    except RecipeError as error:
        problems = (replace(found, path=("stages", index, *(found.path or ()))) for found in error.problems)
        raise RecipeError(*problems) from None


def waiting_problems(plan: Plan, chosen: Collection[int], recipe: Recipe) -> Iterator[Problem]:
    """Chosen stages that start from one that is neither chosen nor finished."""
    numbers = {stage.output_dir: index for index, stage in enumerate(plan.stages)}
    for index in sorted(chosen):
        stage = plan.stages[index]
        for folder in stage.starts_from:
            earlier = numbers.get(folder)
            if earlier is None or earlier in chosen:
                continue
            own = stage_plan(plan, earlier)
            moved = compare_inputs(Path(folder), own).moved
            state = read_folder_state(Path(folder), own, moved=moved)
            lack, name = _lack(Path(folder), state), plan.stages[earlier].name
            by_name = recipe.stages[index].init_from in (None, *(each.name for each in recipe.stages))
            # One that is named by its folder may be of any plan.
            if state.kind == "done" and state.decisive and by_name:
                yield Problem(
                    f"stage `{stage.name}` starts from `{name}`, which another plan has trained",
                    code="run-not-finished",
                    path=("stages", index, "init_from"),
                    on_key=True,
                    found=f"{folder} was trained with another plan: {state.decisive[0]}",
                    hint=f"write `init_from: {written(folder)}` in `{stage.name}` to start from it as it is; "
                    f"or give `{name}` another `output_dir` and run both with `--from-stage {name}`",
                )
            elif lack is not None:
                yield Problem(
                    f"stage `{stage.name}` starts from `{name}`, which is not finished",
                    code="run-not-finished",
                    path=("stages", index, "init_from"),
                    on_key=True,
                    found=lack,
                    hint=f"run it first, or run both with `--from-stage {name}`; `init_from:` with a folder "
                    "starts from another run",
                )


def _lack(folder: Path, state: FolderState) -> str | None:
    """Why no stage can start from a stage's folder, or None."""
    if state.kind == "done":
        return None
    if state.kind == "new":
        return f"{folder} is empty" if folder.exists() else f"no folder {folder}"
    return f"{folder} has no {PLAN if state.kind == 'foreign' else DONE}"
