"""YAML configs of axolotl and LLaMA-Factory as recipes: the keys that mean the same."""

from __future__ import annotations

from collections.abc import Mapping

from llava_recipes.migrate.combine import IsFolder, Migration, combine
from llava_recipes.migrate.deepspeed_files import OTHER, ReadText, translate_deepspeed
from llava_recipes.migrate.draft import MODEL, STAGE, Draft
from llava_recipes.migrate.known_data import known_num_samples
from llava_recipes.migrate.yaml_config import Config
from llava_recipes.migrate.yaml_keys import AXOLOTL, LLAMA_FACTORY, NEEDLESS, OFF, TRAIN, WHOLE_MODELS
from llava_recipes.migrate.yaml_training import (
    freezing_of_axolotl,
    freezing_of_llama_factory,
    put_adapters,
    put_template,
    quantization_of_axolotl,
    quantization_of_llama_factory,
    refuse_preferences,
    target_modules,
)
from llava_recipes.projectors import STOCK
from llava_recipes.recipe.errors import KeyPath, Mark, Problem, RecipeError
from llava_recipes.recipe.scalars import Value, spell_value
from llava_recipes.recipe.source import parse_source


def migrate_yaml(
    text: str, file: str, *, recipe_file: str, read_text: ReadText, is_folder: IsFolder
) -> Migration:
    """The recipe of an axolotl or LLaMA-Factory config. Raises RecipeError where it is neither."""
    document = parse_source(text, file)
    if document.problems:
        raise RecipeError(*document.problems)
    assert isinstance(document.root, dict)
    config = Config(document, dict(document.root), Draft())
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
                code="unknown-config-format",
                mark=Mark(file, 0, 0),
                hint=hint,
            )
        )
    folder = config.draft.read(STAGE, "output_dir")
    name = folder if isinstance(folder, str) else file
    config.draft.name = name.rstrip("/").rpartition("/")[2].partition(".yaml")[0]
    return combine([config.draft], file=file, recipe_file=recipe_file, marks=[None], is_folder=is_folder)


def _axolotl(config: Config, read_text: ReadText) -> None:
    refuse_preferences(config, "rl", trains=())
    _whole_model(config, "base_model")
    lora = config.take("adapter")
    has_adapters = lora in ("lora", "qlora")
    if has_adapters:
        put_adapters(config, "adapter", lora)
        target_modules(config, ("lora_target_linear", "lora_target_modules"))
    elif lora is not None:
        config.lost("adapter", lora, "recipes know lora and qlora")
    quantization_of_axolotl(config, is_qlora=lora == "qlora")
    freezing_of_axolotl(config, has_adapters=has_adapters)
    data = (STAGE, "data")
    put_template(config, "chat_template")
    images = config.take("mm_image_folder")
    datasets = config.take("datasets")
    for index, entry in enumerate(datasets if isinstance(datasets, list) else []):
        path = entry.get("path") if isinstance(entry, dict) else entry
        _source(config, "datasets", path, images, index)
        for key, value in entry.items() if isinstance(entry, dict) else ():
            if key != "path":
                is_usual = (key, value) in (("ds_type", "json"), ("split", "train"))
                why = "as recipes read a file" if is_usual else "the records must be as LLaVA has them"
                tell = config.draft.needless if is_usual else config.draft.lost
                tell(f"datasets[{index}].{key}", spell_value(value), why, config.mark("datasets"))
    if images is not None:
        mark = config.mark("mm_image_folder")
        config.draft.tell_mapped("mm_image_folder", str(images), (*data, "sources"), mark=mark)
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


def _llama_factory(config: Config, read_text: ReadText) -> None:
    refuse_preferences(config, "stage", trains=("sft",))
    _whole_model(config, "model_name_or_path")
    kind = config.take("finetuning_type")
    kind = "lora" if kind is None else kind
    is_lora = kind == "lora"
    if is_lora:
        put_adapters(config, "finetuning_type", kind)
        target_modules(config, ("lora_target",))
    quantization_of_llama_factory(config)
    freezing_of_llama_factory(config, kind)
    put_template(config, "template")
    folder = config.take("dataset_dir")
    given = next((key for key in ("image_dir", "media_dir") if config.values.get(key) is not None), None)
    images = config.take(given) if given is not None else None
    whole = folder if folder is not None else "data"
    _named_sets(config, "dataset", whole, images if images is not None else whole)
    for key, value in (("dataset_dir", folder), (given or "", images)):
        if value is not None:
            path = (STAGE, "data", "sources")
            config.draft.tell_mapped(key, str(value), path, mark=config.mark(key))
    _validation_sets(config, whole, images if images is not None else whole)
    rank = config.values.get("lora_rank")
    defaults: dict[str, Value] = {"num_train_epochs": 3, "lr_scheduler_type": "linear", "cutoff_len": 2048}
    defaults |= {"learning_rate": 5e-5, "logging_steps": 500}
    if is_lora:
        alpha = 2 * rank if isinstance(rank, int) else 16
        defaults |= {"lora_rank": 8, "lora_alpha": alpha, "lora_dropout": 0.0}
    _rest(config, LLAMA_FACTORY, read_text, defaults=defaults)


def _named_sets(config: Config, key: str, folder: Value, images: Value) -> None:
    """Data sets by their names in dataset_info.json, as files of these names."""
    names = config.take(key)
    listed = _listed(names)
    for index, name in enumerate(listed):
        _source(config, key, f"{folder}/{name}.json", images, index)
    if listed:
        config.lost(key, names, f"{folder}/dataset_info.json names the files: put them in `sources:`")


def _validation_sets(config: Config, folder: Value, images: Value) -> None:
    names = config.take("eval_dataset")
    listed = _listed(names)
    if listed:
        path = (STAGE, "data", "validation", "sources")
        sources: list[Value] = [
            {
                "annotations": f"{folder}/{name}.json",
                **({"images": images} if isinstance(images, str) else {}),
            }
            for name in listed
        ]
        config.draft.put(path, sources)
        why = f"{folder}/dataset_info.json names the files: put them in `validation:`"
        config.draft.lost("eval_dataset", spell_value(names), why, config.mark("eval_dataset"), path=path)


def _listed(names: Value) -> list[str]:
    entries = names.split(",") if isinstance(names, str) else names if isinstance(names, list) else []
    return [str(name).strip() for name in entries]


def _whole_model(config: Config, key: str) -> None:
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
        config.draft.put((MODEL, "projector", "type"), STOCK)


def _source(config: Config, key: str, path: Value, images: Value, index: int) -> None:
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
    config: Config, keys: Mapping[str, KeyPath], read_text: ReadText, *, defaults: Mapping[str, Value]
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
    _report_to(config)
    for key, value in config.values.items():
        if value is None:
            continue
        if value is False and key in OFF:
            draft.needless(key, "false", "it is off, as without it", config.mark(key))
        elif key in ("val_size", "val_set_size", "evals_per_epoch") and not value:
            draft.needless(key, spell_value(value), "nothing is held out", config.mark(key))
        elif key in keys:
            if keys[key][1] != "lora" or draft.read(STAGE, "lora") is not None:
                config.mapped(key, value, keys[key], True if value == "auto" and key == "bf16" else value)
            else:
                draft.needless(key, spell_value(value), "LoRA is off", config.mark(key))
        elif key in NEEDLESS:
            draft.needless(key, spell_value(value), NEEDLESS[key], config.mark(key))
        else:
            config.lost(key, value, "recipes have no key for it yet")
    _tell_all(config)
    draft.settle()


def _report_to(config: Config) -> None:
    given = config.take("report_to")
    path = (*TRAIN, "report_to")
    if given is None:
        value: Value = "wandb" if config.values.get("wandb_project") else "none"
        config.draft.default("report_to", path, value)
    else:
        config.mapped("report_to", given, path, given)


def _tell_all(config: Config) -> None:
    """Say of every key that nothing was said about that it is off, or that it is lost."""
    assert isinstance(config.document.root, dict)
    for key, value in config.document.root.items():
        if config.draft.is_told(key):
            continue
        if value is None or value is False:
            why = "it is not set" if value is None else "it is off, as without it"
            config.draft.needless(key, spell_value(value), why, config.mark(key))
        else:
            config.lost(key, value, "it is not translated")


def _is_replaced(config: Config, key: str) -> bool:
    """Whether training is counted in steps, so that no default number of epochs holds."""
    steps = config.values.get("max_steps")
    return "epochs" in key and isinstance(steps, int) and steps > 0
