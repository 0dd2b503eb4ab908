"""Flags of TinyLLaVA Factory's training program as values of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llava_recipes.migrate.conversations import TINYLLAVA as CONVERSATIONS
from llava_recipes.migrate.conversations import put_conversation
from llava_recipes.migrate.deepspeed_files import TINYLLAVA, ReadText, translate_deepspeed
from llava_recipes.migrate.draft import MODEL, STAGE, Draft
from llava_recipes.migrate.flags import Flags
from llava_recipes.migrate.llava import (
    name_draft,
    put_switch,
    put_text,
    put_whole,
    translate_grouping,
    translate_lora_numbers,
    translate_rate,
)
from llava_recipes.migrate.programs import TINY_FLAGS, Program
from llava_recipes.migrate.quantization import put_bits, translate_quantization
from llava_recipes.migrate.sources import translate_sources
from llava_recipes.migrate.train_flags import translate_rest, translate_training
from llava_recipes.plan.catalog import VISION_TOWERS
from llava_recipes.recipe.scalars import Value

FLAGS = (
    *TINY_FLAGS,
    *("tune_vision_tower_from_layer", "tune_embed_tokens", "pretrained_model_path", "vision_tower2"),
    *("tokenizer_name_or_path", "vision_tower_lr", "mm_projector_lr", "model_name_or_path", "vision_tower"),
    *("mm_vision_select_layer", "mm_vision_select_feature", "mm_patch_merge_type", "model_max_length"),
    *("data_path", "image_folder", "image_aspect_ratio", "lazy_preprocess", "group_by_modality_length"),
    *("lora_r", "lora_alpha", "lora_dropout", "lora_bias", "bits", "deepspeed", "run_name"),
    *("resampler_hidden_size", "num_queries", "num_resampler_layers"),
)

_RECIPE_BITS: Mapping[str, int] = MappingProxyType({"qlora_int4": 4, "qlora_int8": 8})
"""Training recipes that hold the language model in few bits."""


def translate_tinyllava(flags: Flags, *, program: Program, read_text: ReadText) -> Draft:
    """The draft of one training command. Values of a wrong type are among the draft's problems."""
    draft = Draft()
    _translate_model(flags, draft)
    _translate_freezing(flags, draft)
    translate_rate("mm_projector_lr", "projector", flags, draft)
    translate_rate("vision_tower_lr", "vision_tower", flags, draft)
    _translate_data(flags, draft, program, read_text)
    translate_training(flags, draft)
    deepspeed = flags.text("deepspeed")
    if deepspeed is not None:
        mark = flags["deepspeed"].mark
        translate_deepspeed(
            "--deepspeed", deepspeed, draft, read_text=read_text, mark=mark, program=TINYLLAVA
        )
    start = flags.text("pretrained_model_path")
    if start is not None:
        remark = "a folder that `llava-recipe run` has written, not TinyLLaVA"
        mark = flags["pretrained_model_path"].mark
        draft.mapped("--pretrained_model_path", start, (STAGE, "init_from"), start, remark=remark, mark=mark)
    name_draft(flags, draft)
    translate_rest(flags, draft, FLAGS, program)
    draft.problems += flags.problems
    return draft


def _translate_model(flags: Flags, draft: Draft) -> None:
    tower = (MODEL, "vision_tower")
    put_text(flags, draft, "model_name_or_path", (MODEL, "language_model"))
    tokenizer, language = flags.text("tokenizer_name_or_path"), draft.read(MODEL, "language_model")
    if tokenizer is not None and tokenizer != language:
        draft.put((MODEL, "language_model"), {"source": language})
        path = (MODEL, "language_model", "tokenizer")
        draft.mapped("--tokenizer_name_or_path", tokenizer, path, tokenizer)
    put_text(flags, draft, "vision_tower", (*tower, "source"))
    second = flags.take("vision_tower2")
    if second is not None:
        has_second = second.text.strip() not in ("", "''")
        why = "a recipe has one vision tower" if has_second else "there is no second tower"
        (draft.lost if has_second else draft.needless)("--vision_tower2", second.text, why, second.mark)
    put_whole(flags, draft, "mm_vision_select_layer", (*tower, "select_layer"), -1)
    put_text(flags, draft, "mm_vision_select_feature", (*tower, "select_feature"), "patch")
    put_text(flags, draft, "connector_type", (MODEL, "projector", "type"), "linear")
    draft.put((MODEL, "image_tokens"), {"start_end": False, "patch": False})


def _translate_freezing(flags: Flags, draft: Draft) -> None:
    language = (flags.text("tune_type_llm") or "frozen").lower()
    connector = (flags.text("tune_type_connector") or "full").lower()
    tower = (flags.text("tune_type_vision_tower") or "frozen").lower()
    trained: list[str] = []
    if connector == "full":
        trained.append("projector")
    if language == "full":
        trained += ["language_model", "lm_head"]
    if tower == "full":
        trained.append("vision_tower")
    elif tower == "partially-tune":
        trained += _upper_layers(flags, draft)
    elif "tune_vision_tower_from_layer" in flags:
        flag = flags.take("tune_vision_tower_from_layer")
        assert flag is not None
        draft.needless(f"--{flag.name}", flag.text, f"the tower is `{tower}`", flag.mark)
    draft.put((STAGE, "freeze"), "all")
    path = (STAGE, "trainable")
    draft.put(path, list[Value](trained))
    for name, choice, known in (
        ("tune_type_llm", language, ("frozen", "full", "lora")),
        ("tune_type_connector", connector, ("frozen", "full")),
        ("tune_type_vision_tower", tower, ("frozen", "full", "partially-tune")),
    ):
        mark = flags[name].mark if name in flags else None
        if choice not in known:
            draft.lost(f"--{name}", choice, f"recipes know {', '.join(known)} here", mark)
        elif name in flags:
            draft.tell_mapped(f"--{name}", choice, path, mark=mark)
        else:
            draft.default(f"--{name}", path, draft.read(*path), remark=choice)
    _translate_adapters(flags, draft, is_on=language == "lora")


def _upper_layers(flags: Flags, draft: Draft) -> list[str]:
    start = flags.whole("tune_vision_tower_from_layer")
    start = 10 if start is None else start
    source = draft.read(MODEL, "vision_tower", "source")
    config = VISION_TOWERS.get(source) if isinstance(source, str) else None
    num_layers = config.get("num_hidden_layers") if config else None
    if not isinstance(num_layers, int):
        why = "the tower's number of layers is not known here: write vision_tower.encoder.layers.{A..B}"
        draft.lost("--tune_vision_tower_from_layer", str(start), why)
        return []
    if start < 0 or start >= num_layers:
        return []
    draft.tell_mapped("--tune_vision_tower_from_layer", str(start), (STAGE, "trainable"))
    return [f"vision_tower.encoder.layers.{{{start}..{num_layers - 1}}}"]


def _translate_adapters(flags: Flags, draft: Draft, *, is_on: bool) -> None:
    recipe = flags.take("training_recipe")
    bits = _RECIPE_BITS.get(recipe.text) if recipe is not None else None
    if recipe is not None and bits is not None:
        put_bits(draft, "--training_recipe", recipe.text, bits, mark=recipe.mark)
    elif recipe is not None:
        known = recipe.text in ("common", "lora")
        why = "`lora:` and `trainable:` say it" if known else "recipes have no such way of training"
        (draft.needless if known else draft.lost)("--training_recipe", recipe.text, why, recipe.mark)
    if is_on:
        remark = "every linear layer of the language model"
        path = (STAGE, "lora", "modules")
        mark = flags["tune_type_llm"].mark
        draft.mapped("--tune_type_llm", "lora", path, ["language_model"], remark=remark, mark=mark)
        translate_lora_numbers(flags, draft)
    else:
        for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_bias"):
            flag = flags.take(name)
            if flag is not None:
                draft.needless(f"--{name}", flag.text, "LoRA is off", flag.mark)
    translate_quantization(flags, draft, recipe_bits=bits)


def _translate_data(flags: Flags, draft: Draft, program: Program, read_text: ReadText) -> None:
    path = (STAGE, "data", "template")
    version = flags.text("conv_version")
    if version is not None:
        put_conversation("conv_version", version, flags, draft, program=program, table=CONVERSATIONS)
    elif "conv_version" not in flags:
        draft.default("--conv_version", path, "plain", remark="which TinyLLaVA calls `pretrain`")
    translate_sources(flags, draft, read_text)
    put_text(flags, draft, "image_aspect_ratio", (STAGE, "data", "image_aspect_ratio"), "square")
    put_whole(flags, draft, "model_max_length", (STAGE, "data", "max_length"), 512)
    put_switch(flags, draft, "lazy_preprocess", (STAGE, "data", "lazy_preprocess"), False)
    translate_grouping(flags, draft)
    merging = flags.take("mm_patch_merge_type")
    if merging is not None:
        is_flat = merging.text == "flat"
        why = "features are put one after another" if is_flat else "recipes have no key for it yet"
        (draft.needless if is_flat else draft.lost)("--mm_patch_merge_type", merging.text, why, merging.mark)
