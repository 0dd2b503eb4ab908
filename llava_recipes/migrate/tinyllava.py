"""Flags of TinyLLaVA Factory's training program."""

from __future__ import annotations

from collections.abc import Mapping

from llava_recipes.migrate.deepspeed_files import TINYLLAVA, ReadText
from llava_recipes.migrate.llava import (
    LORA_SIZE,
    TOWER_OUTPUT,
    name_draft,
    put_bits,
    translate_data,
    translate_quantization,
    translate_rate,
    translate_rest,
    translate_training,
)
from llava_recipes.migrate.programs import CONVERSATIONS_OF_TINYLLAVA, Program, put_conversation
from llava_recipes.migrate.settings import Flags, Row
from llava_recipes.plan.families import VISION_TOWERS
from llava_recipes.recipe.scalars import Value

_WITHOUT_A_KEY = ("tune_embed_tokens", "resampler_hidden_size", "num_queries", "num_resampler_layers")
_RECIPE_BITS: Mapping[str, int] = {"qlora_int4": 4, "qlora_int8": 8}
"""Values of `--training_recipe` that quantize the language model."""
_TUNE_TYPES: tuple[tuple[str, str, Mapping[str, tuple[str, ...]]], ...] = (
    ("tune_type_llm", "frozen", {"frozen": (), "full": ("language_model", "lm_head"), "lora": ()}),
    ("tune_type_connector", "full", {"frozen": (), "full": ("projector",)}),
    ("tune_type_vision_tower", "frozen", {"frozen": (), "full": ("vision_tower",), "partially-tune": ()}),
)
"""A part's flag, its default, and what each of its values trains."""


def translate_tinyllava(flags: Flags, *, program: Program, read_text: ReadText) -> None:
    """Fill in the draft of one training command."""
    _translate_model(flags)
    _translate_freezing(flags)
    translate_rate("mm_projector_lr", "projector", flags)
    translate_rate("vision_tower_lr", "vision_tower", flags)
    version = flags.text("conv_version")
    if version is not None:
        put_conversation("conv_version", version, flags, program=program, table=CONVERSATIONS_OF_TINYLLAVA)
    elif "conv_version" not in flags:
        flags.default("conv_version", "data.template", "plain", "TinyLLaVA calls it `pretrain`")
    translate_data(flags, read_text, max_length=512)
    merging = flags.take("mm_patch_merge_type")
    if merging is not None and merging.text == "flat":
        flags.needless("mm_patch_merge_type", "it is what recipes do")
    elif merging is not None:
        flags.lost("mm_patch_merge_type", "recipes have no key for it yet")
    translate_training(flags, read_text, TINYLLAVA)
    start = flags.text("pretrained_model_path")
    if start is not None:
        remark = "this must be a folder that `llava-recipe run` has written, not TinyLLaVA"
        flags.put("pretrained_model_path", "init_from", start, remark)
    name_draft(flags)
    translate_rest(flags, _WITHOUT_A_KEY, program)


def _translate_model(flags: Flags) -> None:
    flags.translate([Row("model_name_or_path", "model.language_model", "text")])
    tokenizer, language = flags.text("tokenizer_name_or_path"), flags.draft.read("model.language_model")
    if tokenizer is not None and tokenizer != language:
        flags.draft.put("model.language_model", {"source": language})
        flags.put("tokenizer_name_or_path", "model.language_model.tokenizer", tokenizer)
    flags.translate([Row("vision_tower", "model.vision_tower.source", "text")])
    if flags.spell("vision_tower2").strip() not in ("", "''"):
        flags.lost("vision_tower2", "a recipe has one vision tower")
    else:
        flags.needless("vision_tower2", "there is no second tower")
    flags.translate((*TOWER_OUTPUT, Row("connector_type", "model.projector.type", "text", "linear")))
    flags.draft.put("model.image_tokens", {"start_end": False, "patch": False})


def _translate_freezing(flags: Flags) -> None:
    words = {name: (flags.text(name) or usual).lower() for name, usual, _ in _TUNE_TYPES}
    language, connector, tower = (modules.get(words[name], ()) for name, _, modules in _TUNE_TYPES)
    trained = [*connector, *language, *tower]
    if words["tune_type_vision_tower"] == "partially-tune":
        trained += _upper_layers(flags)
    else:
        flags.needless("tune_vision_tower_from_layer", f"the tower is `{words['tune_type_vision_tower']}`")
    flags.draft.put("freeze", "all")
    flags.draft.put("trainable", list[Value](trained))
    for name, _, known in _TUNE_TYPES:
        if words[name] not in known:
            flags.lost(name, f"recipes support {', '.join(known)} here", shown=words[name])
        elif name in flags:
            flags.mapped(name, "trainable", shown=words[name])
        else:
            flags.default(name, "trainable", list[Value](trained), words[name])
    _translate_adapters(flags, is_on=words["tune_type_llm"] == "lora")


def _upper_layers(flags: Flags) -> list[str]:
    name = "tune_vision_tower_from_layer"
    given = flags.whole(name)
    start = 10 if given is None else given
    source = flags.draft.read("model.vision_tower.source")
    config = VISION_TOWERS.get(source) if isinstance(source, str) else None
    num_layers = config.get("num_hidden_layers") if config else None
    if not isinstance(num_layers, int):
        why = "the tower's number of layers is not known: write vision_tower.encoder.layers.{A..B}"
        flags.lost(name, why, shown=str(start))
        return []
    if start < 0 or start >= num_layers:
        return []
    flags.mapped(name, "trainable", shown=str(start))
    return [f"vision_tower.encoder.layers.{{{start}..{num_layers - 1}}}"]


def _translate_adapters(flags: Flags, *, is_on: bool) -> None:
    recipe = flags.take("training_recipe")
    bits = _RECIPE_BITS.get(recipe.text) if recipe is not None else None
    if recipe is not None and bits is not None:
        put_bits(flags, "training_recipe", bits)
    elif recipe is not None and recipe.text in ("common", "lora"):
        flags.needless("training_recipe", "`lora:` and `trainable:` have its effect")
    elif recipe is not None:
        flags.lost("training_recipe", "recipes don't have this kind of training")
    if is_on:
        remark = "every linear layer of the language model"
        flags.put("tune_type_llm", "lora.modules", ["language_model"], remark, shown="lora")
        flags.translate(LORA_SIZE)
    else:
        for row in LORA_SIZE:
            flags.needless(row.name, "LoRA is off")
    translate_quantization(flags, recipe_bits=bits)
