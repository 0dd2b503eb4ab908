"""The model of a plan: where its parts come from, how large they are, whether they fit together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llava_recipes.errors import KeyPath, Problem
from llava_recipes.plan import families
from llava_recipes.plan.families import (
    LANGUAGE_DEFAULTS,
    TOWER_FAMILIES,
    VISION_DEFAULTS,
    Config,
    language_part,
)
from llava_recipes.plan.outline import (
    ConfigValueError,
    ModelOutline,
    Shapes,
    is_known,
    model_sizes,
    num_vision_layers,
    outline_model,
)
from llava_recipes.plan.types import LanguageModelPlan, ModelPlan, ModelSizes
from llava_recipes.projectors import STOCK, type_named
from llava_recipes.recipe.foreign import in_short
from llava_recipes.recipe.renames import nearest
from llava_recipes.recipe.schema import LanguageModel, Model


@dataclass(frozen=True)
class PlannedModel:
    """A model's plan, with the outline of its parameters where its configs are known."""

    plan: ModelPlan
    outline: ModelOutline | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    language_config: Config | None
    vision_config: Config | None

    @property
    def shapes(self) -> Shapes | None:
        return None if self.outline is None else self.outline.shapes


def plan_model(
    model: Model,
    *,
    language_config: Config | None,
    vision_config: Config | None,
    image_newline: bool = False,
) -> PlannedModel:
    """The plan of a model; configs found on disk take precedence over the catalog's.

    `image_newline` says that a stage ends each row of features with a learned one.
    """
    language = _plan_language(model.language_model)
    tower = model.vision_tower
    known = families.LANGUAGE_MODELS.get(language.source or "")
    language_config = language.config or language_config or known
    language_config = language_config and language_part(language_config)
    vision_config = tower.config or vision_config or families.VISION_TOWERS.get(tower.source or "")
    notes = [*_unknown_notes("language model", language.source, language_config)]
    notes += _unknown_notes("vision tower", tower.source, vision_config)
    problems = [*_check_keys(language.config, LANGUAGE_DEFAULTS, "language_model")]
    problems += _check_keys(tower.config, VISION_DEFAULTS, "vision_tower")
    outline = None
    if language_config is not None and vision_config is not None:
        try:
            outline = outline_model(
                language=language_config,
                vision=vision_config,
                projector_type=model.projector.type,
                image_newline=image_newline,
            )
        except ConfigValueError as error:
            problems.append(_explain_config(error, language, model))
    sizes = None
    if outline is not None:
        sizes = model_sizes(outline, select_feature=tower.select_feature)
        problems += _check_fit(model, outline, sizes)
        if model.image_tokens.start_end or model.image_tokens.patch:
            notes.append("the parameter counts do not include the rows of added image tokens")
    plan = ModelPlan(
        language_model=language,
        vision_tower=tower,
        projector=model.projector,
        image_tokens=model.image_tokens,
        image_newline=image_newline,
        sizes=sizes,
    )
    return PlannedModel(plan, outline, tuple(problems), tuple(notes), language_config, vision_config)


def _plan_language(choice: str | LanguageModel) -> LanguageModelPlan:
    if isinstance(choice, str):
        return LanguageModelPlan(source=choice, revision=None, config=None, tokenizer=choice, seed=0)
    tokenizer = choice.tokenizer or choice.source
    assert tokenizer is not None, "a rule requires a tokenizer where there is no source"
    return LanguageModelPlan(
        source=choice.source,
        revision=choice.revision,
        config=choice.config,
        tokenizer=tokenizer,
        seed=choice.seed,
        quantization=choice.quantization,
    )


def _unknown_notes(part: str, source: str | None, config: Config | None) -> Iterator[str]:
    if config is None:
        yield f"the config of {part} {source} does not exist here; its sizes are read when the model is built"
    elif not is_known(config):
        name = config.get("model_type")
        yield f"the sizes of {part} type {name} are not known; they are read when the model is built"


def _explain_config(error: ConfigValueError, language: LanguageModelPlan, model: Model) -> Problem:
    config = language.config if error.part == "language_model" else model.vision_tower.config
    path: KeyPath = ("model", error.part)
    if config is not None:
        path = (*path, "config", error.key)
        return Problem(error.message, code="config-not-usable", path=path, found=in_short(error.found))
    source = language.source if error.part == "language_model" else model.vision_tower.source
    return Problem(
        f"the config.json of {source} cannot be used: {error.message}",
        code="config-not-usable",
        path=path,
        found=f"{error.key}: {in_short(error.found)}",
    )


def _check_keys(config: Config | None, known: Mapping[str, Config], part: str) -> Iterator[Problem]:
    """Misspelled keys of an inline config, in place of which transformers would use its defaults."""
    keys = known.get(str((config or {}).get("model_type")), {})
    for key in config or {}:
        near = None if key in keys else nearest(key, keys)
        if keys and near is not None and near not in (config or {}):
            yield Problem(
                f"`{key}` resembles a key that changes the model",
                code="misspelt-config-key",
                path=("model", part, "config", key),
                hint=f"did you mean `{near}`?",
                on_key=True,
            )


def _check_fit(model: Model, outline: ModelOutline, sizes: ModelSizes) -> Iterator[Problem]:
    tower, num_layers = model.vision_tower, num_vision_layers(outline)
    path: KeyPath = ("model", "vision_tower")
    if not -num_layers - 1 <= tower.select_layer <= num_layers:
        yield Problem(
            "`select_layer` is outside the vision tower",
            code="no-such-hidden-state",
            path=(*path, "select_layer"),
            found=f"{tower.select_layer}, but the tower has {num_layers} layers",
            hint=f"write a number from {-num_layers - 1} to {num_layers}; -2 is the second to last layer",
        )
    has_class_token = TOWER_FAMILIES[str(outline.vision["model_type"])].class_token
    if tower.select_feature == "cls_patch" and not has_class_token:
        yield Problem(
            "this vision tower has no class token",
            code="no-class-token",
            path=(*path, "select_feature"),
            found=f"`cls_patch` with a {outline.vision['model_type']}",
            hint="write `select_feature: patch`",
        )
    widths = sizes.vision_hidden_size, sizes.language_hidden_size
    projector = model.projector.type
    if type_named(projector)[0].keeps_width and widths[0] != widths[1]:
        yield Problem(
            f"an `{projector}` projector needs a tower and a language model of the same hidden size",
            code="identity-projector-sizes-differ",
            path=("model", "projector", "type"),
            found=f"{widths[0]} and {widths[1]}",
            hint=f"write `type: {STOCK}`",
        )
