"""XTuner's LLaVA configs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import islice

from llava_recipes.errors import Mark, Problem, RecipeError
from llava_recipes.migrate.draft import IsFolder, Migration, combine
from llava_recipes.migrate.llava import QUANTIZATION, put_bits, with_num_samples
from llava_recipes.migrate.python_config import (
    PythonConfig,
    PythonValue,
    Symbol,
    Unknown,
    read_python_config,
    spell_python,
)
from llava_recipes.migrate.settings import Kind, Row, Settings
from llava_recipes.plan.families import VISION_TOWERS
from llava_recipes.recipe.scalars import Value, say_number

_MODEL = (
    Row("model.llm.pretrained_model_name_or_path", "model.language_model", "text"),
    Row("model.visual_encoder.pretrained_model_name_or_path", "model.vision_tower.source", "text"),
    Row("model.visual_select_layer", "model.vision_tower.select_layer", "whole", -2),
)
_LORA = (("r", "r", 8), ("lora_alpha", "alpha", 8), ("lora_dropout", "dropout", 0.0))
_TRAIN = (
    Row("train_dataloader.batch_size", "train.per_device_train_batch_size", "whole"),
    Row("optim_wrapper.accumulative_counts", "train.gradient_accumulation_steps", "whole"),
    Row("optim_wrapper.optimizer.lr", "train.learning_rate", "number"),
    Row("optim_wrapper.optimizer.weight_decay", "train.weight_decay", "number"),
    Row("optim_wrapper.optimizer.eps", "train.adam_epsilon", "number"),
    Row("optim_wrapper.clip_grad.max_norm", "train.max_grad_norm", "number"),
    Row("train_dataloader.num_workers", "train.dataloader_num_workers", "whole"),
)
_HOOKS = (
    ("default_hooks.logger.interval", "train.logging_steps"),
    ("default_hooks.checkpoint.interval", "train.save_steps"),
    ("default_hooks.checkpoint.max_keep_ckpts", "train.save_total_limit"),
)
TEMPLATES = {"vicuna": "v1", "llama3_chat": "llama_3", "qwen_chat": "qwen", "phi3_chat": "phi3"}
_SHARED = (
    ("template_map_fn.template", "data.template"),
    ("pad_image_to_square", "data.image_aspect_ratio"),
    ("max_length", "data.max_length"),
)
"""Settings of each data set that recipes have once in a stage."""
MAX_SETS = 200
_MAX_DEEP = 6
_MAX_SETTINGS = 2_000
_MAX_ALIASES = 20
_WARM_UP, _COSINE = "LinearLR", "CosineAnnealingLR"
_USUAL_TYPES = frozenset(
    {
        *("LLaVAModel", "from_pretrained", "LLaVADataset", "ConcatDataset", "LoraConfig"),
        *("BitsAndBytesConfig", "AmpOptimWrapper", "OptimWrapper", "AdamW", "LinearLR"),
        *("CosineAnnealingLR", "TrainLoop", "EpochBasedTrainLoop", "IterBasedTrainLoop"),
        *("DefaultSampler", "LengthGroupedSampler", "template_map_fn_factory", "default_collate_fn"),
        *("mm_collate_fn", "DatasetInfoHook", "EvaluateChatHook", "ThroughputHook", "IterTimerHook"),
        *("LoggerHook", "ParamSchedulerHook", "CheckpointHook", "DistSamplerSeedHook"),
    }
)
"""Classes that do what a recipe does, or that only report."""

_NEEDLESS: tuple[tuple[str, str], ...] = (
    ("*.trust_remote_code", "code in a model's folder is never run"),
    ("model.llm.torch_dtype", "`fp16` and `bf16` set it"),
    ("model.llm.quantization_config.bnb_4bit_compute_dtype", "`fp16` and `bf16` set it"),
    ("model.llm.quantization_config.llm_int8_*", "it is bitsandbytes's default"),
    ("*.task_type", "recipes have language models alone"),
    ("*tokenizer.padding_side", "sequences are padded on the right"),
    ("train_dataloader.collate_fn.use_varlen_attn", "sequences are padded"),
    ("train_dataloader.sampler.per_device_batch_size", "it follows from the batch"),
    ("optim_wrapper.loss_scale", "the loss is scaled as `fp16` requires"),
    ("param_scheduler*.by_epoch", "schedules count steps"),
    ("param_scheduler*.begin", "the schedule follows the warm-up"),
    ("param_scheduler*.end", "the schedule ends with the run"),
    ("param_scheduler*.T_max", "the schedule ends with the run"),
    ("param_scheduler*.convert_to_iter_based", "schedules count steps"),
    ("train_cfg.by_epoch", "the length of the training determines it"),
    ("train_cfg.val_interval", "the config has no validation"),
    ("visualizer*", "write `report_to:` for a tracker"),
    ("default_scope", "it is the name of a library"),
    ("launcher", "`llava-recipe run` starts the processes"),
    ("randomness.deterministic", "it changes the speed alone"),
    ("SYSTEM", "it is for conversations during the training"),
    *((f"{name}_hooks*", "it only reports") for name in ("default", "custom")),
    *(
        (pattern, "it doesn't change the training")
        for pattern in (
            *("train_dataloader.pin_memory", "train_dataloader.persistent_workers", "evaluation_*"),
            *("train_dataloader.prefetch_factor", "optim_wrapper.clip_grad.error_if_nonfinite"),
            *("env_cfg*", "log_level", "log_processor*"),
        )
    ),
)
_HARMLESS_VALUES: tuple[tuple[str, PythonValue], ...] = (
    ("*.dataset_map_fn", Symbol("llava_map_fn")),
    ("train_dataloader.sampler.shuffle", True),
    ("model.token_merge_ratio", 1),
    ("param_scheduler*.eta_min", 0),
    ("param_scheduler*.eta_min", 0.0),
    ("model.llm.quantization_config.load_in_8bit", False),
    ("model.llm.quantization_config.load_in_4bit", False),
    ("resume", False),
)
_SAME_MODEL = {
    "tokenizer.pretrained_model_name_or_path": "model.language_model",
    "image_processor.pretrained_model_name_or_path": "model.vision_tower.source",
}

Set = tuple[str, dict[str, PythonValue]]
"""A data set's name in the config, or its place, and its settings."""


def migrate_xtuner(text: str, file: str, *, recipe_file: str, is_folder: IsFolder) -> Migration:
    """The recipe of one config. Raises RecipeError if it isn't a LLaVA config."""
    config = Tree(read_python_config(text, file))
    model = config.look_up("model")
    if config.draft.problems:
        raise RecipeError(*config.draft.problems)
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(kind, Symbol) or not kind.name.endswith("LLaVAModel"):
        raise RecipeError.of(
            "this isn't a LLaVA config of XTuner",
            code="unknown-config-format",
            mark=Mark(file, 0, 0),
            hint="looked for `model = dict(type=LLaVAModel, …)`",
        )
    _translate_model(config)
    _translate_freezing(config)
    _translate_data(config)
    _translate_optimizer(config)
    _translate_schedule(config)
    _translate_runtime(config, re.sub(r"\.py$", "", file.rpartition("/")[2]))
    config.finish()
    return combine([config.draft], file=file, recipe_file=recipe_file, is_folder=is_folder)


class Tree(Settings):
    """The settings of a Python config by dotted names; an unknown value is a problem."""

    def __init__(self, config: PythonConfig) -> None:
        super().__init__()
        self.values, self._marks = config.values, config.marks

    def look_up(self, name: str) -> PythonValue:
        """The value at a dotted name; None if there is none."""
        return self.known(_value_in(self.values, name), name)

    def known(self, value: PythonValue, name: str) -> PythonValue:
        """A value; an unknown one adds a problem and is None."""
        if not isinstance(value, Unknown):
            return value
        self.draft.problems.append(
            Problem(
                f"the value of `{name}` isn't known without running the config",
                code="value-not-computed",
                mark=value.mark,
                hint="write the value in its place",
            )
        )
        return None

    def names(self) -> Collection[str]:
        return self.values

    def __contains__(self, name: str) -> bool:
        return _value_in(self.values, name) is not None

    def spell(self, name: str) -> str:
        return spell_python(_value_in(self.values, name))

    def mark(self, name: str) -> Mark | None:
        return self._marks.get(re.split(r"[.\[]", name, maxsplit=1)[0])

    def put(self, name: str, path: str, value: Value, remark: str = "", *, shown: str | None = None) -> None:
        super().put(name, path, value, remark, shown=str(value) if shown is None else shown)

    def read(self, name: str, kind: Kind) -> Value:
        if kind == "text":
            return self.text(name)
        if kind == "switch":
            value = self.look_up(name)
            return value if isinstance(value, bool) else None
        number = self.number(name)
        return float(number) if number is not None and kind == "number" else number

    def number(self, name: str) -> int | float | None:
        """A number as it is in the config."""
        value = self.look_up(name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def text(self, name: str) -> str | None:
        """A string."""
        value = self.look_up(name)
        return value if isinstance(value, str) else None

    def symbol(self, name: str) -> str:
        """The last part of the name of a class or function; empty for any other value."""
        value = self.look_up(name)
        return value.name.rpartition(".")[2] if isinstance(value, Symbol) else ""

    def finish(self) -> None:
        """Report the remaining settings as needless or lost."""
        reported = {entry.name for entry in self.draft.entries}
        aliases: dict[str, list[str]] = {}
        for number, (name, value) in enumerate(list(_leaves(self.values, aliases))):
            names = [name, *_other_names(name, aliases)]
            if not reported.isdisjoint(names):
                continue
            if number >= _MAX_SETTINGS:
                why = f"the config has more than {_MAX_SETTINGS:,} settings; the rest is not read"
                self.draft.report("lost", "…", "", why, self.mark(name))
                break
            is_variable = name in self.values
            reasons = (_why_needless(each, value, self, is_variable=is_variable) for each in names)
            why = next(filter(None, reasons), "")
            report = self.needless if why else self.lost
            report(name, why or "recipes have no key for it yet", shown=spell_python(value))
        self.draft.settle()


def _translate_model(config: Tree) -> None:
    config.translate(_MODEL)
    depth = config.number("model.projector_depth")
    if depth is None:
        config.default("model.projector_depth", "model.projector.type", "mlp2x_gelu", "depth 2")
    else:
        kind = f"mlp{depth}x_gelu"
        config.put("model.projector_depth", "model.projector.type", kind, shown=str(depth))
    config.draft.put("model.image_tokens", {"start_end": False, "patch": False})
    if config.text("model.pretrained_pth") is not None:
        why = "XTuner's checkpoints cannot be read: write the folder of a recipe's Stage 1 as `init_from:`"
        config.lost("model.pretrained_pth", why)
    _translate_quantization(config, "model.llm.quantization_config")
    checkpoints, path = "model.use_activation_checkpointing", "train.gradient_checkpointing"
    config.translate([Row(checkpoints, path, "switch", True, "XTuner's default")])


def _translate_quantization(config: Tree, name: str) -> None:
    """The config of bitsandbytes, whose defaults differ from LLaVA's."""
    if not isinstance(config.look_up(name), dict):
        return
    bits = next((bits for bits in (4, 8) if config.look_up(f"{name}.load_in_{bits}bit") is True), None)
    if bits is None:
        return
    put_bits(config, f"{name}.load_in_{bits}bit", bits, shown="True")
    if bits == 4:
        kind, twice = f"{name}.bnb_4bit_quant_type", f"{name}.bnb_4bit_use_double_quant"
        config.translate([Row(kind, f"{QUANTIZATION}.type", "text", "fp4")])
        config.translate([Row(twice, f"{QUANTIZATION}.double_quant", "switch", False)])


def _translate_freezing(config: Tree) -> None:
    trained: list[Value] = ["projector"]
    # XTuner freezes before it adds adapters, so these train in any case.
    adapters, tower_adapters = config.look_up("model.llm_lora"), config.look_up("model.visual_encoder_lora")
    if config.look_up("model.freeze_llm") is not True and adapters is None:
        trained += ["language_model", "lm_head"]
    if config.look_up("model.freeze_visual_encoder") is not True and tower_adapters is None:
        trained.append("vision_tower")
    config.draft.put("freeze", "all")
    config.draft.put("trainable", trained)
    for name in ("model.freeze_llm", "model.freeze_visual_encoder"):
        value = config.look_up(name)
        if value is None:
            config.default(name, "trainable", trained, "False")
        else:
            config.mapped(name, "trainable", shown=str(value is True))
    if isinstance(adapters, dict):
        _translate_adapters(config, "model.llm_lora", "language_model")
    if not isinstance(tower_adapters, dict):
        return
    name = "model.visual_encoder_lora"
    if not isinstance(adapters, dict):
        _translate_adapters(config, name, "vision_tower")
        return
    is_same = all(adapters.get(key, usual) == tower_adapters.get(key, usual) for key, _, usual in _LORA)
    if is_same:
        config.draft.put("lora.modules", ["language_model", "vision_tower"])
    for key in tower_adapters:
        if not is_same:
            config.lost(f"{name}.{key}", "all adapters of a stage have one size, here the language model's")
        elif key != "type":
            config.mapped(f"{name}.{key}", "lora.modules")


def _translate_adapters(config: Tree, name: str, module: str) -> None:
    config.draft.put("lora.modules", [module])
    config.translate(Row(f"{name}.{key}", f"lora.{ours}", "whole", usual) for key, ours, usual in _LORA)
    config.translate([Row(f"{name}.bias", "lora.bias", "text", "none")])


def find_sets(config: Tree) -> list[Set]:
    """The data sets of the loader; `llava_dataset` in a config without one."""
    place = "train_dataloader.dataset"
    if not isinstance(_value_in(config.values, place), dict):
        place = "llava_dataset"
    return list(islice(_sets_in(_value_in(config.values, place), place, config.values, 0), MAX_SETS))


def _sets_in(value: PythonValue, place: str, values: Mapping[str, PythonValue], depth: int) -> Iterator[Set]:
    if not isinstance(value, dict) or depth > _MAX_DEEP:
        return
    name = next((name for name, other in values.items() if other is value), place)
    parts = value.get("datasets")
    kind = value.get("type")
    if isinstance(parts, list) and isinstance(kind, Symbol) and kind.name.endswith("ConcatDataset"):
        for number, part in enumerate(parts):
            yield from _sets_in(part, f"{name}.datasets[{number}]", values, depth + 1)
        return
    yield name, value


def _translate_data(config: Tree) -> None:
    """Fill in `data`; the vision tower is filled in before, because images count as tokens."""
    sets = find_sets(config)
    sources: list[Value] = []
    for number, (name, values) in enumerate(sets):
        source: dict[str, Value] = {}
        for setting, key in (("data_path", "annotations"), ("image_folder", "images")):
            value = config.known(values.get(setting), f"{name}.{setting}")
            if isinstance(value, str):
                source[key] = value
                config.mapped(f"{name}.{setting}", f"data.sources[{number}].{key}", shown=value)
        if source:
            sources.append(with_num_samples(source))
    if sources:
        config.draft.put("data.sources", sources)
    _translate_sampler(config)
    if not sets:
        return
    (name, first), *others = sets
    _translate_template(
        config, f"{name}.template_map_fn.template", _value_in(first, "template_map_fn.template")
    )
    padding = f"{name}.pad_image_to_square"
    pads = config.known(first.get("pad_image_to_square"), padding)
    if pads is None:
        config.default(padding, "data.image_aspect_ratio", "square")
    else:
        shape = "pad" if pads is True else "square"
        config.put(padding, "data.image_aspect_ratio", shape, shown=str(pads is True))
    _translate_length(config, f"{name}.max_length", first.get("max_length"))
    # A setting that a stage has once is lost unless it is the same in all sets.
    for other, values in others:
        for key, path in _SHARED:
            value, usual = _value_in(values, key), _value_in(first, key)
            if value != usual:
                has = "leaves it out" if usual is None else f"has {spell_python(usual)}"
                why = f"a stage has one value, and `{name}` {has}"
                config.lost(f"{other}.{key}", why, shown=spell_python(value), path=path)
            elif value is not None:
                config.needless(f"{other}.{key}", f"it equals `{name}.{key}`", shown=spell_python(value))


def _translate_template(config: Tree, name: str, found: PythonValue) -> None:
    template = config.known(found, name)
    if template is None:
        return
    shown = spell_python(template)
    word = shown.rpartition(".")[2]
    ours = TEMPLATES.get(word)
    if ours is None:
        config.refuse_conversation(
            word, TEMPLATES, config.mark(name), what=f"XTuner's `{word}`", found=f"{name} = {shown}"
        )
        return
    config.draft.put("data.template", ours)
    why = f"`{ours}` writes a system prompt before the first turn, XTuner doesn't"
    config.lost(name, why, shown=shown, path="data.template")


def _translate_length(config: Tree, name: str, found: PythonValue) -> None:
    length = config.known(found, name)
    if not isinstance(length, int | float) or isinstance(length, bool):
        return
    source = config.draft.read("model.vision_tower.source")
    tower = VISION_TOWERS.get(source) if isinstance(source, str) else None
    if tower is None:
        why = "XTuner doesn't count the image, whose number of tokens is not known: add it"
        config.lost(name, why, shown=str(length), path="data.max_length")
        config.draft.put("data.max_length", int(length))
        return
    side, patch = (
        size if isinstance(size := tower.get(key), int) else 0 for key in ("image_size", "patch_size")
    )
    tokens = (side // max(1, patch)) ** 2
    remark = f"XTuner doesn't count the image: {tokens:,} tokens are added"
    config.put(name, "data.max_length", int(length) + tokens, remark, shown=say_number(length))


def _translate_sampler(config: Tree) -> None:
    name = "train_dataloader.sampler"
    kind = config.symbol(f"{name}.type")
    if kind == "LengthGroupedSampler":
        word = config.text(f"{name}.length_property") or "length"
        config.put(f"{name}.length_property", "data.group_by", word)
    elif config.look_up(f"{name}.shuffle") is False:
        config.put(f"{name}.shuffle", "data.shuffle", False)


def _translate_optimizer(config: Tree) -> None:
    optimizer = "optim_wrapper.optimizer"
    config.translate(_TRAIN)
    if config.look_up("optim_wrapper.clip_grad") is None:
        config.default(
            "optim_wrapper.clip_grad", "train.max_grad_norm", 0, "XTuner clips only if its config sets it"
        )
    betas = config.look_up(f"{optimizer}.betas")
    if isinstance(betas, list):
        for key, beta in zip(("adam_beta1", "adam_beta2"), betas, strict=False):
            if isinstance(beta, int | float):
                config.draft.put(f"train.{key}", float(beta))
        config.mapped(f"{optimizer}.betas", "train.adam_beta1")
    kind = config.symbol(f"{optimizer}.type")
    if kind == "AdamW":
        config.put(f"{optimizer}.type", "train.optim", "adamw_torch", shown=kind)
        if config.number(f"{optimizer}.weight_decay") is None:
            config.default(f"{optimizer}.weight_decay", "train.weight_decay", 0.01, "torch's default")
    elif kind:
        config.lost(f"{optimizer}.type", "write `optim:` with one of Hugging Face's names", shown=kind)
    dtype = config.text("optim_wrapper.dtype")
    if dtype in ("float16", "bfloat16"):
        key = "fp16" if dtype == "float16" else "bf16"
        config.put("optim_wrapper.dtype", f"train.{key}", True, shown=dtype)


def _translate_schedule(config: Tree) -> None:
    epochs, steps = config.number("train_cfg.max_epochs"), config.number("train_cfg.max_iters")
    if steps is not None:
        config.put("train_cfg.max_iters", "train.max_steps", int(steps), shown=str(steps))
    else:
        config.translate([Row("train_cfg.max_epochs", "train.num_train_epochs", "whole")])
    schedule = config.look_up("param_scheduler")
    kinds: dict[str, tuple[str, Mapping[str, PythonValue]]] = {}
    for number, entry in enumerate(schedule if isinstance(schedule, list) else [schedule]):
        if isinstance(entry, dict) and isinstance(kind := entry.get("type"), Symbol):
            name = f"param_scheduler[{number}]" if isinstance(schedule, list) else "param_scheduler"
            kinds[kind.name.rpartition(".")[2]] = (name, entry)
    write = "write `lr_scheduler_type:` under `train:`"
    for kind_name, (name, _) in kinds.items():
        if kind_name == _COSINE:
            config.put(f"{name}.type", "train.lr_scheduler_type", "cosine", shown=kind_name)
        elif kind_name != _WARM_UP:
            config.lost(f"{name}.type", write, shown=kind_name)
    if schedule is not None and not kinds:
        config.lost("param_scheduler", write, shown="…")
    name, warm_up = kinds.get(_WARM_UP, ("", {}))
    end = warm_up.get("end")
    if isinstance(end, int | float) and epochs and end > 0:
        config.put(f"{name}.end", "train.warmup_ratio", round(end / epochs, 6), shown=say_number(end))
        config.mapped(f"{name}.type", "train.warmup_ratio", shown=_WARM_UP)


def _translate_runtime(config: Tree, stem: str) -> None:
    for name, path in _HOOKS:
        if (config.number(name) or 0) > 0:
            config.translate([Row(name, path, "whole")])
    seed = config.number("randomness.seed")
    if seed is not None:
        config.put("randomness.seed", "train.seed", int(seed), shown=str(seed))
    else:
        why = "XTuner draws one at random; a recipe's default is 42"
        config.needless("randomness.seed", why, shown="None")
    config.translate([Row("work_dir", "output_dir", "text", f"./work_dirs/{stem}")])
    config.draft.name = stem
    why = "it is set on XTuner's command line: for `--deepspeed deepspeed_zero2` write `deepspeed: zero2`"
    config.draft.report("lost", "--deepspeed", "", why)


def _value_in(values: Mapping[str, PythonValue], name: str) -> PythonValue:
    """A value by its dotted name; None if there is none, `Unknown` inside of an unknown value."""
    place: PythonValue = dict(values)
    for key in name.split("."):
        if not isinstance(place, Unknown):
            place = place.get(key) if isinstance(place, dict) else None
    return place


def _other_names(name: str, aliases: Mapping[str, list[str]]) -> list[str]:
    """The setting's other names, by the other names of what contains it."""
    return [
        other + name[len(first) :]
        for first, others in aliases.items()
        if name.startswith((f"{first}.", f"{first}["))
        for other in others
    ]


def _leaves(
    values: Mapping[str, PythonValue], aliases: dict[str, list[str]]
) -> Iterator[tuple[str, PythonValue]]:
    """Every value that contains no others, by its place; `aliases` gets the other names of shared values."""
    seen: dict[int, str] = {}

    def inside(name: str, value: PythonValue, depth: int) -> Iterator[tuple[str, PythonValue]]:
        holds = isinstance(value, dict | list) and bool(value) and depth <= 50
        if isinstance(value, list):
            holds = holds and any(isinstance(entry, dict | list) for entry in value)
        if not holds:
            yield name, value
        elif id(value) in seen:
            others = aliases.setdefault(seen[id(value)], [])
            if len(others) < _MAX_ALIASES:
                others.append(name)
        elif isinstance(value, dict):
            seen[id(value)] = name
            for key, entry in value.items():
                yield from inside(f"{name}.{key}", entry, depth + 1)
        elif isinstance(value, list):
            seen[id(value)] = name
            for number, entry in enumerate(value):
                yield from inside(f"{name}[{number}]", entry, depth + 1)

    for name, value in values.items():
        yield from inside(name, value, 0)


def _why_needless(name: str, value: PythonValue, config: Tree, *, is_variable: bool) -> str | None:
    """Why nothing is lost without a setting; None if something is."""
    if value is None:
        return "it is not set"
    if name.endswith(".type") and isinstance(value, Symbol):
        usual = value.name.rpartition(".")[2] in _USUAL_TYPES
        return "a recipe does the same, or it only reports" if usual else None
    for pattern, harmless in _HARMLESS_VALUES:
        if fnmatchcase(name, pattern) and value == harmless and type(value) is type(harmless):
            return "it is the default"
    for ending, key in _SAME_MODEL.items():
        if name.endswith(ending):
            ours = config.draft.read(key)
            ours = ours.get("source") if isinstance(ours, dict) else ours
            return "it is the model's" if value == ours else None
    if fnmatchcase(name, "param_scheduler*.start_factor") and isinstance(value, int | float):
        return "the warm-up starts from 0" if value <= 1e-3 else None
    found = next((why for pattern, why in _NEEDLESS if fnmatchcase(name, pattern)), None)
    if found is None and is_variable and name not in ("load_from", "resume") and not isinstance(value, dict):
        return "it is a variable: the settings that use it are reported under their names"
    return found
