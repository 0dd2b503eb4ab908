"""YAML configs of axolotl and LLaMA-Factory as recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from llava_recipes.errors import Mark, RecipeError
from llava_recipes.migrate.deepspeed_files import OTHER, ReadText, translate_deepspeed
from llava_recipes.migrate.draft import IsFolder, Kind, Migration, combine
from llava_recipes.migrate.llava import QUANTIZATION, put_bits, with_num_samples
from llava_recipes.migrate.settings import Keys, Row
from llava_recipes.projectors import STOCK
from llava_recipes.recipe.scalars import Value, spell_value
from llava_recipes.recipe.source import parse_source

_TRAIN_KEYS = (
    *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("warmup_ratio", "warmup_steps", "bf16", "fp16", "tf32", "logging_steps", "save_strategy", "save_steps"),
    *("save_total_limit", "seed", "max_steps", "dataloader_num_workers", "gradient_accumulation_steps"),
    *("per_device_eval_batch_size", "eval_strategy", "eval_steps", "gradient_checkpointing"),
)
_SAME: Mapping[str, str] = {key: f"train.{key}" for key in _TRAIN_KEYS} | {
    "output_dir": "output_dir",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
}
AXOLOTL: Mapping[str, str] = {
    **_SAME,
    "val_set_size": "data.validation.split",
    "micro_batch_size": "train.per_device_train_batch_size",
    "eval_batch_size": "train.per_device_eval_batch_size",
    "num_epochs": "train.num_train_epochs",
    "optimizer": "train.optim",
    "lr_scheduler": "train.lr_scheduler_type",
    "sequence_len": "data.max_length",
    "lora_r": "lora.r",
    "peft_use_dora": "lora.use_dora",
    "peft_use_rslora": "lora.use_rslora",
    "mm_vision_tower": "model.vision_tower.source",
    "mm_vision_select_layer": "model.vision_tower.select_layer",
    "mm_vision_select_feature": "model.vision_tower.select_feature",
    "mm_projector_type": "model.projector.type",
    "pretrain_mm_mlp_adapter": "model.projector.init_from",
    "mm_use_im_start_end": "model.image_tokens.start_end",
    "mm_use_im_patch_token": "model.image_tokens.patch",
}
LLAMA_FACTORY: Mapping[str, str] = {
    **_SAME,
    "val_size": "data.validation.split",
    "per_device_train_batch_size": "train.per_device_train_batch_size",
    "num_train_epochs": "train.num_train_epochs",
    "optim": "train.optim",
    "lr_scheduler_type": "train.lr_scheduler_type",
    "cutoff_len": "data.max_length",
    "lora_rank": "lora.r",
    "use_dora": "lora.use_dora",
    "use_rslora": "lora.use_rslora",
}
OFF = frozenset(
    {
        *("load_in_8bit", "load_in_4bit", "sample_packing", "eval_sample_packing", "train_on_inputs"),
        *("group_by_length", "pad_to_sequence_len", "strict", "debug", "packing", "neat_packing"),
        *("flash_attention", "xformers_attention", "sdp_attention", "auto_resume_from_checkpoints"),
        *("resume_from_checkpoint", "overwrite_cache", "overwrite_output_dir", "plot_loss", "do_eval"),
        *("do_predict", "predict_with_generate", "use_llama_pro", "use_galore", "use_badam", "pure_bf16"),
        *("disable_shuffling", "streaming", "push_to_hub", "trust_remote_code", "lora_on_cpu"),
        *("is_llama_derived_model", "tokenizer_legacy", "gptq", "upcast_layernorm", "pissa_init"),
        *("compute_accuracy", "include_num_input_tokens_seen", "use_adam_mini", "create_new_adapter"),
    }
)
"""Keys without a key in recipes that change nothing when they are `false`."""
NEEDLESS: Mapping[str, str] = {
    **dict.fromkeys(
        ("flash_attention", "flash_attn", "sdp_attention", "xformers_attention", "attn_implementation"),
        "the fastest attention available is used, with the same results",
    ),
    **dict.fromkeys(
        ("overwrite_cache", "preprocessing_num_workers", "dataset_prepared_path", "cache_dir"),
        "samples are tokenized when they are drawn",
    ),
    **dict.fromkeys(
        ("do_train", "overwrite_output_dir", "plot_loss", "strict", "debug", "local_rank", "ddp_timeout"),
        "it doesn't change the training",
    ),
    **dict.fromkeys(
        ("model_type", "tokenizer_type", "processor_type", "trust_remote_code", "multimodal"),
        "the model's config determines it",
    ),
    **dict.fromkeys(
        ("wandb_project", "wandb_entity", "wandb_watch", "wandb_name", "wandb_log_model", "run_name"),
        "W&B reads environment variables; the run is named after the recipe",
    ),
    **dict.fromkeys(
        ("skip_prepare_dataset", "remove_unused_columns", "pad_to_sequence_len", "stage"),
        "the recipe's `data` determines it",
    ),
}
WHOLE_MODELS: Mapping[str, tuple[str, str]] = {
    f"llava-hf/llava-1.5-{size}-hf": (f"liuhaotian/llava-v1.5-{size}", "openai/clip-vit-large-patch14-336")
    for size in ("7b", "13b")
}
"""Whole LLaVA models by hub id: the same weights in the original's layout, and their tower."""
_SAME_TEXT: Mapping[str, str] = MappingProxyType(
    {"llava": "v1", "vicuna": "v1", "vicuna_v1": "v1", "v1": "v1", "plain": "plain"}
)
_BY_NAME: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("llama3", "llama_3"), "llama_3"),
        **dict.fromkeys(("qwen", "qwen2_vl", "qwen_25"), "qwen"),
        "gemma": "gemma",
        **dict.fromkeys(("phi3", "phi_3", "phi_35"), "phi3"),
    }
)
"""Templates of the same models whose text was not compared."""
_PARTS = (
    ("freeze_multi_modal_projector", ("projector",), True),
    ("freeze_vision_tower", ("vision_tower",), True),
    ("freeze_language_model", ("language_model", "lm_head"), False),
)
"""LLaMA-Factory's switches, what they freeze, and their default."""
_FACTORY_QUANTIZATION = (
    Row("quantization_type", f"{QUANTIZATION}.type", "text", "nf4"),
    Row("double_quantization", f"{QUANTIZATION}.double_quant", "switch", True),
)
_ORDER = ("projector", "language_model", "lm_head", "vision_tower")


def migrate_yaml(
    text: str, file: str, *, recipe_file: str, read_text: ReadText, is_folder: IsFolder
) -> Migration:
    """The recipe of an axolotl or LLaMA-Factory config. Raises RecipeError if it is neither."""
    document = parse_source(text, file)
    if document.problems:
        raise RecipeError(*document.problems)
    config = Keys(document)
    if "base_model" in config.names():
        _axolotl(config, read_text)
    elif any(key in config.names() for key in ("finetuning_type", "cutoff_len", "dataset_dir")):
        _llama_factory(config, read_text)
    else:
        raise RecipeError.of(
            "this is a config of neither axolotl nor LLaMA-Factory",
            code="unknown-config-format",
            mark=Mark(file, 0, 0),
            hint="axolotl configs have `base_model`, LLaMA-Factory configs `finetuning_type`",
        )
    config.finish()
    folder = config.draft.read("output_dir")
    name = folder if isinstance(folder, str) else file
    config.draft.name = name.rstrip("/").rpartition("/")[2].partition(".yaml")[0]
    return combine([config.draft], file=file, recipe_file=recipe_file, is_folder=is_folder)


def _axolotl(config: Keys, read_text: ReadText) -> None:
    _refuse_preferences(config, "rl", trains=())
    _whole_model(config, "base_model")
    lora = config.take("adapter")
    has_adapters = lora in ("lora", "qlora")
    if has_adapters:
        _adapters(config, "adapter", ("lora_target_linear", "lora_target_modules"))
    elif lora is not None:
        config.lost("adapter", "recipes support lora and qlora")
    four, eight = config.take("load_in_4bit"), config.take("load_in_8bit")
    if four is True or lora == "qlora":
        put_bits(config, "load_in_4bit" if four is True else "adapter", 4)
        config.default("bnb_4bit_quant_type", f"{QUANTIZATION}.type", "nf4")
        config.default("bnb_4bit_use_double_quant", f"{QUANTIZATION}.double_quant", True)
    elif eight is True:
        put_bits(config, "load_in_8bit", 8)
    _axolotl_freezing(config, has_adapters=has_adapters)
    _template(config, "chat_template")
    _axolotl_data(config)
    if config.take("group_by_length") is True:
        config.put("group_by_length", "data.group_by", "length")
    if config.take("train_on_inputs") is True:
        config.lost("train_on_inputs", "only answers are learned")
    saves = config.take("saves_per_epoch")
    if saves == 1:
        config.put("saves_per_epoch", "train.save_strategy", "epoch")
    elif saves is not None:
        config.lost("saves_per_epoch", "write `save_steps:` under `train:`")
    if config.take("sample_packing") is True:
        config.lost("sample_packing", "samples are not packed")
    _rest(config, AXOLOTL, read_text, defaults={"num_epochs": 1, "lr_scheduler": "cosine", "seed": 42})


def _axolotl_freezing(config: Keys, *, has_adapters: bool) -> None:
    """The projector trains, and with it the language model or its adapters unless they are frozen."""
    given = {key: config.take(key) for key in ("tune_mm_mlp_adapter", "mm_freeze_backbone")}
    alone = given["tune_mm_mlp_adapter"] is True
    is_frozen = alone or given["mm_freeze_backbone"] is True
    trained: list[Value] = ["projector"] if is_frozen else ["projector", "language_model", "lm_head"]
    if has_adapters and not alone:
        trained = []
    config.draft.put("freeze", "all")
    config.draft.put("trainable", trained)
    for key, value in given.items():
        if value is not None:
            config.mapped(key, "trainable")
    if not is_frozen:
        config.default("what trains", "trainable", trained)


def _axolotl_data(config: Keys) -> None:
    images, datasets = config.take("mm_image_folder"), config.take("datasets")
    for index, entry in enumerate(datasets if isinstance(datasets, list) else []):
        settings = entry if isinstance(entry, dict) else {"path": entry}
        _source(config, "datasets", settings.get("path"), images, index)
        for key, value in settings.items():
            if key != "path":
                is_usual = (key, value) in (("ds_type", "json"), ("split", "train"))
                why = "it is what recipes do" if is_usual else "the records must have LLaVA's format"
                kind: Kind = "needless" if is_usual else "lost"
                name, mark = f"datasets[{index}].{key}", config.mark("datasets")
                config.draft.report(kind, name, spell_value(value), why, mark)
    if images is not None:
        config.mapped("mm_image_folder", "data.sources", shown=str(images))


def _llama_factory(config: Keys, read_text: ReadText) -> None:
    _refuse_preferences(config, "stage", trains=("sft",))
    _whole_model(config, "model_name_or_path")
    kind = config.take("finetuning_type")
    is_lora = kind in (None, "lora")
    if is_lora:
        _adapters(config, "finetuning_type", ("lora_target",))
    _llama_factory_bits(config)
    _llama_factory_freezing(config, "lora" if is_lora else kind)
    _template(config, "template")
    _llama_factory_data(config)
    rank = config["lora_rank"]
    defaults: dict[str, Value] = {"num_train_epochs": 3, "lr_scheduler_type": "linear", "cutoff_len": 2048}
    defaults |= {"learning_rate": 5e-5, "logging_steps": 500}
    if is_lora:
        alpha = 2 * rank if isinstance(rank, int) else 16
        defaults |= {"lora_rank": 8, "lora_alpha": alpha, "lora_dropout": 0.0}
    _rest(config, LLAMA_FACTORY, read_text, defaults=defaults)


def _llama_factory_bits(config: Keys) -> None:
    """`quantization_bit` and its keys."""
    bits = config.take("quantization_bit")
    if bits is None:
        return
    method = config.take("quantization_method")
    if bits not in (4, 8) or method not in (None, "bitsandbytes", "bnb"):
        config.lost("quantization_bit", "recipes support 4 and 8 bits, of bitsandbytes")
        if method is not None:
            config.lost("quantization_method", "recipes support bitsandbytes")
        return
    assert isinstance(bits, int)
    put_bits(config, "quantization_bit", bits)
    if method is not None:
        config.needless("quantization_method", "it is what recipes use", shown=str(method))
    for row in _FACTORY_QUANTIZATION:
        if bits == 4:
            config.translate([row])
        elif row.name in config:
            config.needless(row.name, "it has an effect with 4 bits alone")


def _llama_factory_freezing(config: Keys, kind: Value) -> None:
    """`full` trains the language model, and other parts if they aren't frozen; `lora` its adapters."""
    trained = {"language_model", "lm_head"} if kind == "full" else set[str]()
    alone = config.take("train_mm_proj_only")
    for key, modules, default in _PARTS:
        given = config.take(key)
        freezes = default if given is None else given is True
        if alone is True:
            if given is not None:
                config.needless(key, "`train_mm_proj_only` replaces it")
            continue
        if freezes:
            trained -= set(modules)
        elif kind == "full":
            trained |= set(modules)
        if given is None and default:
            config.default(key, "trainable", True)
        elif given is not None and kind == "lora" and freezes != default:
            config.lost(key, "with adapters it selects other modules: write `lora: {modules: […]}`")
        elif given is not None:
            config.mapped(key, "trainable")
    if alone is True and kind == "full":
        trained = {"projector"}
    config.draft.put("freeze", "all")
    config.draft.put("trainable", [name for name in _ORDER if name in trained])
    if alone is True and kind != "full":
        config.lost("train_mm_proj_only", "it has an effect with `finetuning_type: full` alone")
    elif alone is not None:
        config.mapped("train_mm_proj_only", "trainable")
    if kind == "full":
        config.mapped("finetuning_type", "trainable", shown="full")
    elif kind != "lora":
        config.lost("finetuning_type", "write `freeze:` and `trainable:` in the stage")


def _llama_factory_data(config: Keys) -> None:
    """Data sets named in dataset_info.json, as files with these names."""
    folder = config.take("dataset_dir")
    given = next((key for key in ("image_dir", "media_dir") if key in config), "")
    own_images = config.take(given)
    whole = "data" if folder is None else folder
    images = whole if own_images is None else own_images
    why = f"{whole}/dataset_info.json has the names of the files: write them in"
    for index, name in enumerate(_listed(config.take("dataset"))):
        _source(config, "dataset", f"{whole}/{name}.json", images, index)
    if "dataset" in config and _listed(config["dataset"]):
        config.lost("dataset", f"{why} `sources:`")
    for key, value in (("dataset_dir", folder), (given, own_images)):
        if value is not None:
            config.mapped(key, "data.sources", shown=str(value))
    with_images = {"images": images} if isinstance(images, str) else {}
    path = "data.validation.sources"
    sources: list[Value] = [
        {"annotations": f"{whole}/{name}.json", **with_images}
        for name in _listed(config.take("eval_dataset"))
    ]
    if sources:
        config.draft.put(path, sources)
        config.lost("eval_dataset", f"{why} `validation:`", path=path)


def _listed(names: Value) -> list[str]:
    entries = names.split(",") if isinstance(names, str) else names if isinstance(names, list) else []
    return [str(name).strip() for name in entries]


def _refuse_preferences(config: Keys, key: str, *, trains: Sequence[str]) -> None:
    """Raise RecipeError for another kind of training; `trains` are the words for that of recipes."""
    value = config[key]
    if value is None or value is False or value in trains:
        return
    raise RecipeError.of(
        f"recipes don't have the kind of training of `{key}: {config.spell(key)}`",
        code="preference-training",
        mark=config.mark(key),
        found=config.spell(key),
        hint="a recipe trains on the answers of its records; migrate the config of a stage that does this",
    )


def _whole_model(config: Keys, key: str) -> None:
    """Put the language model, or the parts of a known LLaVA model."""
    name = config.take(key)
    if not isinstance(name, str):
        return
    if name not in WHOLE_MODELS:
        config.put(key, "model.language_model", name)
        return
    language, tower = WHOLE_MODELS[name]
    config.put(key, "model.language_model", language, "the same weights in the original's layout")
    config.draft.put("model.vision_tower.source", tower, "the tower of this model")
    config.draft.put("model.vision_tower.select_layer", -2)
    config.draft.put("model.projector.type", STOCK)


def _template(config: Keys, key: str) -> None:
    """Put the template of a conversation, or add the problem that there is none."""
    name = config.take(key)
    word = str(name)
    if name == "tokenizer_default":
        config.put(key, "data.chat_template", "tokenizer")
    elif word in _SAME_TEXT:
        config.put(key, "data.template", _SAME_TEXT[word])
    elif word in _BY_NAME:
        config.draft.put("data.template", _BY_NAME[word])
        why = "its text was not compared: check it with `llava-recipe preview`"
        config.lost(key, why, shown=word, path="data.template")
    elif name is not None:
        names, what = (*_SAME_TEXT, *_BY_NAME), f"the conversation `{word}`"
        config.refuse_conversation(word, names, config.mark(key), what=what, found=f"{key}: {word}")


def _adapters(config: Keys, key: str, targets: Sequence[str]) -> None:
    """Put adapters in every linear layer of the language model; `targets` may name others."""
    config.put(key, "lora.modules", ["language_model"], shown=spell_value(config[key] or "lora"))
    for target in targets:
        value = config.take(target)
        if value in (True, "all", "all-linear"):
            config.needless(target, "adapters go into every linear layer of the language model")
        elif value is not None:
            config.lost(target, "write module globs in `lora: {modules: […]}`")


def _source(config: Keys, key: str, path: Value, images: Value, index: int) -> None:
    if not isinstance(path, str):
        return
    if not path.endswith((".json", ".jsonl")):
        why = "this isn't a JSON file: write the records to one in LLaVA's format"
        config.lost(key, why, shown=spell_value(path))
    source: dict[str, Value] = {
        "annotations": path,
        **({"images": images} if isinstance(images, str) else {}),
    }
    before = config.draft.read("data.sources")
    sources = [*(before if isinstance(before, list) else []), with_num_samples(source)]
    config.draft.put("data.sources", sources)
    config.mapped(key, f"data.sources[{index}].annotations", shown=path)


def _rest(
    config: Keys, keys: Mapping[str, str], read_text: ReadText, *, defaults: Mapping[str, Value]
) -> None:
    steps = config["max_steps"]
    counts_steps = isinstance(steps, int) and steps > 0
    for key, default in defaults.items():
        if key not in config and not (counts_steps and "epochs" in key):
            config.default(key, keys[key], default)
    deepspeed = config.take("deepspeed")
    if isinstance(deepspeed, str):
        translate_deepspeed(config, deepspeed, read_text=read_text, program=OTHER)
    report_to = config.take("report_to")
    if report_to is None:
        config.default("report_to", "train.report_to", "wandb" if config["wandb_project"] else "none")
    else:
        config.put("report_to", "train.report_to", report_to)
    for key in config.left_over():
        value = config[key]
        if value is None:
            continue
        if value is False and key in OFF:
            config.needless(key, "it is off, as it is by default")
        elif key in ("val_size", "val_set_size", "evals_per_epoch") and not value:
            config.needless(key, "no data is held out")
        elif key in keys and keys[key].startswith("lora.") and config.draft.read("lora") is None:
            config.needless(key, "LoRA is off")
        elif key in keys:
            config.put(key, keys[key], True if value == "auto" and key == "bf16" else value)
        elif key in NEEDLESS:
            config.needless(key, NEEDLESS[key])
        else:
            config.lost(key, "recipes have no key for it yet")
