"""Flags of LLaVA's training program and of LLaVA-NeXT's, which adds to them, as values of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llava_recipes.migrate.conversations import translate_version
from llava_recipes.migrate.deepspeed_files import FORK, LLAVA, LLAVA_NEXT, ReadText, translate_deepspeed
from llava_recipes.migrate.draft import MODEL, STAGE, Draft
from llava_recipes.migrate.flags import Flags
from llava_recipes.migrate.llava_freezing import translate_freezing
from llava_recipes.migrate.llava_pictures import translate_pictures
from llava_recipes.migrate.programs import ANYRES_FLAGS, NEXT, NEXT_FLAGS, OF_LLAVA_NEXT_ALONE, Program
from llava_recipes.migrate.quantization import translate_quantization
from llava_recipes.migrate.sources import translate_sources
from llava_recipes.migrate.train_flags import translate_rest, translate_training
from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.scalars import Value, say_number
from llava_recipes.recipe.schema import Data

FLAGS = (
    *dict.fromkeys((*NEXT_FLAGS, *ANYRES_FLAGS, *OF_LLAVA_NEXT_ALONE)),
    *("model_name_or_path", "version", "freeze_backbone", "tune_mm_mlp_adapter", "vision_tower"),
    *("mm_vision_select_layer", "mm_vision_select_feature", "pretrain_mm_mlp_adapter", "mm_projector_type"),
    *("mm_use_im_start_end", "mm_use_im_patch_token", "data_path", "image_folder", "image_aspect_ratio"),
    *("freeze_mm_mlp_adapter", "model_max_length", "bits", "double_quant", "quant_type", "lora_enable"),
    *("lora_r", "lora_alpha", "lora_dropout", "lora_weight_path", "lora_bias", "mm_projector_lr"),
    *("group_by_modality_length", "group_by_length", "lazy_preprocess", "deepspeed", "run_name"),
    "use_dora",
    "use_rslora",
)

_NEXT_DEFAULTS: Mapping[str, Value] = MappingProxyType({"gradient_checkpointing": True})
"""Where LLaVA-NeXT's own defaults are other ones than Hugging Face's."""


def translate_llava(flags: Flags, *, program: Program, read_text: ReadText) -> Draft:
    """The draft of one training command. Values of a wrong type are among the draft's problems."""
    draft = Draft()
    # Open-LLaVA-NeXT is made from LLaVA, and has its defaults.
    is_next = program.name == NEXT
    _translate_model(flags, draft)
    lora = _translate_lora(flags, draft)
    translate_freezing(flags, draft, lora=lora)
    _translate_rates(flags, draft)
    _translate_data(flags, draft, program=program, is_next=is_next, read_text=read_text)
    translate_training(flags, draft, defaults=_NEXT_DEFAULTS if is_next else {})
    deepspeed = flags.text("deepspeed")
    if deepspeed is not None:
        mark = flags["deepspeed"].mark
        pins = LLAVA_NEXT if is_next else LLAVA if program.is_known else FORK
        translate_deepspeed("--deepspeed", deepspeed, draft, read_text=read_text, mark=mark, program=pins)
    name_draft(flags, draft)
    translate_rest(flags, draft, FLAGS, program)
    draft.problems += flags.problems
    return draft


def put_text(flags: Flags, draft: Draft, name: str, path: KeyPath, default: str | None = None) -> None:
    """A flag that is text here and there."""
    text = flags.text(name)
    if text is not None:
        draft.mapped(f"--{name}", text, path, text, mark=flags[name].mark)
    elif default is not None and name not in flags:
        draft.default(f"--{name}", path, default)


def put_whole(flags: Flags, draft: Draft, name: str, path: KeyPath, default: int) -> None:
    """A flag that is a whole number here and there."""
    number = flags.whole(name)
    if number is not None:
        draft.mapped(f"--{name}", flags[name].text, path, number, mark=flags[name].mark)
    elif name not in flags:
        draft.default(f"--{name}", path, default)


def put_switch(flags: Flags, draft: Draft, name: str, path: KeyPath, default: bool) -> None:
    """A flag that is on or off here and there."""
    switch = flags.switch(name)
    if switch is not None:
        draft.mapped(f"--{name}", flags[name].text or "True", path, switch, mark=flags[name].mark)
    elif name not in flags:
        draft.default(f"--{name}", path, default)


def name_draft(flags: Flags, draft: Draft) -> None:
    """Name the recipe after the run, or after its folder."""
    run_name, folder = flags.text("run_name"), draft.read(STAGE, "output_dir")
    if run_name:
        draft.name = run_name
        draft.tell_mapped("--run_name", run_name, ("name",), mark=flags["run_name"].mark)
    elif isinstance(folder, str):
        draft.name = folder.rstrip("/").rpartition("/")[2]


def _translate_model(flags: Flags, draft: Draft) -> None:
    tower = (MODEL, "vision_tower")
    put_text(flags, draft, "model_name_or_path", (MODEL, "language_model"))
    _translate_tower(flags, draft)
    put_whole(flags, draft, "mm_vision_select_layer", (*tower, "select_layer"), -1)
    put_text(flags, draft, "mm_vision_select_feature", (*tower, "select_feature"), "patch")
    projector = "image_projector_type" if "image_projector_type" in flags else "mm_projector_type"
    put_text(flags, draft, projector, (MODEL, "projector", "type"), "linear")
    put_text(flags, draft, "pretrain_mm_mlp_adapter", (MODEL, "projector", "init_from"))
    put_switch(flags, draft, "mm_use_im_start_end", (MODEL, "image_tokens", "start_end"), False)
    put_switch(flags, draft, "mm_use_im_patch_token", (MODEL, "image_tokens", "patch"), True)


def _translate_tower(flags: Flags, draft: Draft) -> None:
    """The tower for images, which Video-LLaVA and MoE-LLaVA have beside one for videos."""
    names = [name for name in ("image_tower", "vision_tower") if name in flags]
    put_text(flags, draft, names[0] if names else "vision_tower", (MODEL, "vision_tower", "source"))
    for name in names[1:]:
        flag = flags[name]
        draft.lost(f"--{name}", flags.text(name) or "", f"`--{names[0]}` is the tower for images", flag.mark)
    if not names and "video_tower" in flags:
        draft.problems.append(
            Problem(
                "this model has a tower for videos and none for images; recipes train on images alone",
                code="no-image-tower",
                mark=flags["video_tower"].mark,
                found=f"--video_tower {flags['video_tower'].text}",
                hint="migrate a script with `--image_tower`, or name a CLIP or SigLIP model with it here",
            )
        )


def _translate_lora(flags: Flags, draft: Draft) -> bool:
    is_on = flags.switch("lora_enable")
    lora: KeyPath = (STAGE, "lora")
    if not is_on:
        for name in ("lora_enable", "lora_r", "lora_alpha", "lora_dropout", "lora_bias", "lora_weight_path"):
            flag = flags.take(name)
            if flag is not None:
                draft.needless(f"--{name}", flag.text, "LoRA is off", flag.mark)
    else:
        remark = "every linear layer of the language model, as in the original"
        draft.mapped("--lora_enable", "True", (*lora, "modules"), ["language_model"], remark=remark)
        translate_lora_numbers(flags, draft)
        for name in ("use_dora", "use_rslora"):
            if name in flags:
                put_switch(flags, draft, name, (*lora, name), False)
        weights = flags.text("lora_weight_path")
        if weights:
            draft.lost("--lora_weight_path", weights, "the original does not read it either")
    translate_quantization(flags, draft)
    return bool(is_on)


def translate_lora_numbers(flags: Flags, draft: Draft) -> None:
    """The adapters' size, which LLaVA and TinyLLaVA call by the same names."""
    lora: KeyPath = (STAGE, "lora")
    put_whole(flags, draft, "lora_r", (*lora, "r"), 64)
    put_whole(flags, draft, "lora_alpha", (*lora, "alpha"), 16)
    dropout = flags.number("lora_dropout")
    if dropout is not None:
        mark = flags["lora_dropout"].mark
        draft.mapped("--lora_dropout", say_number(dropout), (*lora, "dropout"), dropout, mark=mark)
    elif "lora_dropout" not in flags:
        draft.default("--lora_dropout", (*lora, "dropout"), 0.05)
    put_text(flags, draft, "lora_bias", (*lora, "bias"), "none")


def _translate_rates(flags: Flags, draft: Draft) -> None:
    translate_rate("mm_projector_lr", "projector", flags, draft)
    translate_rate("mm_vision_tower_lr", "vision_tower", flags, draft)


def translate_rate(name: str, module: str, flags: Flags, draft: Draft) -> None:
    """A learning rate of its own for one module."""
    rate = flags.number(name)
    if rate is None:
        return
    trained = draft.read(STAGE, "trainable")
    if module not in (trained if isinstance(trained, list) else []):
        draft.needless(f"--{name}", flags[name].text, f"the {module} does not train", flags[name].mark)
        return
    groups = draft.read(STAGE, "param_groups")
    entries = list(groups) if isinstance(groups, list) else []
    path = (STAGE, "param_groups")
    entries.append({"modules": [module], "learning_rate": rate})
    draft.mapped(f"--{name}", flags[name].text, path, entries, mark=flags[name].mark)


def _translate_data(
    flags: Flags, draft: Draft, *, program: Program, is_next: bool, read_text: ReadText
) -> None:
    translate_version(flags, draft, program)
    translate_sources(flags, draft, read_text)
    put_text(flags, draft, "image_aspect_ratio", (STAGE, "data", "image_aspect_ratio"), "square")
    put_whole(flags, draft, "model_max_length", (STAGE, "data", "max_length"), 4096 if is_next else 512)
    put_switch(flags, draft, "lazy_preprocess", (STAGE, "data", "lazy_preprocess"), False)
    translate_grouping(flags, draft)
    # Which accelerate a fork has, is not known.
    if program.is_known:
        _translate_order(draft, is_next=is_next)
    translate_pictures(flags, draft)


def _translate_order(draft: Draft, *, is_next: bool) -> None:
    """No flag says in which order samples are drawn; the version of accelerate does."""
    order, remark = "original", "accelerate 0.21, which the original pins, draws its own on several GPUs"
    if is_next:
        order, remark = "seed", "LLaVA-NeXT's, with accelerate 0.29.1 or newer, is another one"
    comment = "as accelerate 0.21 draws it" if order == "original" else "LLaVA-NeXT's is another one"
    draft.default("order of samples", (STAGE, "data", "order"), order, remark=remark, comment=comment)


def translate_grouping(flags: Flags, draft: Draft) -> None:
    """`--group_by_modality_length`, and Hugging Face's `--group_by_length`."""
    path = (STAGE, "data", "group_by")
    by_modality, by_length = flags.switch("group_by_modality_length"), flags.switch("group_by_length")
    for name, value, word in (
        ("group_by_modality_length", by_modality, "modality_length"),
        ("group_by_length", by_length, "length"),
    ):
        if value is not None:
            flag = flags[name]
            chosen = word if value else draft.read(*path) or "none"
            sorts = "Hugging Face's sampler, which sorts otherwise" if chosen == "length" else ""
            draft.mapped(f"--{name}", flag.text or "True", path, chosen, remark=sorts, mark=flag.mark)
    if by_modality is None and by_length is None and "group_by" in Data.model_fields:
        draft.default("--group_by_modality_length", path, "none")
