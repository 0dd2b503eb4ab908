"""From a recipe to a plan for a number of processes: every derived value, and every error at its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from llava_recipes.deepspeed_presets import DEEPSPEED_PRESETS
from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.plan import deepspeed
from llava_recipes.plan.advice import advise
from llava_recipes.plan.arguments import check_arguments, plan_train
from llava_recipes.plan.batch import (
    BatchSizes,
    batch_notes,
    count_evaluations,
    count_steps,
    derive_batch,
    explain_batch,
)
from llava_recipes.plan.data import plan_data, plan_sampling
from llava_recipes.plan.exports import export_warnings
from llava_recipes.plan.model import PlannedModel, plan_model
from llava_recipes.plan.trainable import (
    Trains,
    groups_of,
    optimizer_problems,
    quantized_stage_problems,
    tuning_problems,
    what_trains,
)
from llava_recipes.plan.types import PLAN_VERSION, DataPlan, ParamGroupPlan, Plan, StagePlan
from llava_recipes.recipe.renames import did_you_mean
from llava_recipes.recipe.scalars import say_number
from llava_recipes.recipe.schema import Recipe


@dataclass(frozen=True)
class Earlier:
    """The runs that an earlier run started from itself, the oldest first."""

    folders: tuple[str, ...]
    missing: tuple[str, ...]
    """Deleted, and not needed: the run trained all of language model and projector itself."""


@dataclass(frozen=True)
class Facts:
    """What was read from disk for a recipe; compiling reads nothing itself."""

    language_config: Mapping[str, JsonValue] | None = None
    """Config found on disk; inline configs and the catalog need no disk."""
    vision_config: Mapping[str, JsonValue] | None = None
    tokenizer: str | None = None
    """The kind of the tokenizer as in `plan.exports`; None where it isn't available."""
    num_samples: Mapping[str, int] = field(default_factory=dict)
    """Records of the annotation files whose `num_samples` the recipe leaves out."""
    deepspeed_files: Mapping[str, dict[str, JsonValue]] = field(default_factory=dict)
    earlier: Mapping[str, Earlier] = field(default_factory=dict)
    """By the folder of another run in an `init_from`."""
    problems: tuple[Problem, ...] = ()
    """Files that exist but cannot be read; reported with all other problems."""


@dataclass(frozen=True)
class Compiled:
    """A plan, the model that it was counted from, and the warnings about it."""

    plan: Plan
    model: PlannedModel
    trains: tuple[Trains, ...]
    """What each stage trains; empty without sizes."""
    warnings: tuple[Problem, ...]


def compile_recipe(recipe: Recipe, *, world_size: int, facts: Facts) -> Compiled:
    """The plan of a recipe for `world_size` processes.

    Raises RecipeError with every problem at once; their paths are those of the recipe.
    """
    problems, notes = list(facts.problems), list[str]()
    model = plan_model(
        recipe.model,
        language_config=facts.language_config,
        vision_config=facts.vision_config,
        image_newline=any(stage.data.mm_patch_merge_type == "spatial_unpad" for stage in recipe.stages),
    )
    reported = {problem.path for problem in problems}
    problems += [problem for problem in model.problems if problem.path not in reported]
    notes += model.notes
    quantization = model.plan.language_model.quantization
    stages: list[StagePlan | None] = []
    trains: list[Trains] = []
    for index, stage in enumerate(recipe.stages):
        compiled = _StageCompiler(recipe, index, model, world_size, facts)
        planned_stage = compiled.plan()
        problems += compiled.problems
        trains += [compiled.trains] if compiled.trains else []
        if planned_stage is not None and quantization is not None:
            path: KeyPath = ("stages", index)
            problems += quantized_stage_problems(quantization, planned_stage, stages, stage_path=path)
        stages.append(planned_stage)
        prefix = f"stage {stage.name}: " if len(recipe.stages) > 1 else ""
        notes += [f"{prefix}{note}" for note in compiled.notes]
    if problems:
        raise RecipeError(*problems)
    planned = tuple(stage for stage in stages if stage is not None)
    warnings = (
        *advise(recipe, model.plan, planned),
        *export_warnings(
            recipe,
            model.plan,
            planned,
            language=model.language_config,
            vision=model.vision_config,
            tokenizer=facts.tokenizer,
        ),
    )
    notes += [warning.message for warning in warnings]
    plan = Plan(
        plan_version=PLAN_VERSION,
        recipe=recipe.name,
        world_size=world_size,
        model=model.plan,
        stages=planned,
        notes=tuple(notes),
    )
    return Compiled(plan, model, tuple(trains), warnings)


class _StageCompiler:
    """Compiles one stage, and collects its problems and notes."""

    def __init__(
        self, recipe: Recipe, index: int, model: PlannedModel, world_size: int, facts: Facts
    ) -> None:
        self._recipe, self._model, self._world_size, self._facts = recipe, model, world_size, facts
        self._index, self._stage = index, recipe.stages[index]
        self._path: KeyPath = ("stages", index)
        self.trains: Trains | None = None
        """None until `plan` is called, and without sizes."""
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def plan(self) -> StagePlan | None:
        """The stage's plan; None where the global batch size cannot be divided."""
        stage, train = self._stage, self._stage.train
        train_path = (*self._path, "train")
        self.problems += check_arguments(train, path=train_path)
        sizes, counted = self._model.plan.sizes, self._facts.num_samples
        found = plan_data(stage, sizes, counted=counted, path=self._path)
        data = found.plan
        self.problems += found.problems
        self.notes += found.notes
        trains = self.trains = self._decide()
        starts_from = self._starts_from(self._index)
        batch = derive_batch(train, world_size=self._world_size)
        config, source = self._plan_deepspeed(batch)
        self.problems += optimizer_problems(train, stage.param_groups, config, stage_path=self._path)
        if batch is None:
            self.problems.append(
                explain_batch(train, world_size=self._world_size, path=train_path, stage=stage.name)
            )
            return None
        steps = count_steps(train, batch, num_samples=data.num_samples, world_size=self._world_size)
        if data.validation is not None:
            update = {"num_evaluations": count_evaluations(train, steps)}
            data = data.model_copy(update={"validation": data.validation.model_copy(update=update)})
        if steps.per_epoch == 0 and data.num_samples != 0:
            self.problems.append(self._explain_no_step(batch, data))
        self.notes += batch_notes(train, batch, world_size=self._world_size)
        return StagePlan(
            name=stage.name,
            starts_from=starts_from,
            freeze=stage.freeze,
            trainable=stage.trainable,
            num_trainable_parameters=trains.count_trainable() if trains else None,
            trainable_modules=trains.modules if trains else None,
            lora=stage.lora,
            param_groups=self._plan_groups(trains),
            data=data,
            train=plan_train(train, batch, steps),
            deepspeed=config,
            deepspeed_source=source,
            sampling=plan_sampling(stage),
            expect=stage.expect,
            output_dir=stage.output_dir,
        )

    def _decide(self) -> Trains | None:
        shapes = self._model.shapes
        if shapes is None:
            return None
        trains = what_trains(shapes, self._stage)
        quantized = self._model.plan.language_model.quantization is not None
        self.problems += tuning_problems(trains, self._stage, quantized=quantized, stage_path=self._path)
        return trains

    def _plan_groups(self, trains: Trains | None) -> tuple[ParamGroupPlan, ...]:
        train, groups = self._stage.train, self._stage.param_groups
        members: dict[int, list[str]] = {}
        if trains is not None:
            for name, index in groups_of(trains.decision.trainable, groups).items():
                members.setdefault(index, []).append(name)
        return tuple(
            ParamGroupPlan(
                modules=group.modules,
                learning_rate=group.learning_rate or train.learning_rate,
                weight_decay=train.weight_decay if group.weight_decay is None else group.weight_decay,
                num_parameters=trains.count(members.get(index, ())) if trains else None,
            )
            for index, group in enumerate(groups)
        )

    def _starts_from(self, index: int) -> tuple[str, ...]:
        """Output folders whose trained weights replace base weights, the oldest first."""
        stages = self._recipe.stages
        start = stages[index].init_from or (stages[index - 1].name if index else "base")
        if start == "base":
            return ()
        names = [stage.name for stage in stages]
        if start in names[:index]:
            earlier = names.index(start)
            return (*self._starts_from(earlier), stages[earlier].output_dir)
        if index == self._index and (start in names or not ("/" in start or "." in start)):
            choices = ("base", *names[:index])
            self.problems.append(
                Problem(
                    "`init_from` doesn't name an earlier stage",
                    code="init-from-unknown-stage",
                    path=(*self._path, "init_from"),
                    found=start,
                    hint=did_you_mean(start, choices)
                    or f"{', '.join(choices)}, or a folder, written ./{start}",
                )
            )
        before = self._facts.earlier.get(start, Earlier((), ()))
        if index == self._index:
            self.notes += [
                f"{start} started from {folder}, which does not exist any more; since {start} trained the "
                "whole language model and projector, at most trained weights of the tower are missing"
                for folder in before.missing
            ]
        return (*before.folders, start)

    def _explain_no_step(self, batch: BatchSizes, data: DataPlan) -> Problem:
        return Problem(
            "the samples do not fill one batch per process, and `dataloader_drop_last` drops the rest",
            code="no-full-batch",
            path=(*self._path, "train", "extra", "dataloader_drop_last"),
            found=f"{data.num_samples} samples of {batch.per_device * self._world_size} needed",
            hint="remove `dataloader_drop_last`, or make the batch smaller",
        )

    def _plan_deepspeed(self, batch: BatchSizes | None) -> tuple[dict[str, JsonValue] | None, str]:
        train, choice = self._stage.train, self._stage.deepspeed
        path: KeyPath = (*self._path, "deepspeed")
        if choice == "none":
            return None, "none"
        if isinstance(choice, str) and choice in DEEPSPEED_PRESETS:
            config, source = deepspeed.preset(choice, max_grad_norm=train.max_grad_norm), choice
        elif isinstance(choice, str):
            if choice not in self._facts.deepspeed_files:
                if all(problem.path != path for problem in self._facts.problems):
                    self.problems.append(deepspeed.unknown_choice(choice, path=path))
                return None, choice
            config, source = dict(self._facts.deepspeed_files[choice]), choice
        else:
            config, source = dict(choice), "inline"
        self.problems += deepspeed.check_config(
            config, train=train, batch=batch, path=path, inline=source == "inline"
        )
        if config.get("gradient_clipping") is None:
            clips = f"clips at {say_number(train.max_grad_norm)}" if train.max_grad_norm else "doesn't clip"
            self.notes.append(
                f"the DeepSpeed config has no `gradient_clipping`; it {clips}, as `max_grad_norm` says"
            )
        return deepspeed.complete(config, max_grad_norm=train.max_grad_norm), source
