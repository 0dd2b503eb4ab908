"""YAML configs of axolotl and LLaMA-Factory as recipes: the keys that mean the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llava_recipes.migrate.combine import Migration, combine
from llava_recipes.migrate.deepspeed_files import OTHER, ReadText, translate_deepspeed
from llava_recipes.migrate.draft import MODEL, STAGE, Draft
from llava_recipes.migrate.known_data import known_num_samples
from llava_recipes.migrate.yaml_keys import AXOLOTL, LLAMA_FACTORY, NEEDLESS, TRAIN, WHOLE_MODELS
from llava_recipes.recipe.errors import Mark, Path, Problem, RecipeError
from llava_recipes.recipe.scalars import Value, spell_value
from llava_recipes.recipe.source import Document, parse_source


@dataclass
class _Config:
    """A YAML config: its values, what is read of them so far, and the draft they go to."""

    document: Document
    values: dict[str, Value]
    draft: Draft

    def take(self, key: str) -> Value:
        return self.values.pop(key, None)

    def mark(self, key: str) -> Mark | None:
        return self.document.locate((key,), on_key=True)

    def lost(self, key: str, value: Value, why: str) -> None:
        self.draft.lost(key, spell_value(value), why, self.mark(key))

    def mapped(self, key: str, shown: Value, path: Path, value: Value, remark: str = "") -> None:
        self.draft.mapped(key, spell_value(shown), path, value, remark=remark, mark=self.mark(key))


def migrate_yaml(text: str, file: str, *, recipe_file: str, read_text: ReadText) -> Migration:
    """The recipe of an axolotl or LLaMA-Factory config. Raises RecipeError where it is neither."""
    document = parse_source(text, file)
    if document.problems:
        raise RecipeError(*document.problems)
    assert isinstance(document.root, dict)
    config = _Config(document, dict(document.root), Draft())
    if "base_model" in config.values:
        _axolotl(config, read_text)
    elif (
        "finetuning_type" in config.values or "cutoff_len" in config.values or "dataset_dir" in config.values
    ):
        _llama_factory(config, read_text)
    else:
        hint = "axolotl's have `base_model`, LLaMA-Factory's `finetuning_type`"
        raise RecipeError(
            Problem(
                "a config of neither axolotl nor LLaMA-Factory",
                code="config-neither-axolotl-nor-llama-factory",
                mark=Mark(file, 0, 0),
                hint=hint,
            )
        )
    folder = config.draft.read(STAGE, "output_dir")
    name = folder if isinstance(folder, str) else file
    config.draft.name = name.rstrip("/").rpartition("/")[2].partition(".yaml")[0]
    return combine([config.draft], file=file, recipe_file=recipe_file, marks=[None])


def _axolotl(config: _Config, read_text: ReadText) -> None:
    _whole_model(config, "base_model")
    lora = config.take("adapter")
    if lora in ("lora", "qlora"):
        _adapters(config, "adapter", lora, quantized=lora == "qlora")
        _target_modules(config, ("lora_target_linear", "lora_target_modules"))
    _freezing_axolotl(config, has_adapters=lora in ("lora", "qlora"))
    data = (STAGE, "data")
    _template(config, "chat_template")
    images = config.take("mm_image_folder")
    datasets = config.take("datasets")
    for index, entry in enumerate(datasets if isinstance(datasets, list) else []):
        path = entry.get("path") if isinstance(entry, dict) else entry
        _source(config, "datasets", path, images, index)
    if config.take("group_by_length") is True:
        config.mapped("group_by_length", True, (*data, "group_by"), "length")
    if config.take("train_on_inputs") is True:
        config.lost("train_on_inputs", True, "answers alone are learned")
    saves = config.take("saves_per_epoch")
    if saves == 1:
        config.mapped("saves_per_epoch", saves, (*TRAIN, "save_strategy"), "epoch")
    elif saves is not None:
        config.lost("saves_per_epoch", saves, "write `save_steps:` under `train:`")
    if config.take("sample_packing") is True:
        config.lost("sample_packing", True, "samples are not packed")
    _rest(config, AXOLOTL, read_text, defaults={"num_epochs": 1, "lr_scheduler": "cosine", "seed": 42})


def _llama_factory(config: _Config, read_text: ReadText) -> None:
    _whole_model(config, "model_name_or_path")
    kind = config.take("finetuning_type") or "lora"
    is_lora = kind == "lora"
    if is_lora:
        _adapters(config, "finetuning_type", kind, quantized=config.take("quantization_bit") is not None)
        _target_modules(config, ("lora_target",))
    _freezing_llama_factory(config, kind)
    _template(config, "template")
    folder, images = (
        config.take("dataset_dir") or "data",
        config.take("image_dir") or config.take("media_dir"),
    )
    names = config.take("dataset")
    listed = names.split(",") if isinstance(names, str) else names if isinstance(names, list) else []
    for index, name in enumerate(listed):
        _source(config, "dataset", f"{folder}/{str(name).strip()}.json", images or folder, index)
    if listed:
        config.lost("dataset", names, f"{folder}/dataset_info.json names the files: put them in `sources:`")
    rank = config.values.get("lora_rank")
    defaults: dict[str, Value] = {"num_train_epochs": 3, "lr_scheduler_type": "linear", "cutoff_len": 2048}
    defaults |= {"learning_rate": 5e-5, "logging_steps": 500}
    if is_lora:
        alpha = 2 * rank if isinstance(rank, int) else 16
        defaults |= {"lora_rank": 8, "lora_alpha": alpha, "lora_dropout": 0.0}
    _rest(config, LLAMA_FACTORY, read_text, defaults=defaults)


def _freezing_llama_factory(config: _Config, kind: Value) -> None:
    """`full` trains the language model alone unless the other parts are set free; `lora` its adapters."""
    path = (STAGE, "trainable")
    trained = ["language_model", "lm_head"] if kind == "full" else []
    switches = (
        ("freeze_multi_modal_projector", ["projector"], True),
        ("freeze_vision_tower", ["vision_tower"], True),
        ("freeze_language_model", ["language_model", "lm_head"], False),
    )
    for key, modules, default in switches:
        given = config.take(key)
        freezes = default if given is None else given is True
        if freezes:
            trained = [name for name in trained if name not in modules]
        elif kind == "full":
            trained = [*trained, *(name for name in modules if name not in trained)]
        if given is None and default:
            config.draft.default(key, path, True)
        elif given is not None:
            config.mapped(key, given, path, None)
    config.draft.put((STAGE, "freeze"), "all")
    order = ("projector", "language_model", "lm_head", "vision_tower")
    config.draft.put(path, [name for name in order if name in trained])
    if kind == "full":
        config.draft.tell_mapped("finetuning_type", "full", path, mark=config.mark("finetuning_type"))
    elif kind != "lora":
        config.lost("finetuning_type", kind, "write `freeze:` and `trainable:` in the stage")


def _whole_model(config: _Config, key: str) -> None:
    """A language model, or a whole LLaVA model whose parts are known."""
    name = config.take(key)
    if not isinstance(name, str):
        return
    known = WHOLE_MODELS.get(name)
    language = known[0] if known else name
    remark = "the same weights, in the original's form" if known else ""
    config.mapped(key, name, (MODEL, "language_model"), language, remark)
    if known:
        tower = (MODEL, "vision_tower")
        config.draft.put((*tower, "source"), known[1], "the tower of this model")
        config.draft.put((*tower, "select_layer"), -2)
        config.draft.put((MODEL, "projector", "type"), "mlp2x_gelu")


def _adapters(config: _Config, key: str, kind: Value, *, quantized: bool) -> None:
    path = (STAGE, "lora", "modules")
    config.mapped(key, kind, path, ["language_model"])
    if quantized:
        config.lost(key, kind, "it is not taken over: write `quantization:` under `language_model:`")


def _target_modules(config: _Config, keys: Sequence[str]) -> None:
    for key in keys:
        value = config.take(key)
        if value in (None, True, "all", "all-linear"):
            continue
        config.lost(key, value, "write module globs in `lora: {modules: […]}`")


def _freezing_axolotl(config: _Config, *, has_adapters: bool) -> None:
    alone, frozen = config.take("tune_mm_mlp_adapter") is True, config.take("mm_freeze_backbone") is True
    trained = ["projector"] if alone or frozen else ["projector", "language_model", "lm_head"]
    if has_adapters and not alone:
        trained = []
    config.draft.put((STAGE, "freeze"), "all")
    path = (STAGE, "trainable")
    if alone or frozen:
        for key, value in (("tune_mm_mlp_adapter", alone), ("mm_freeze_backbone", frozen)):
            config.mapped(key, value, path, list[Value](trained))
    else:
        config.draft.default("what trains", path, list[Value](trained))


def _template(config: _Config, key: str) -> None:
    template = config.take(key)
    if template is None:
        return
    if template == "tokenizer_default":
        config.mapped(key, template, (STAGE, "data", "chat_template"), "tokenizer")
        return
    name = {"llava": "v1", "vicuna": "v1"}.get(str(template), str(template))
    config.mapped(key, template, (STAGE, "data", "template"), name)


def _source(config: _Config, key: str, path: Value, images: Value, index: int) -> None:
    if not isinstance(path, str):
        return
    if not path.endswith((".json", ".jsonl")):
        config.lost(key, path, "this is no JSON file: write the records to one, as LLaVA has them")
    source: dict[str, Value] = {"annotations": path}
    if isinstance(images, str):
        source["images"] = images
    count = known_num_samples(path)
    if count is not None:
        source["num_samples"] = count
    place = (STAGE, "data", "sources")
    sources = config.draft.read(*place)
    config.draft.put(place, [*(sources if isinstance(sources, list) else []), source])
    config.draft.tell_mapped(key, path, (*place, index, "annotations"), mark=config.mark(key))


def _rest(
    config: _Config, keys: Mapping[str, Path], read_text: ReadText, *, defaults: Mapping[str, Value]
) -> None:
    draft = config.draft
    for key, default in defaults.items():
        if config.values.get(key) is None and default is not None and not _is_replaced(config, key):
            config.values.pop(key, None)
            draft.default(key, keys[key], default)
    deepspeed = config.take("deepspeed")
    if isinstance(deepspeed, str):
        translate_deepspeed(
            "deepspeed",
            deepspeed,
            draft,
            read_text=read_text,
            mark=config.mark("deepspeed"),
            program=OTHER,
        )
    report = config.take("report_to") or ("wandb" if config.values.get("wandb_project") else "none")
    draft.mapped("report_to", spell_value(report), (*TRAIN, "report_to"), report)
    for key, value in config.values.items():
        if value is None or (value is False and key not in keys):
            continue
        if key in ("val_size", "val_set_size", "evals_per_epoch") and not value:
            draft.needless(key, spell_value(value), "nothing is held out", config.mark(key))
            continue
        if key in keys:
            if keys[key][1] != "lora" or draft.read(STAGE, "lora") is not None:
                config.mapped(key, value, keys[key], True if value == "auto" and key == "bf16" else value)
            else:
                draft.needless(key, spell_value(value), "LoRA is off", config.mark(key))
        elif key in NEEDLESS:
            draft.needless(key, spell_value(value), NEEDLESS[key], config.mark(key))
        else:
            config.lost(key, value, "recipes have no key for it yet")


def _is_replaced(config: _Config, key: str) -> bool:
    """Whether training is counted in steps, so that no default number of epochs holds."""
    steps = config.values.get("max_steps")
    return "epochs" in key and isinstance(steps, int) and steps > 0
