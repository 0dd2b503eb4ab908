"""Flags of LLaVA's training program, and of LLaVA-NeXT's, which has more; TinyLLaVA shares many of them."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.migrate.commands import UnknownLabel
from llava_recipes.migrate.deepspeed_files import (
    FORK,
    LLAVA,
    LLAVA_NEXT,
    DeepSpeedDefaults,
    ReadText,
    translate_deepspeed,
)
from llava_recipes.migrate.programs import (
    NEXT,
    NEXT_FLAGS,
    OF_LLAVA_NEXT_ALONE,
    Program,
    put_conversation,
    table_of,
)
from llava_recipes.migrate.settings import Flags, Kind, Row, Settings
from llava_recipes.recipe.names import EXTRA_FIELDS, REFUSED_FIELDS
from llava_recipes.recipe.renames import did_you_mean, nearest
from llava_recipes.recipe.scalars import Value
from llava_recipes.recipe.source import parse_value

_BRACES = re.compile(r"(.*)\{(.*)\}\.json", re.DOTALL)
_KEYS = {"json_path": "annotations", "sampling_strategy": "sampling_strategy"}
LORA_SIZE = (
    Row("lora_r", "lora.r", "whole", 64),
    Row("lora_alpha", "lora.alpha", "whole", 16),
    Row("lora_dropout", "lora.dropout", "number", 0.05),
    Row("lora_bias", "lora.bias", "text", "none"),
)
"""The adapters' size: the same flags in LLaVA and TinyLLaVA."""
TOWER_OUTPUT = (
    Row("mm_vision_select_layer", "model.vision_tower.select_layer", "whole", -1),
    Row("mm_vision_select_feature", "model.vision_tower.select_feature", "text", "patch"),
)
_TOKENS = (
    Row("pretrain_mm_mlp_adapter", "model.projector.init_from", "text"),
    Row("mm_use_im_start_end", "model.image_tokens.start_end", "switch", False),
    Row("mm_use_im_patch_token", "model.image_tokens.patch", "switch", True),
)
QUANTIZATION = "model.language_model.quantization"
_QUANTIZATION = (
    Row("quant_type", f"{QUANTIZATION}.type", "text", "nf4"),
    Row("double_quant", f"{QUANTIZATION}.double_quant", "switch", True),
)
_TRAIN_FLAGS: tuple[tuple[str, Kind, Value], ...] = (
    ("per_device_train_batch_size", "whole", 8),
    ("per_device_eval_batch_size", "whole", 8),
    ("gradient_accumulation_steps", "whole", 1),
    ("learning_rate", "number", 5e-5),
    ("weight_decay", "number", 0.0),
    ("adam_beta1", "number", None),
    ("adam_beta2", "number", None),
    ("adam_epsilon", "number", None),
    ("max_grad_norm", "number", 1.0),
    ("optim", "text", "adamw_torch"),
    ("lr_scheduler_type", "text", "linear"),
    ("bf16", "switch", False),
    ("fp16", "switch", None),
    ("tf32", "switch", None),
    ("gradient_checkpointing", "switch", False),
    ("dataloader_num_workers", "whole", 0),
    ("logging_steps", "whole", 500),
    ("save_strategy", "text", "steps"),
    ("save_steps", "whole", 500),
    ("save_total_limit", "whole", None),
    ("seed", "whole", 42),
)
"""Flags of transformers 4's TrainingArguments that have the same name under `train`."""
_TRAIN = tuple(Row(name, f"train.{name}", kind, default) for name, kind, default in _TRAIN_FLAGS)
_NEXT_TRAIN = tuple(
    row._replace(default=True) if row.name == "gradient_checkpointing" else row for row in _TRAIN
)
"""LLaVA-NeXT changes one default of Hugging Face's."""

_PARTS = {
    "mm_mlp_adapter": ["projector"],
    "mm_vision_tower": ["vision_tower"],
    "mm_language_model": ["language_model", "lm_head"],
}
_SWITCHES = (
    "tune_mm_mlp_adapter",
    "freeze_mm_mlp_adapter",
    "freeze_backbone",
    "unfreeze_mm_vision_tower",
    "unfreeze_language_model",
)
_ORDER = ("projector", "image_tokens", "language_model", "image_newline", "lm_head", "vision_tower")

_EVAL_DATA = ("eval_data_path", "validation_data_path", "val_data_path")
_EVAL_IMAGES = ("eval_image_folder", "validation_image_folder", "val_image_folder")
_EVAL_STRATEGIES = ("evaluation_strategy", "eval_strategy")
_NO_EVAL_DATA = "the script has no validation data: write `validation:` under `data:`"

_NEEDLESS: Mapping[str, str] = MappingProxyType(
    {
        "remove_unused_columns": "recipes have no columns",
        "do_train": "a stage always trains",
        "overwrite_output_dir": "a finished run is never overwritten",
        "logging_dir": "logs go to `output_dir`",
        "cache_dir": "the variable HF_HOME sets the folder for models",
        "local_rank": "`llava-recipe run` starts the processes",
        "attn_implementation": "the fastest attention available is used, with the same results",
        "tokenizer_use_fast": "the token ids are those of the slow tokenizer",
        "is_multimodal": "a source with `images` has images",
        "save_safetensors": "both formats are written",
        "logging_strategy": "`logging_steps` counts steps",
        "logging_first_step": "with `logging_steps: 1` every step is logged",
        "mpt_attn_impl": "it is for another language model",
        "verbose_logging": "it doesn't change the training",
        "disable_tqdm": "llava-recipe shows the progress itself",
        "resume_from_checkpoint": "run `llava-recipe run FILE --resume`",
        "tokenizer_padding_side": "sequences are padded on the right",
    }
)
_LABELS: Mapping[str, str] = MappingProxyType({"run_name": "the recipe is named after its folder"})
_KINDS: Mapping[str, Kind] = MappingProxyType(
    {"bool": "switch", "int": "whole", "float": "number", "str": "text"}
)
"""How a flag of a type is read; the first of a field's types in this table counts."""
_LARGEST_BATCH = 10_000_000
_TRACKERS = ("wandb", "tensorboard")

NUM_SAMPLES: Mapping[str, int] = MappingProxyType(
    {
        "blip_laion_cc_sbu_558k.json": 558_128,
        "llava_v1_5_mix665k.json": 665_298,
        "llava_instruct_80k.json": 80_000,
        "llava_instruct_150k.json": 157_712,
        # Another name of the same file, in the original's scripts.
        "llava_instruct_158k.json": 157_712,
        # The train split of ScienceQA, as the original's converter writes it.
        "llava_train_QCM-LEA.json": 12_726,
    }
)
"""The number of records in public annotation files, by name."""


def translate_llava(flags: Flags, *, program: Program, read_text: ReadText) -> None:
    """Fill in the draft of one training command."""
    # Open-LLaVA-NeXT has LLaVA's defaults.
    is_next = program.name == NEXT
    _translate_model(flags)
    is_lora = _translate_lora(flags)
    _translate_freezing(flags, lora=is_lora)
    translate_rate("mm_projector_lr", "projector", flags)
    translate_rate("mm_vision_tower_lr", "vision_tower", flags)
    _translate_version(flags, program)
    translate_data(flags, read_text, max_length=4096 if is_next else 512)
    # The accelerate of a fork is not known.
    if program.is_known:
        _put_order(flags, is_next=is_next)
    _translate_images(flags)
    pins = LLAVA_NEXT if is_next else LLAVA if program.is_known else FORK
    translate_training(flags, read_text, pins, rows=_NEXT_TRAIN if is_next else _TRAIN)
    name_draft(flags)
    translate_rest(flags, (*NEXT_FLAGS, *OF_LLAVA_NEXT_ALONE, "use_dora", "use_rslora"), program)


def name_draft(flags: Flags) -> None:
    """Name the recipe after the run or its folder."""
    run_name, folder = flags.text("run_name"), flags.draft.read("output_dir")
    if run_name:
        flags.draft.name = run_name
        flags.mapped("run_name", "name")
    elif isinstance(folder, str):
        flags.draft.name = folder.rstrip("/").rpartition("/")[2]


def _translate_model(flags: Flags) -> None:
    flags.translate([Row("model_name_or_path", "model.language_model", "text")])
    _translate_tower(flags)
    projector = "image_projector_type" if "image_projector_type" in flags else "mm_projector_type"
    flags.translate((*TOWER_OUTPUT, Row(projector, "model.projector.type", "text", "linear"), *_TOKENS))


def _translate_tower(flags: Flags) -> None:
    """The tower for images; Video-LLaVA and MoE-LLaVA have another for videos."""
    names = [name for name in ("image_tower", "vision_tower") if name in flags]
    flags.translate([Row((names or ["vision_tower"])[0], "model.vision_tower.source", "text")])
    for name in names[1:]:
        flags.text(name)
        flags.lost(name, f"`--{names[0]}` is the tower for images")
    if not names and "video_tower" in flags:
        flags.draft.problems.append(
            Problem(
                "this model has a tower for videos and none for images, but recipes train on images alone",
                code="no-image-tower",
                mark=flags.mark("video_tower"),
                found=f"--video_tower {flags.spell('video_tower')}",
                hint="migrate a script with `--image_tower`, or set it to a CLIP or SigLIP model here",
            )
        )


def _translate_lora(flags: Flags) -> bool:
    is_on = flags.switch("lora_enable") is True
    if is_on:
        remark = "every linear layer of the language model, as in the original"
        flags.put("lora_enable", "lora.modules", ["language_model"], remark, shown="True")
        variants = [Row(name, f"lora.{name}", "switch") for name in ("use_dora", "use_rslora")]
        flags.translate((*LORA_SIZE, *variants))
        if flags.text("lora_weight_path"):
            flags.lost("lora_weight_path", "the original doesn't read it either")
    else:
        for name in ("lora_enable", *(row.name for row in LORA_SIZE), "lora_weight_path"):
            flags.needless(name, "LoRA is off")
    translate_quantization(flags)
    return is_on


def put_bits(settings: Settings, name: str, bits: int, *, shown: str | None = None) -> None:
    """Put the setting that quantizes the language model's weights to 4 or 8 bits."""
    source = settings.draft.read("model.language_model")
    if not isinstance(source, dict):
        settings.draft.put("model.language_model", {} if source is None else {"source": source})
    settings.put(name, f"{QUANTIZATION}.bits", bits, shown=shown)


def translate_quantization(flags: Flags, *, recipe_bits: int | None = None) -> None:
    """`--bits` and its flags; `recipe_bits` are set by another flag."""
    bits = flags.whole("bits")
    if recipe_bits is not None:
        if bits is not None:
            report = flags.needless if bits in (16, recipe_bits) else flags.lost
            report("bits", f"`--training_recipe` sets {recipe_bits} bits")
        bits = recipe_bits
    elif bits in (4, 8):
        put_bits(flags, "bits", bits)
    elif bits in (16, 32):
        flags.needless("bits", "`bf16` and `fp16` set 16 or 32 bits")
    elif bits is not None:
        flags.lost("bits", "recipes support 4, 8, 16 and 32 bits")
    if bits == 4:
        flags.translate(_QUANTIZATION)
        return
    for row in _QUANTIZATION:
        if flags.take(row.name) is not None:
            report = flags.needless if bits in (None, 8, 16, 32) else flags.lost
            report(row.name, "it has an effect with 4 bits alone")


def _translate_freezing(flags: Flags, *, lora: bool) -> None:
    """`freeze` and `trainable`; with adapters the language model itself stays frozen."""
    draft = flags.draft
    switches = {name: flags.switch(name) for name in _SWITCHES}
    parts = flags.text("mm_tunable_parts")
    trained = _switched(switches, flags, lora=lora) if parts is None else _tunable_parts(parts, flags)
    if _has_newline(flags) and "language_model" in trained:
        # The program treats it as a parameter of the language model.
        trained.add("image_newline")
    draft.put("freeze", "all")
    draft.put("trainable", [name for name in _ORDER if name in trained])
    if parts is not None:
        flags.mapped("mm_tunable_parts", "trainable")
    elif not any(switches.values()):
        remark = "" if lora else "all but the vision tower"
        draft.default("what trains", "trainable", draft.read("trainable"), remark=remark)
    for name, value in switches.items():
        if value is not None and parts is not None:
            flags.needless(name, "`mm_tunable_parts` replaces it")
        elif value is not None:
            flags.mapped(name, "trainable")
    if lora and switches["tune_mm_mlp_adapter"] and parts is None:
        draft.drop("lora")
        draft.entries = [entry for entry in draft.entries if not entry.key.startswith("lora.")]
        why = "`tune_mm_mlp_adapter` freezes the adapters too, so they never train"
        flags.needless("lora_enable", why, shown="True")


def _switched(switches: Mapping[str, bool | None], flags: Flags, *, lora: bool) -> set[str]:
    if switches["tune_mm_mlp_adapter"]:
        trained = {"projector"}
        if flags.draft.read("model.image_tokens.start_end") is True:
            # The original trains all embeddings, and saves those of the two tokens.
            trained.add("image_tokens")
    elif lora:
        trained = {"projector"}
    else:
        # The original's `freeze_backbone` freezes the decoder, but not the head.
        trained = {"projector", "lm_head"} | (set() if switches["freeze_backbone"] else {"language_model"})
    if switches["freeze_mm_mlp_adapter"]:
        trained.discard("projector")
    if switches["unfreeze_mm_vision_tower"]:
        trained.add("vision_tower")
    if switches["unfreeze_language_model"]:
        trained |= {"language_model", "lm_head"}
    return trained


def _tunable_parts(parts: str, flags: Flags) -> set[str]:
    trained: set[str] = set()
    for part in (name.strip() for name in parts.split(",")):
        if part in _PARTS:
            trained.update(_PARTS[part])
        else:
            flags.lost("mm_tunable_parts", "recipes don't have this module", shown=part)
    return trained


def translate_rate(name: str, module: str, flags: Flags) -> None:
    """A separate learning rate for one module."""
    rate = flags.number(name)
    if rate is None:
        return
    trained, groups = (flags.draft.read(path) for path in ("trainable", "param_groups"))
    if not isinstance(trained, list) or module not in trained:
        flags.needless(name, f"`{module}` doesn't train")
        return
    before = groups if isinstance(groups, list) else []
    flags.put(name, "param_groups", [*before, {"modules": [module], "learning_rate": rate}])


def _translate_version(flags: Flags, program: Program) -> None:
    version = flags.text("version")
    if version is not None:
        put_conversation("version", version, flags, program=program, table=table_of(program))
    elif "version" in flags:
        return
    elif program.kind == "next":
        flags.default("version", "data.template", "v0")
    elif program.is_known:
        flags.default("version", "data.template", "v1", "the original uses vicuna_v1 for its default `v0`")
    else:
        flags.draft.put("data.template", "v1", "not in the script: the program's default is not known")
        why = f"it is left out, and the default of {program.name} is not known; `v1` is LLaVA's"
        flags.lost("version", why, path="data.template")


def translate_data(flags: Flags, read_text: ReadText, *, max_length: int) -> None:
    """Fill in `data` from the flags that LLaVA and TinyLLaVA share."""
    translate_sources(flags, read_text)
    flags.translate(
        [
            Row("image_aspect_ratio", "data.image_aspect_ratio", "text", "square"),
            Row("model_max_length", "data.max_length", "whole", max_length),
            Row("lazy_preprocess", "data.lazy_preprocess", "switch", False),
        ]
    )
    groupings = (("group_by_modality_length", "modality_length"), ("group_by_length", "length"))
    given = {name: flags.switch(name) for name, _ in groupings}
    for name, word in groupings:
        if given[name] is not None:
            chosen = word if given[name] else flags.draft.read("data.group_by") or "none"
            remark = "Hugging Face's sampler sorts differently" if chosen == "length" else ""
            flags.put(name, "data.group_by", chosen, remark)
    if not any(value is not None for value in given.values()):
        flags.default("group_by_modality_length", "data.group_by", "none")


def _put_order(flags: Flags, *, is_next: bool) -> None:
    """Put the order of samples, which follows from the program's version of accelerate."""
    order, remark, comment = (
        ("seed", "with accelerate 0.29.1 or newer, LLaVA-NeXT's order differs", "LLaVA-NeXT's order differs")
        if is_next
        else (
            "original",
            "accelerate 0.21, which the original pins, has its own order on several GPUs",
            "the order of accelerate 0.21",
        )
    )
    flags.draft.default("order of samples", "data.order", order, remark=remark, comment=comment)


def _has_newline(flags: Flags) -> bool:
    """Whether the model learns a newline at the end of a row; images of one part use none."""
    is_cut = flags.spell("image_aspect_ratio").startswith("anyres")
    return is_cut and "unpad" in flags.spell("mm_patch_merge_type")


def _translate_images(flags: Flags) -> None:
    """LLaVA-NeXT's crops and rows of features; `image_aspect_ratio` is read before."""
    # Also `anyres` variants that recipes don't have: a value changed to `anyres` by hand keeps its grids.
    is_anyres = str(flags.draft.read("data.image_aspect_ratio")).startswith("anyres")
    name = "mm_patch_merge_type"
    merging = flags.text(name)
    if merging is None:
        pass
    elif merging not in ("flat", "spatial", "spatial_unpad"):
        flags.lost(name, "recipes support flat, spatial and spatial_unpad")
    elif is_anyres:
        flags.put(name, f"data.{name}", merging)
    elif merging == "spatial_unpad":
        flags.lost(
            name, "recipes end rows of features in images of several parts; here each image is one part"
        )
    else:
        flags.needless(name, "each image is one part, with its features in one row")
    name = "image_grid_pinpoints"
    grids = flags.text(name)
    if grids is None:
        return
    if not is_anyres:
        flags.needless(name, "grids are used with `anyres` alone")
    elif (pairs := _read_grids(grids)) is None:
        flags.lost(name, "recipes list every grid: write pairs of pixels")
    else:
        flags.put(name, f"data.{name}", pairs)


def _read_grids(text: str) -> list[Value] | None:
    """Pairs in Python's syntax, `[(336, 672), (672, 336)]`; None for anything else, such as a range."""
    try:
        with warnings.catch_warnings():
            # The text is data: Python's opinion of it is not shown.
            warnings.simplefilter("ignore")
            found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(found, list) or not found:
        return None
    if any(not isinstance(pair, list | tuple) or [*map(type, pair)] != [int, int] for pair in found):
        return None
    return [list(pair) for pair in found]


def translate_training(
    flags: Flags, read_text: ReadText, pins: DeepSpeedDefaults, *, rows: Sequence[Row] = _TRAIN
) -> None:
    """Fill in `train`, `output_dir` and `deepspeed`; `rows` have the program's own defaults."""
    flags.translate(rows)
    _translate_length(flags)
    _translate_warmup(flags)
    _translate_evaluation(flags)
    _translate_reports(flags)
    flags.translate([Row("output_dir", "output_dir", "text")])
    deepspeed = flags.text("deepspeed")
    if deepspeed is not None:
        translate_deepspeed(flags, deepspeed, read_text=read_text, program=pins)


def _translate_length(flags: Flags) -> None:
    max_steps, epochs = flags.whole("max_steps"), flags.number("num_train_epochs")
    if max_steps is not None and max_steps > 0:
        flags.put("max_steps", "train.max_steps", max_steps)
        if epochs is not None:
            flags.needless("num_train_epochs", "`max_steps` replaces it")
        return
    flags.needless("max_steps", "epochs determine the length")
    if epochs is not None:
        value = int(epochs) if epochs == int(epochs) else epochs
        flags.put("num_train_epochs", "train.num_train_epochs", value)
    elif "num_train_epochs" not in flags:
        flags.default("num_train_epochs", "train.num_train_epochs", 3)


def _translate_warmup(flags: Flags) -> None:
    given = {"warmup_steps": flags.whole("warmup_steps"), "warmup_ratio": flags.number("warmup_ratio")}
    asked = [name for name, value in given.items() if value]
    for name in asked:
        if flags.draft.read("train.lr_scheduler_type") == "constant":
            flags.needless(name, "the schedule `constant` has no warm-up")
        elif name != asked[0]:
            flags.needless(name, "`warmup_steps` replaces it")
        else:
            flags.put(name, f"train.{name}", given[name])
    if not asked:
        for name in given:
            flags.needless(name, "0 is the default")


def _translate_reports(flags: Flags) -> None:
    flag = flags.take("report_to")
    if flag is None:
        remark = "the original reports to every installed tracker"
        flags.default("report_to", "train.report_to", "none", remark)
        return
    given = [name for value in flag.values for name in value.replace(",", " ").split()]
    for name in given:
        if name not in (*_TRACKERS, "none"):
            flags.lost("report_to", "recipes support wandb and tensorboard", shown=name)
    names: list[Value] = [name for name in dict.fromkeys(given) if name in _TRACKERS]
    value = names if len(names) > 1 else names[0] if names else "none"
    flags.put("report_to", "train.report_to", value, shown=flag.text)


def _translate_evaluation(flags: Flags) -> None:
    """Flags that measure a validation loss; the training data is filled in before."""
    has_data = _translate_validation(flags)
    counts = False
    for name in _EVAL_STRATEGIES:
        strategy = flags.text(name)
        if strategy is None:
            continue
        counts = strategy == "steps" and has_data
        if strategy in ("steps", "epoch") and not has_data:
            flags.lost(name, _NO_EVAL_DATA)
        elif strategy in ("no", "steps", "epoch"):
            flags.put(name, "train.eval_strategy", strategy)
        else:
            flags.lost(name, "recipes support no, steps and epoch")
    _translate_eval_steps(flags, counts=counts)
    flag = flags.take("do_eval")
    if flag is not None:
        asks, shown = flag.text.lower() not in ("false", "no", "0", "f", "n"), flag.text or "True"
        if asks and not has_data:
            flags.lost("do_eval", _NO_EVAL_DATA, shown=shown)
        else:
            why = "the loss on `data.validation` is always measured at the end" if asks else "it is off"
            flags.needless("do_eval", why, shown=shown)


def _translate_validation(flags: Flags) -> bool:
    name = next((name for name in _EVAL_DATA if name in flags), None)
    folder = next((name for name in _EVAL_IMAGES if name in flags), None)
    own_images = flags.text(folder) if folder is not None else None
    if name is None:
        if folder is not None:
            flags.needless(folder, "the script has no validation data")
        return False
    images, remark = own_images, ""
    if images is None and "image_folder" in flags:
        images, remark = flags.spell("image_folder"), "its images are those of `--image_folder`"
    with_images = {} if images is None else {"images": images}
    sources: list[Value] = [{"annotations": file, **with_images} for file in flags.texts(name)]
    if sources:
        flags.put(name, "data.validation.sources", sources, remark, shown=flags.spell(name))
        if folder is not None and own_images is not None:
            flags.mapped(folder, "data.validation.sources")
    return bool(sources)


def _translate_eval_steps(flags: Flags, *, counts: bool) -> None:
    if not counts:
        flags.needless("eval_steps", "no loss is measured every few steps")
        return
    number = flags.number("eval_steps")
    if number is not None and (number < 1 or not number.is_integer()):
        flags.lost("eval_steps", "it is a share of the run: write the number of steps as `eval_steps`")
    elif number is not None:
        flags.put("eval_steps", "train.eval_steps", int(number))
    elif "eval_steps" not in flags:
        logging = flags.draft.read("train.logging_steps")
        steps = logging if isinstance(logging, int) else 500
        flags.default("eval_steps", "train.eval_steps", steps, "`logging_steps`")


def put_total_batch(flags: Flags, num_processes: int | None) -> None:
    """Put the total batch if the launcher determines the number of processes."""
    draft, accumulated = flags.draft, "train.gradient_accumulation_steps"
    per_device, accumulation = draft.read("train.per_device_train_batch_size"), draft.read(accumulated)
    if num_processes is None or not isinstance(per_device, int) or not isinstance(accumulation, int):
        return
    total = per_device * num_processes * accumulation
    if total <= 0 or total > _LARGEST_BATCH:
        return
    draft.drop(accumulated)
    processes = "1 process" if num_processes == 1 else f"{num_processes} processes"
    draft.put("train.global_batch_size", total, f"{per_device} × {processes} × {accumulation}")
    product = f"{per_device} per device × {processes} × {accumulation} = {total:,} samples per step"
    draft.change_report(accumulated, product, new_key="train.global_batch_size")


def translate_rest(flags: Flags, own: Sequence[str], program: Program) -> None:
    """Report every flag that is left over; `own` are further flags of this program."""
    of_training = (*_NEEDLESS, *EXTRA_FIELDS, *_EVAL_DATA, *_EVAL_IMAGES, "evaluate_during_training")
    names = tuple(dict.fromkeys((*own, *flags.taken, *of_training)))
    for name in flags.left_over():
        kinds = EXTRA_FIELDS.get(name, "").split("|")
        kind = next((kind for word, kind in _KINDS.items() if word in kinds), None)
        if kind is not None:
            flags.translate([Row(name, f"train.extra.{name}", kind)])
        elif name in _NEEDLESS:
            flags.needless(name, _NEEDLESS[name])
        elif name in REFUSED_FIELDS:
            flags.lost(name, REFUSED_FIELDS[name].removeprefix("remove it: "))
        else:
            flags.lost(name, _why_lost(name, names, program))


def report_labels(labels: Sequence[UnknownLabel], flags: Flags) -> None:
    """Report labels whose value is not known as needless."""
    for label in labels:
        instead = _LABELS.get(label.name) or _NEEDLESS.get(label.name) or "the training doesn't depend on it"
        why = f"{label.problem.message.partition(',')[0]}, and it is a label: {instead}"
        flags.draft.report("needless", f"--{label.name}", label.text, why, label.problem.mark)


def _why_lost(name: str, names: Sequence[str], program: Program) -> str:
    if name.startswith("video_"):
        return "recipes train on images alone"
    if name in names:
        return "recipes have no key for it yet"
    if not program.is_known:
        # A fork may have a flag whose name is near one of these.
        near = nearest(name, names)
        why = "recipes have no key for it: a flag of the fork"
        return why if near is None else f"{why}, or `--{near}` misspelled"
    near = did_you_mean(name, [f"--{other}" for other in names])
    return near or f"{program.name} doesn't have this flag: it is a fork's, or misspelled"


@dataclass(frozen=True)
class Mix:
    """The sources that a path stands for, without images, and the list's keys that a source doesn't have."""

    sources: tuple[dict[str, Value], ...]
    lost: tuple[str, ...] = ()


def with_num_samples(source: dict[str, Value]) -> dict[str, Value]:
    """A source with its number of records if its name is that of a public file."""
    count = NUM_SAMPLES.get(str(source.get("annotations")).rpartition("/")[2])
    return source if count is None else {**source, "num_samples": count}


def translate_sources(flags: Flags, read_text: ReadText) -> None:
    """`--data_path` and `--image_folder`, also of several files.

    LLaVA takes one of each, forks take several words or a list with commas, and LLaVA-NeXT a path that stands
    for several files.
    """
    files, folders = _values(flags, "data_path"), _values(flags, "image_folder")
    if len(folders) > 1 and len(folders) != len(files):
        # A folder may have a comma in its name.
        folder = flags.text("image_folder")
        folders = () if folder is None else (folder,)
    if not files and not folders:
        return
    sources: list[dict[str, Value]] = []
    for number, file in enumerate(files or (None,)):
        images = {"images": folders[number if len(folders) > 1 else 0]} if folders else {}
        sources += [with_num_samples({**source, **images}) for source in _sources_of(file, flags, read_text)]
    for number, source in enumerate(sources):
        if "num_samples" in source:
            comment = "known from the file's name; checked when it is read"
            flags.draft.comments[f"data.sources[{number}].num_samples"] = comment
    flags.draft.put("data.sources", list[Value](sources))
    for name, values, key in (("data_path", files, "annotations"), ("image_folder", folders, "images")):
        if values:
            where = "data.sources" if len(sources) > 1 else f"data.sources[0].{key}"
            remark = (
                f"{len(values)} files, one source each" if name == "data_path" and len(values) > 1 else ""
            )
            flags.mapped(name, where, remark)


def _values(flags: Flags, name: str) -> tuple[str, ...]:
    """The paths of a flag; several words that aren't all data files are a problem."""
    flag = flags.take(name)
    if flag is None:
        return ()
    is_data = name == "data_path"
    listed = [part for value in flag.values for part in _comma_list(value, is_data=is_data)]
    if len(listed) == 1 or (len(listed) > 1 and (not is_data or all(map(_is_data_file, listed)))):
        return tuple(listed)
    text = flags.text(name)
    return () if text is None else (text,)


def _comma_list(text: str, *, is_data: bool) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    is_list = len(parts) > 1 and "{" not in text and (not is_data or all(map(_is_data_file, parts)))
    return parts if is_list else [text]


def _is_data_file(text: str) -> bool:
    return text.lower().endswith((".json", ".jsonl", ".yaml", ".yml", ".parquet"))


def _sources_of(annotations: str | None, flags: Flags, read_text: ReadText) -> Sequence[dict[str, Value]]:
    """A source for each file that one value of `--data_path` stands for."""
    if annotations is None:
        return [{}]
    mix = names_in_braces(annotations)
    is_list = annotations.endswith((".yaml", ".yml"))
    if is_list:
        found = read_text(annotations)
        mix = None if found is None else read_mix(found[1], annotations)
    if mix is None and (is_list or "{" in annotations or annotations.endswith(".txt")):
        why = "it stands for several files: write each as an entry of `sources:`"
        flags.lost("data_path", why, shown=annotations)
    if mix is None:
        return [{"annotations": annotations}]
    for key in mix.lost:
        flags.lost("data_path", f"a source has no key for `{key}` of its data sets", shown=annotations)
    return mix.sources


def names_in_braces(path: str) -> Mix | None:
    """The files of `folder/{a,b}.json`, as LLaVA-NeXT reads it; None for any other path."""
    match = _BRACES.fullmatch(path)
    if match is None:
        return None
    before, names = match.groups()
    return Mix(tuple({"annotations": f"{before}{name}.json"} for name in names.split(",")))


def read_mix(text: str, file: str) -> Mix | None:
    """The data sets in a YAML list of LLaVA-NeXT; None if it isn't one."""
    try:
        root = parse_value(text, file).root
    except RecipeError:
        return None
    datasets = root.get("datasets") if isinstance(root, dict) else None
    if not isinstance(datasets, list) or not datasets:
        return None
    sources: list[dict[str, Value]] = []
    lost: list[str] = []
    for dataset in datasets:
        if not isinstance(dataset, dict) or not isinstance(dataset.get("json_path"), str):
            return None
        sources.append({_KEYS[key]: value for key, value in dataset.items() if key in _KEYS})
        lost += [key for key in dataset if key not in _KEYS and key not in lost]
    return Mix(tuple(sources), tuple(lost))
