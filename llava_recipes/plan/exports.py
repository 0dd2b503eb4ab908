"""Which models each export refuses: one rule for the exporters and for the warnings before training.

Targets are the layouts of `llava-recipe export --to`. Whether the original reads adapters is that of
haotian-liu/LLaVA at c121f04 with the peft 0.8.2 that it pins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from llava_recipes.errors import KeyPath, Problem
from llava_recipes.plan.families import (
    LANGUAGE_FAMILIES,
    TOWER_FAMILIES,
    Config,
    comes_from_original_llava,
    vision_part,
)
from llava_recipes.plan.trainable import IMAGE_TOKENS
from llava_recipes.plan.types import DataPlan, ModelPlan, StagePlan
from llava_recipes.projectors import STOCK, type_named
from llava_recipes.recipe.globs import split_glob
from llava_recipes.recipe.schema import Recipe

Target = Literal["hf", "llava", "gguf-ready"]
TARGETS: tuple[Target, ...] = ("hf", "llava", "gguf-ready")

_WAYS_OUT: tuple[Target, ...] = ("hf", "llava")

Part = Literal["language_model", "tokenizer", "vision_tower", "select_feature", "projector", "images"]
"""The part of a model that a reason is about."""

SENTENCEPIECE = "sentencepiece"
"""A tokenizer whose folder has a tokenizer.model; other kinds have the names of tokenizer.json."""

_NO_JSON_TOKENIZER = frozenset({"gemma", "gemma2", "gemma3_text"})
"""Language models whose tokenizer llama.cpp reads only from tokenizer.model (its conversion/gemma.py)."""

# convert_image_encoder_to_gguf.py writes whether it's `gelu`; llama.cpp treats all others as quick_gelu.
_CLIP_ACTIVATIONS = ("quick_gelu", "gelu")

# Heads that are more than a matrix in transformers; defaults of keys that a config leaves out.
_SOFT_CAPS: Mapping[str, float] = MappingProxyType(
    {"gemma2": 30.0, "gemma3n_text": 30.0, "vaultgemma": 30.0, "nanochat": 15.0}
)
_SCALES: Mapping[str, float] = MappingProxyType({"cohere": 0.0625, "cohere2": 0.0625, "cohere2_moe": 0.0625})
_DIVISORS: Mapping[str, float] = MappingProxyType({"minicpm3": 10.0})
_BIASED_HEADS = frozenset({"phi", "gptj", "codegen"})


@dataclass(frozen=True, kw_only=True)
class ExportFacts:
    """What the exports need to know of a model; None for what isn't known."""

    language_type: str | None
    head: str | None
    """What the head does besides its matrix; empty for a plain one."""
    tokenizer: str | None
    tower_type: str | None
    tower_activation: str | None
    select_feature: str
    projector: str
    image_aspect_ratio: str
    merge_type: str
    base_has_projector: bool | None
    """Whether the run starts from the projector of a LLaVA checkpoint that is the language model's folder."""


@dataclass(frozen=True)
class Refusal:
    """A reason why an export is refused."""

    part: Part
    reason: str
    found: str
    hint: str | None = None
    """What to do, where this isn't the choice of another layout."""


def facts_of(
    model: ModelPlan, data: DataPlan, *, language: Config | None, vision: Config | None, tokenizer: str | None
) -> ExportFacts:
    """The facts of a planned model; configs and the tokenizer's kind are None where they aren't known."""
    tower = None if vision is None else vision_part(vision)
    tower_type = None if tower is None else str(tower.get("model_type"))
    family = TOWER_FAMILIES.get(str(tower_type))
    usual_activation = "gelu_pytorch_tanh" if family is None else family.activation
    has_projector = None if language is None else comes_from_original_llava(language)
    return ExportFacts(
        language_type=None if language is None else str(language.get("model_type")),
        head=None if language is None else besides_the_head(language),
        tokenizer=tokenizer,
        tower_type=tower_type,
        tower_activation=None if tower is None else str(tower.get("hidden_act", usual_activation)),
        select_feature=model.vision_tower.select_feature,
        projector=model.projector.type,
        image_aspect_ratio=data.image_aspect_ratio,
        merge_type=data.mm_patch_merge_type,
        base_has_projector=False if model.projector.init_from is not None else has_projector,
    )


def besides_the_head(config: Config) -> str:
    """What a language model does to its logits besides the head's matrix; empty for nothing."""
    kind = str(config.get("model_type"))
    found = []
    cap = config.get("final_logit_softcapping", _SOFT_CAPS.get(kind))
    if cap is not None:
        found.append(f"soft cap {cap}")
    scale = config.get("logit_scale", _SCALES.get(kind))
    divisor = config.get("logits_scaling", _DIVISORS.get(kind))
    found += [f"scale {value}" for value in (scale, divisor) if value not in (None, 1)]
    if kind in _BIASED_HEADS:
        found.append("bias")
    return ", ".join(found)


def refusals(facts: ExportFacts, target: Target) -> tuple[Refusal, ...]:
    """Every reason why a model can't be exported to a target, as far as is known; none where it can."""
    rules = {"hf": _hf, "llava": lambda _: iter(()), "gguf-ready": _gguf}
    return tuple(rules[target](facts))


def way_out(facts: ExportFacts) -> str:
    """Advice that names layouts for a model; `llava` takes all, but the original can't read all of them."""
    taking = [target for target in _WAYS_OUT if not refusals(facts, target)]
    if len(taking) > 1 and unread_by_original(facts):
        taking.remove("llava")
    return "export with " + " or ".join(f"`--to {target}`" for target in taking)


def _hf(facts: ExportFacts) -> Iterator[Refusal]:
    if facts.projector != STOCK:
        yield Refusal(
            "projector",
            f"transformers' LLaVA has no place for a projector of type `{facts.projector}`",
            f"its projector is two linear layers with GELU between them: {STOCK}",
        )
    if facts.head:
        yield Refusal(
            "language_model",
            "transformers' LLaVA has a plain linear head, but that of this language model does more",
            f"{facts.language_type}: {facts.head}",
        )
    if facts.image_aspect_ratio == "anyres" and facts.merge_type != "spatial_unpad":
        yield Refusal(
            "images",
            "Hugging Face's LLaVA-NeXT merges the crops of an image by `spatial_unpad` alone",
            f"mm_patch_merge_type {facts.merge_type}",
        )


def _gguf(facts: ExportFacts) -> Iterator[Refusal]:
    if facts.image_aspect_ratio == "anyres" and facts.merge_type != "spatial_unpad":
        yield Refusal(
            "images",
            "llama.cpp's converter knows crops merged by `spatial_unpad` alone",
            f"mm_patch_merge_type {facts.merge_type}",
        )
    if facts.tower_type not in (None, "clip_vision_model"):
        yield Refusal(
            "vision_tower",
            "llama.cpp's converter takes every vision tower for CLIP, with CLIP's activation",
            f"model_type {facts.tower_type}",
        )
    elif facts.tower_activation not in (None, *_CLIP_ACTIVATIONS):
        yield Refusal(
            "vision_tower",
            "llama.cpp's converter takes the activation of this vision tower for quick GELU",
            f"hidden_act {facts.tower_activation}",
        )
    if facts.projector != STOCK:
        yield Refusal(
            "projector",
            f"llama.cpp has no place for a projector of type `{facts.projector}`",
            f"its own is {STOCK}",
        )
    if facts.select_feature != "patch":
        yield Refusal(
            "select_feature",
            "llama.cpp drops the class token, which this model is trained with",
            f"select_feature {facts.select_feature}",
        )
    yield from _gguf_tokenizer(facts)


def _gguf_tokenizer(facts: ExportFacts) -> Iterator[Refusal]:
    """llama.cpp converts tokenizer.model, and a tokenizer.json only for byte pair encoding."""
    kind = facts.tokenizer
    if kind in (None, SENTENCEPIECE):
        return
    if kind != "BPE":
        yield Refusal(
            "tokenizer",
            "llama.cpp's converter cannot read this kind of tokenizer",
            f"a tokenizer.json of type {kind}, and no tokenizer.model; it reads tokenizer.model and BPE",
        )
    elif facts.language_type in _NO_JSON_TOKENIZER:
        yield Refusal(
            "tokenizer",
            f"llama.cpp's converter reads the tokenizer of {facts.language_type} from tokenizer.model",
            "tokenizer.json without tokenizer.model",
            "put the model's own tokenizer.model into the folder of the tokenizer",
        )


def unread_by_original(facts: ExportFacts) -> tuple[str, ...]:
    """Why the original's code can't read a model in any layout; none where it can."""
    reasons = []
    language = LANGUAGE_FAMILIES.get(str(facts.language_type))
    if facts.language_type is not None and not (language and language.in_original):
        reasons.append(f"it has no class for {facts.language_type}")
    if facts.tower_type not in (None, "clip_vision_model"):
        reasons.append(f"it loads every vision tower as CLIP, this one is {facts.tower_type}")
    if not type_named(facts.projector)[0].in_original:
        reasons.append(f"it has no projector of type `{facts.projector}`")
    return tuple(reasons)


def unread_adapters(stage: StagePlan, facts: ExportFacts) -> tuple[tuple[str, str], ...]:
    """Why the original can't read a LoRA run's folder: keys of the stage, each with its reason.

    None for a stage without adapters. Sources are peft 0.8.2 and the original's model/builder.py, which loads
    the vision tower last, from the place in config.json, and the projector from the base or from what trained
    in full besides the adapters.
    """
    if stage.lora is None:
        return ()
    found = []
    if stage.lora.use_dora:
        found.append(("use_dora", "its peft 0.8.2 does not know DoRA"))
    if any(split_glob(glob)[0] == "vision_tower" for glob in stage.lora.modules):
        found.append(("modules", "it drops adapters of the vision tower"))
    trains = stage.trainable_modules or stage.trainable
    in_full = {module.split(".", 1)[0] for module in trains if ".lora_" not in module}
    if "projector" not in in_full and facts.base_has_projector is False:
        found.append(("trainable", "it leaves a projector random that doesn't train in full besides them"))
    if "vision_tower" in in_full:
        found.append(("trainable", "it drops a vision tower that trains besides adapters"))
    if IMAGE_TOKENS in in_full:
        found.append(("trainable", "it drops image tokens that train besides adapters"))
    return tuple(found)


def export_warnings(
    recipe: Recipe,
    model: ModelPlan,
    stages: Sequence[StagePlan],
    *,
    language: Config | None,
    vision: Config | None,
    tokenizer: str | None,
) -> Iterator[Problem]:
    """Warnings about targets that refuse the model, and about adapters that the original can't read.

    Paths are those of the recipe.
    """
    of_stages = [
        facts_of(model, stage.data, language=language, vision=vision, tokenizer=tokenizer) for stage in stages
    ]
    for target in TARGETS:
        reasons: dict[str, KeyPath] = {}
        hints: dict[str, None] = {}
        for index, facts in enumerate(of_stages):
            for refusal in refusals(facts, target):
                reasons.setdefault(refusal.reason, _path_of(recipe, refusal.part, index))
                hints[refusal.hint or way_out(facts)] = None
        if reasons:
            yield Problem(
                f"this model cannot be exported to `{target}`: {'; '.join(reasons)}",
                code="model-cannot-be-exported",
                path=next(iter(reasons.values())),
                hint=next(iter(hints)) if len(hints) == 1 else "export with `--to llava`",
                severity="warning",
            )
    for index, (stage, facts) in enumerate(zip(stages, of_stages, strict=True)):
        unread = () if unread_by_original(facts) else unread_adapters(stage, facts)
        if unread:
            key = unread[0][0]
            inside = () if key == "trainable" else ("lora",)
            yield Problem(
                f"the original LLaVA cannot read the adapters of stage `{stage.name}`: "
                + "; ".join(reason for _, reason in unread),
                code="original-cannot-read-adapters",
                path=("stages", index, *inside, key),
                hint="`llava-recipe merge` and `export --to llava` write a whole model, which it reads",
                severity="warning",
            )


def _path_of(recipe: Recipe, part: Part, stage: int) -> KeyPath:
    """The key of a recipe for the part that a reason is about."""
    language, tower = recipe.model.language_model, recipe.model.vision_tower
    if part == "images":
        return ("stages", stage, "data", "mm_patch_merge_type")
    if part == "vision_tower":
        return ("model", "vision_tower", "config" if tower.source is None else "source")
    if part == "select_feature":
        return ("model", "vision_tower", "select_feature")
    if part == "projector":
        return ("model", "projector", "type")
    if isinstance(language, str):
        return ("model", "language_model")
    if part == "tokenizer" and language.tokenizer is not None:
        return ("model", "language_model", "tokenizer")
    return ("model", "language_model", "config" if language.source is None else "source")
