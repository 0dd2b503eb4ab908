"""What each export refuses: one rule, for the exporters and for the warnings before a training.

Targets are the layouts of `llava-recipe export --to`, and `adapters`: a LoRA run's own folder, read by the
original LLaVA (haotian-liu/LLaVA at c121f04, with the peft 0.8.2 that it pins).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from pydantic import JsonValue

from llava_recipes.errors import KeyPath, Problem
from llava_recipes.plan.data import comes_from_original_llava
from llava_recipes.plan.families import LANGUAGE_FAMILIES, TOWER_FAMILIES
from llava_recipes.plan.outline import vision_part
from llava_recipes.plan.trainable import IMAGE_TOKENS
from llava_recipes.plan.types import DataPlan, ModelPlan, StagePlan
from llava_recipes.projectors import STOCK, type_named
from llava_recipes.recipe.globs import split_glob
from llava_recipes.recipe.schema import Recipe

Config = Mapping[str, JsonValue]
Target = Literal["hf", "llava", "gguf-ready"]
TARGETS: tuple[Target, ...] = ("hf", "llava", "gguf-ready")

_WAYS_OUT: tuple[Target, ...] = ("hf", "llava")

Part = Literal["language_model", "tokenizer", "vision_tower", "select_feature", "projector", "pictures"]
"""What of a model the reason is in."""

SENTENCEPIECE = "sentencepiece"
"""The kind of a tokenizer whose folder has a tokenizer.model; the others are tokenizer.json's own names."""

_NO_JSON_TOKENIZER = frozenset({"gemma", "gemma2", "gemma3_text"})
"""Language models whose tokenizer llama.cpp reads from tokenizer.model alone (its conversion/gemma.py)."""

# convert_image_encoder_to_gguf.py writes whether it's `gelu`; llama.cpp takes all others for quick_gelu.
_CLIP_ACTIVATIONS = ("quick_gelu", "gelu")

# Heads that transformers gives more than a matrix; values of keys that a config leaves out.
_SOFT_CAPS: Mapping[str, float] = MappingProxyType(
    {"gemma2": 30.0, "gemma3n_text": 30.0, "vaultgemma": 30.0, "nanochat": 15.0}
)
_SCALES: Mapping[str, float] = MappingProxyType({"cohere": 0.0625, "cohere2": 0.0625, "cohere2_moe": 0.0625})
_DIVISORS: Mapping[str, float] = MappingProxyType({"minicpm3": 10.0})
_BIASED_HEADS = frozenset({"phi", "gptj", "codegen"})


@dataclass(frozen=True, kw_only=True)
class ExportFacts:
    """What the exports ask of a model; None for what isn't known."""

    language_type: str | None
    head: str | None
    """What the head does beside a matrix; empty for a plain one."""
    tokenizer: str | None
    tower_type: str | None
    tower_activation: str | None
    select_feature: str
    projector: str
    image_aspect_ratio: str
    merge_type: str
    base_has_projector: bool | None
    """Whether the language model's own folder is a LLaVA checkpoint whose projector the run starts from."""


@dataclass(frozen=True)
class Refusal:
    """One reason why an export is refused."""

    part: Part
    reason: str
    found: str
    hint: str | None = None
    """What to do, where that is something else than another layout."""


def facts_of(
    model: ModelPlan, data: DataPlan, *, language: Config | None, vision: Config | None, tokenizer: str | None
) -> ExportFacts:
    """The facts of a planned model; configs and the tokenizer's kind are None where they aren't known."""
    tower = None if vision is None else vision_part(vision)
    tower_type = None if tower is None else str(tower.get("model_type"))
    family = TOWER_FAMILIES.get(str(tower_type))
    usual_activation = "gelu_pytorch_tanh" if family is None else family.activation
    return ExportFacts(
        language_type=None if language is None else str(language.get("model_type")),
        head=None if language is None else beside_the_head(language),
        tokenizer=tokenizer,
        tower_type=tower_type,
        tower_activation=None if tower is None else str(tower.get("hidden_act", usual_activation)),
        select_feature=model.vision_tower.select_feature,
        projector=model.projector.type,
        image_aspect_ratio=data.image_aspect_ratio,
        merge_type=data.mm_patch_merge_type,
        base_has_projector=_base_has_projector(model, language),
    )


def _base_has_projector(model: ModelPlan, language: Config | None) -> bool | None:
    if model.projector.init_from is not None:
        return False
    return None if language is None else comes_from_original_llava(language)


def beside_the_head(config: Config) -> str:
    """What a language model does to its logits beside the head's matrix; empty for nothing."""
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
    """Every reason why a model can't be exported to a target; none where it can, for all that is known."""
    rules = {"hf": _hf, "llava": lambda _: iter(()), "gguf-ready": _gguf}
    return tuple(rules[target](facts))


def way_out(facts: ExportFacts) -> str:
    """The layouts that take a model, as an advice; `llava` takes all, and the original not all of those."""
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
            "transformers' LLaVA has a plain linear head, this language model's does more",
            f"{facts.language_type}: {facts.head}",
        )
    if facts.image_aspect_ratio == "anyres" and facts.merge_type != "spatial_unpad":
        yield Refusal(
            "pictures",
            "Hugging Face's LLaVA-NeXT merges the crops of an image by `spatial_unpad` alone",
            f"mm_patch_merge_type {facts.merge_type}",
        )


def _gguf(facts: ExportFacts) -> Iterator[Refusal]:
    if facts.image_aspect_ratio == "anyres" and facts.merge_type != "spatial_unpad":
        yield Refusal(
            "pictures",
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
    """llama.cpp converts tokenizer.model, and of the kinds of tokenizer.json byte pair encoding."""
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
            "no tokenizer.model beside tokenizer.json",
            "put the model's own tokenizer.model into the folder of the tokenizer",
        )


def unread_by_original(facts: ExportFacts) -> tuple[str, ...]:
    """Why the original's code can't read a model whatever files it's in; none where it can."""
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
    """Why the original can't read a LoRA run's folder: keys of the stage, each with the reason in it.

    None for a stage without adapters. What it reads is said by peft 0.8.2 and by the original's
    model/builder.py, which loads the vision tower after everything else, from where config.json names it, and
    the projector from the base or from what trained in full beside the adapters.
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
        found.append(("trainable", "it leaves a projector random that doesn't train in full beside them"))
    if "vision_tower" in in_full:
        found.append(("trainable", "it drops what the vision tower has learned beside adapters"))
    if IMAGE_TOKENS in in_full:
        found.append(("trainable", "it drops trained image tokens beside adapters"))
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
    """Warnings about targets that will refuse the model, and about adapters that the original can't read.

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
    """Where a recipe says what a reason is in."""
    language, tower = recipe.model.language_model, recipe.model.vision_tower
    if part == "pictures":
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
