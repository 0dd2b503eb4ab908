"""XTuner's LLaVA configs as recipes, read from their syntax tree."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llava_recipes.migrate.combine import IsFolder, Migration, combine
from llava_recipes.migrate.draft import MODEL, STAGE, Draft
from llava_recipes.migrate.known_data import known_num_samples
from llava_recipes.migrate.python_config import PythonConfig, PythonValue, Symbol, Unknown, read_python_config
from llava_recipes.migrate.quantization import default_part, put_bits, put_part
from llava_recipes.migrate.xtuner_data import find_sets
from llava_recipes.migrate.xtuner_rest import spell_python, tell_rest
from llava_recipes.plan.catalog import VISION_TOWERS
from llava_recipes.recipe.errors import Mark, Path, Problem, RecipeError
from llava_recipes.recipe.scalars import Value

_WARM_UP, _COSINE = "LinearLR", "CosineAnnealingLR"


def migrate_xtuner(text: str, file: str, *, recipe_file: str, is_folder: IsFolder) -> Migration:
    """The recipe of one config. Raises RecipeError where it is no LLaVA config."""
    config = read_python_config(text, file)
    model = config.values.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(kind, Symbol) or not kind.name.endswith("LLaVAModel"):
        hint = "looked for `model = dict(type=LLaVAModel, …)`"
        raise RecipeError(
            Problem(
                "this is no LLaVA config of XTuner",
                code="no-llava-config-xtuner",
                mark=Mark(file, 0, 0),
                hint=hint,
            )
        )
    translation = _Translation(config, file)
    translation.translate()
    return combine([translation.draft], file=file, recipe_file=recipe_file, marks=[None], is_folder=is_folder)


TEMPLATES = {"vicuna": "v1", "llama3_chat": "llama_3", "qwen_chat": "qwen", "phi3_chat": "phi3"}


_LORA_NUMBERS = (("r", "r", 8), ("lora_alpha", "alpha", 8), ("lora_dropout", "dropout", 0.0))
_SHARED: tuple[tuple[tuple[str, ...], Path], ...] = (
    (("template_map_fn", "template"), (STAGE, "data", "template")),
    (("pad_image_to_square",), (STAGE, "data", "image_aspect_ratio")),
    (("max_length",), (STAGE, "data", "max_length")),
)
"""Settings of a data set that recipes have once for a stage."""


class _Translation:
    """One config, looked up by dotted names."""

    def __init__(self, config: PythonConfig, file: str) -> None:
        self._config, self._file, self.draft = config, file, Draft()

    def translate(self) -> None:
        self._model()
        self._freezing()
        self._data()
        self._optimizer()
        self._schedule()
        self._runtime()
        tell_rest(self._config, self.draft)
        self.draft.settle()

    def look_up(self, name: str) -> PythonValue:
        """The value at a dotted name, None where there is none; a value that is not known is a problem."""
        root, *keys = name.split(".")
        value = self._config.values.get(root)
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return self._known(value, name)

    def _known(self, value: PythonValue, name: str) -> PythonValue:
        """A value, or None with a problem where only running the config would tell it."""
        if isinstance(value, Unknown):
            message = f"the value of `{name}` cannot be told without running the config"
            self.draft.problems.append(
                Problem(
                    message,
                    code="value-cannot-be-told-without-running",
                    mark=value.mark,
                    hint="write the value in its place",
                )
            )
            return None
        return value

    def number(self, name: str) -> int | float | None:
        value = self.look_up(name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def put(self, name: str, path: Path, value: Value, *, default: Value = None, remark: str = "") -> None:
        """A setting of the config under its key, or the value it has there when it is left out."""
        if value is not None:
            self.draft.mapped(name, str(value), path, value, remark=remark, mark=self._mark(name))
        elif default is not None:
            self.draft.default(name, path, default, remark=remark)

    def _mark(self, name: str) -> Mark | None:
        return self._config.marks.get(name.partition(".")[0])

    def _text(self, name: str) -> str | None:
        value = self.look_up(name)
        return value if isinstance(value, str) else None

    def _symbol(self, name: str) -> str:
        value = self.look_up(name)
        return value.name.rpartition(".")[2] if isinstance(value, Symbol) else ""

    def _model(self) -> None:
        llm, tower = (
            "model.llm.pretrained_model_name_or_path",
            "model.visual_encoder.pretrained_model_name_or_path",
        )
        self.put(llm, (MODEL, "language_model"), self._text(llm))
        self.put(tower, (MODEL, "vision_tower", "source"), self._text(tower))
        layer = self.number("model.visual_select_layer")
        self.put("model.visual_select_layer", (MODEL, "vision_tower", "select_layer"), layer, default=-2)
        depth = self.number("model.projector_depth")
        path = (MODEL, "projector", "type")
        if depth is None:
            self.draft.default("model.projector_depth", path, "mlp2x_gelu", remark="depth 2")
        else:
            self.draft.mapped("model.projector_depth", str(depth), path, f"mlp{depth}x_gelu")
        self.draft.put((MODEL, "image_tokens"), {"start_end": False, "patch": False})
        weights = self._text("model.pretrained_pth")
        if weights is not None:
            why = "XTuner's checkpoints cannot be read: name the folder of a recipe's Stage 1 in `init_from:`"
            self.draft.lost("model.pretrained_pth", weights, why, self._mark("model"))
        self._quantization("model.llm.quantization_config")
        checkpoints = self.look_up("model.use_activation_checkpointing")
        path = (STAGE, "train", "gradient_checkpointing")
        if isinstance(checkpoints, bool):
            name = "model.use_activation_checkpointing"
            self.draft.mapped(name, str(checkpoints), path, checkpoints, mark=self._mark(name))
        else:
            remark = "XTuner's own default"
            self.draft.default("model.use_activation_checkpointing", path, True, remark=remark)

    def _quantization(self, name: str) -> None:
        """bitsandbytes' own config, whose defaults are other ones than LLaVA's."""
        if not isinstance(self.look_up(name), dict):
            return
        mark = self._mark(name)
        bits = next((bits for bits in (4, 8) if self.look_up(f"{name}.load_in_{bits}bit") is True), None)
        if bits is None:
            return
        put_bits(self.draft, f"{name}.load_in_{bits}bit", "True", bits, mark=mark)
        for key, ours, default in (
            ("bnb_4bit_quant_type", "type", "fp4"),
            ("bnb_4bit_use_double_quant", "double_quant", False),
        ):
            value = self.look_up(f"{name}.{key}")
            if bits == 4 and isinstance(value, str | bool):
                put_part(self.draft, f"{name}.{key}", str(value), ours, value, mark=mark)
            elif bits == 4:
                default_part(self.draft, f"{name}.{key}", ours, default)

    def _freezing(self) -> None:
        trained = ["projector"]
        # XTuner freezes first and puts the adapters in afterwards, so that they train in either case.
        adapters, tower_adapters = self.look_up("model.llm_lora"), self.look_up("model.visual_encoder_lora")
        if self.look_up("model.freeze_llm") is not True and adapters is None:
            trained += ["language_model", "lm_head"]
        if self.look_up("model.freeze_visual_encoder") is not True and tower_adapters is None:
            trained.append("vision_tower")
        self.draft.put((STAGE, "freeze"), "all")
        path = (STAGE, "trainable")
        self.draft.put(path, list[Value](trained))
        for name in ("model.freeze_llm", "model.freeze_visual_encoder"):
            value = self.look_up(name)
            if value is None:
                self.draft.default(name, path, list[Value](trained), remark="False")
            else:
                self.draft.tell_mapped(name, str(value is True), path, mark=self._mark("model"))
        if isinstance(adapters, dict):
            self._adapters("model.llm_lora", ["language_model"])
        if isinstance(tower_adapters, dict):
            self._tower_adapters(adapters, tower_adapters)

    def _adapters(self, name: str, modules: list[Value]) -> None:
        lora = (STAGE, "lora")
        self.draft.put((*lora, "modules"), modules)
        for key, ours, default in _LORA_NUMBERS:
            self.put(f"{name}.{key}", (*lora, ours), self.number(f"{name}.{key}"), default=default)
        self.put(f"{name}.bias", (*lora, "bias"), self._text(f"{name}.bias"), default="none")

    def _tower_adapters(self, adapters: PythonValue, tower_adapters: Mapping[str, PythonValue]) -> None:
        """Adapters of the vision tower, where they have the numbers of the language model's, or are alone."""
        name, lora = "model.visual_encoder_lora", (STAGE, "lora")
        if not isinstance(adapters, dict):
            self._adapters(name, ["vision_tower"])
            return
        numbers = [
            [values.get(key, default) for key, _, default in _LORA_NUMBERS]
            for values in (adapters, tower_adapters)
        ]
        mark = self._mark("model")
        if numbers[0] == numbers[1]:
            self.draft.put((*lora, "modules"), ["language_model", "vision_tower"])
            for key in tower_adapters:
                if key != "type":
                    shown = spell_python(tower_adapters[key])
                    self.draft.tell_mapped(f"{name}.{key}", shown, (*lora, "modules"), mark=mark)
            return
        why = "a stage has adapters of one size, and the language model's are others"
        for key in tower_adapters:
            self.draft.lost(f"{name}.{key}", spell_python(tower_adapters[key]), why, mark)

    def _data(self) -> None:
        sets = find_sets(self._config)
        path = (STAGE, "data", "sources")
        sources: list[Value] = []
        for number, (name, values) in enumerate(sets):
            source: dict[str, Value] = {}
            for setting, key in (("data_path", "annotations"), ("image_folder", "images")):
                value = self._known(values.get(setting), f"{name}.{setting}")
                if isinstance(value, str):
                    source[key] = value
                    mark = self._mark(name)
                    self.draft.tell_mapped(f"{name}.{setting}", value, (*path, number, key), mark=mark)
            count = known_num_samples(str(source.get("annotations", "")))
            if count is not None:
                source["num_samples"] = count
            if source:
                sources.append(source)
        if sources:
            self.draft.put(path, sources)
        self._sampler()
        if not sets:
            return
        (name, first), *others = sets
        self._template(f"{name}.template_map_fn.template", _inside(first, "template_map_fn", "template"))
        pads = self._known(first.get("pad_image_to_square"), f"{name}.pad_image_to_square")
        path = (STAGE, "data", "image_aspect_ratio")
        if pads is None:
            self.draft.default(f"{name}.pad_image_to_square", path, "square")
        else:
            shape = "pad" if pads is True else "square"
            self.draft.mapped(f"{name}.pad_image_to_square", str(pads is True), path, shape)
        self._length(f"{name}.max_length", first.get("max_length"))
        for other, values in others:
            self._tell_shared(other, values, name, first)

    def _tell_shared(
        self, other: str, values: Mapping[str, PythonValue], name: str, first: Mapping[str, PythonValue]
    ) -> None:
        """What a stage has once: the same in each of its sets, or lost."""
        for keys, path in _SHARED:
            dotted = ".".join(keys)
            value, usual = _inside(values, *keys), _inside(first, *keys)
            if value == usual:
                if value is not None:
                    why = f"as `{name}.{dotted}`"
                    self.draft.needless(f"{other}.{dotted}", spell_python(value), why, self._mark(other))
                continue
            why = f"a stage has one, and `{name}` has {spell_python(usual)}"
            self.draft.lost(f"{other}.{dotted}", spell_python(value), why, self._mark(other), path=path)

    def _template(self, name: str, found: PythonValue) -> None:
        template = self._known(found, name)
        if template is None:
            return
        shown, path = spell_python(template), (STAGE, "data", "template")
        word = shown.rpartition(".")[2]
        ours = TEMPLATES.get(word)
        if ours is None:
            self.draft.problems.append(
                Problem(
                    f"recipes have no template for XTuner's `{word}`",
                    code="unknown-conversation",
                    mark=self._mark(name),
                    found=f"{name} = {shown}",
                    hint=f"if one of these writes the same text, put it there: {', '.join(TEMPLATES)}",
                )
            )
            return
        self.draft.put(path, ours)
        why = f"XTuner writes no system prompt before the first turn; `{ours}` writes one"
        self.draft.lost(name, shown, why, self._mark(name), path=path)

    def _length(self, name: str, found: PythonValue) -> None:
        length = self._known(found, name)
        if not isinstance(length, int | float) or isinstance(length, bool):
            return
        source = self.draft.read(MODEL, "vision_tower", "source")
        tower = VISION_TOWERS.get(source) if isinstance(source, str) else None
        path = (STAGE, "data", "max_length")
        if tower is None:
            why = "XTuner counts without the image, whose tokens are not known here: add them"
            self.draft.lost(name, str(length), why, path=path)
            self.draft.put(path, int(length))
            return
        side = _whole(tower.get("image_size")) // max(1, _whole(tower.get("patch_size")))
        total = int(length) + side * side
        remark = f"XTuner counts without the image: {side * side} tokens more"
        self.draft.mapped(name, f"{length:g}", path, total, remark=remark)

    def _sampler(self) -> None:
        name = "train_dataloader.sampler"
        kind = self._symbol(f"{name}.type")
        path = (STAGE, "data", "group_by")
        if kind == "LengthGroupedSampler":
            word = self._text(f"{name}.length_property") or "length"
            self.draft.mapped(f"{name}.length_property", word, path, word)
        elif self.look_up(f"{name}.shuffle") is False:
            self.draft.mapped(f"{name}.shuffle", "False", (STAGE, "data", "shuffle"), False)

    def _optimizer(self) -> None:
        train = (STAGE, "train")
        loader, optimizer = "train_dataloader", "optim_wrapper.optimizer"
        for name, key in (
            (f"{loader}.batch_size", "per_device_train_batch_size"),
            ("optim_wrapper.accumulative_counts", "gradient_accumulation_steps"),
            (f"{optimizer}.lr", "learning_rate"),
            (f"{optimizer}.weight_decay", "weight_decay"),
            ("optim_wrapper.clip_grad.max_norm", "max_grad_norm"),
            (f"{loader}.num_workers", "dataloader_num_workers"),
        ):
            value = self.number(name)
            if value is not None and key in ("learning_rate", "weight_decay", "max_grad_norm"):
                value = float(value)
            self.put(name, (*train, key), value)
        betas = self.look_up(f"{optimizer}.betas")
        for key, beta in zip(
            ("adam_beta1", "adam_beta2"), betas if isinstance(betas, list) else [], strict=False
        ):
            if isinstance(beta, int | float):
                self.draft.put((*train, key), float(beta))
        if isinstance(betas, list):
            self.draft.tell_mapped(f"{optimizer}.betas", spell_python(betas), (*train, "adam_beta1"))
        kind = self._symbol(f"{optimizer}.type")
        if kind == "AdamW":
            self.draft.mapped(f"{optimizer}.type", kind, (*train, "optim"), "adamw_torch")
        elif kind:
            self.draft.lost(f"{optimizer}.type", kind, "write `optim:` with a name of Hugging Face's")
        dtype = self._text("optim_wrapper.dtype")
        if dtype in ("float16", "bfloat16"):
            key = "fp16" if dtype == "float16" else "bf16"
            self.draft.mapped("optim_wrapper.dtype", dtype, (*train, key), True)

    def _schedule(self) -> None:
        train = (STAGE, "train")
        epochs, steps = self.number("train_cfg.max_epochs"), self.number("train_cfg.max_iters")
        if steps is not None:
            self.draft.mapped("train_cfg.max_iters", str(steps), (*train, "max_steps"), int(steps))
        else:
            self.put("train_cfg.max_epochs", (*train, "num_train_epochs"), epochs)
        schedule = self.look_up("param_scheduler")
        kinds: dict[str, tuple[str, Mapping[str, PythonValue]]] = {}
        for number, entry in enumerate(schedule if isinstance(schedule, list) else [schedule]):
            if isinstance(entry, dict) and isinstance(kind := entry.get("type"), Symbol):
                name = f"param_scheduler[{number}]" if isinstance(schedule, list) else "param_scheduler"
                kinds[kind.name.rpartition(".")[2]] = (name, entry)
        mark = self._mark("param_scheduler")
        for kind_name, (name, _) in kinds.items():
            if kind_name == _COSINE:
                path = (*train, "lr_scheduler_type")
                self.draft.mapped(f"{name}.type", kind_name, path, "cosine", mark=mark)
            elif kind_name != _WARM_UP:
                self.draft.lost(f"{name}.type", kind_name, "write `lr_scheduler_type:` under `train:`", mark)
        if schedule is not None and not kinds:
            self.draft.lost("param_scheduler", "…", "write `lr_scheduler_type:` under `train:`", mark)
        name, warm_up = kinds.get(_WARM_UP, ("", {}))
        end = warm_up.get("end")
        if isinstance(end, int | float) and epochs and end > 0:
            ratio = round(end / epochs, 6)
            self.draft.mapped(f"{name}.end", f"{end:g}", (*train, "warmup_ratio"), ratio, mark=mark)
            self.draft.tell_mapped(f"{name}.type", _WARM_UP, (*train, "warmup_ratio"), mark=mark)

    def _runtime(self) -> None:
        train = (STAGE, "train")
        for name, key in (
            ("default_hooks.logger.interval", "logging_steps"),
            ("default_hooks.checkpoint.interval", "save_steps"),
            ("default_hooks.checkpoint.max_keep_ckpts", "save_total_limit"),
        ):
            value = self.number(name)
            self.put(name, (*train, key), value if value is None or value > 0 else None)
        seed = self.number("randomness.seed")
        if seed is not None:
            self.draft.mapped("randomness.seed", str(seed), (*train, "seed"), int(seed))
        else:
            self.draft.needless(
                "randomness.seed", "None", "XTuner draws one; the recipe has 42 unless it says more"
            )
        stem = re.sub(r"\.py$", "", self._file.rpartition("/")[2])
        folder = self._text("work_dir")
        self.put("work_dir", (STAGE, "output_dir"), folder, default=f"./work_dirs/{stem}")
        self.draft.name = stem
        why = "it is given on XTuner's command line, `--deepspeed deepspeed_zero2`: write `deepspeed: zero2`"
        self.draft.lost("--deepspeed", "", why)


def _inside(values: Mapping[str, PythonValue], *keys: str) -> PythonValue:
    """A value by its keys, None where there is none."""
    place: PythonValue = dict(values)
    for key in keys:
        place = place.get(key) if isinstance(place, dict) else None
    return place


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
