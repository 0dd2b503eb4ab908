"""XTuner's LLaVA configs as recipes, read from their syntax tree."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llava_recipes.migrate.combine import Migration, combine
from llava_recipes.migrate.draft import MODEL, STAGE, Draft
from llava_recipes.migrate.known_data import known_num_samples
from llava_recipes.migrate.python_config import PythonConfig, PythonValue, Symbol, Unknown, read_python_config
from llava_recipes.plan.catalog import VISION_TOWERS
from llava_recipes.recipe.errors import Mark, Path, Problem, RecipeError
from llava_recipes.recipe.scalars import Value

_WARM_UP, _COSINE = "LinearLR", "CosineAnnealingLR"


def migrate_xtuner(text: str, file: str, *, recipe_file: str) -> Migration:
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
    return combine([translation.draft], file=file, recipe_file=recipe_file, marks=[None])


TEMPLATES = {"vicuna": "v1", "llama3_chat": "llama_3", "qwen_chat": "qwen", "phi3_chat": "phi3"}


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

    def look_up(self, name: str) -> PythonValue:
        """The value at a dotted name, None where there is none; a value that is not known is a problem."""
        root, *keys = name.split(".")
        value = self._config.values.get(root)
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
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
        if self.look_up("model.llm.quantization_config") is not None:
            why = "it is not taken over: write `quantization:` under `language_model:`"
            self.draft.lost("model.llm.quantization_config", "…", why, self._mark("model"))

    def _freezing(self) -> None:
        trained = ["projector"]
        freezes_language = self.look_up("model.freeze_llm") is True
        adapters = self.look_up("model.llm_lora")
        if not freezes_language and adapters is None:
            trained += ["language_model", "lm_head"]
        tower_adapters = self.look_up("model.visual_encoder_lora")
        if self.look_up("model.freeze_visual_encoder") is not True and tower_adapters is None:
            trained.append("vision_tower")
        self.draft.put((STAGE, "freeze"), "all")
        path = (STAGE, "trainable")
        for name in ("model.freeze_llm", "model.freeze_visual_encoder"):
            value = self.look_up(name)
            self.draft.mapped(name, str(value is True), path, list[Value](trained), mark=self._mark("model"))
        if isinstance(adapters, dict) and not freezes_language:
            self._adapters(adapters)
        if tower_adapters is not None:
            why = "adapters go into the language model alone here"
            self.draft.lost("model.visual_encoder_lora", "…", why, self._mark("model"))

    def _adapters(self, adapters: Mapping[str, PythonValue]) -> None:
        lora = (STAGE, "lora")
        self.draft.mapped("model.llm_lora", "…", (*lora, "modules"), ["language_model"])
        for name, key, default in (
            ("r", "r", 8),
            ("lora_alpha", "alpha", 8),
            ("lora_dropout", "dropout", 0.0),
        ):
            value = self.number(f"model.llm_lora.{name}")
            self.put(f"model.llm_lora.{name}", (*lora, key), value, default=default)
        self.put("model.llm_lora.bias", (*lora, "bias"), self._text("model.llm_lora.bias"), default="none")

    def _data(self) -> None:
        name = "llava_dataset" if "llava_dataset" in self._config.values else "train_dataloader.dataset"
        annotations, images = self._text(f"{name}.data_path"), self._text(f"{name}.image_folder")
        data = (STAGE, "data")
        source: dict[str, Value] = {}
        for key, setting, value in (
            ("annotations", "data_path", annotations),
            ("images", "image_folder", images),
        ):
            if value is not None:
                source[key] = value
                self.draft.tell_mapped(f"{name}.{setting}", value, (*data, "sources", 0, key))
        count = known_num_samples(annotations or "")
        if count is not None:
            source["num_samples"] = count
        if source:
            self.draft.put((*data, "sources"), [source])
        self._template(f"{name}.template_map_fn.template")
        pads = self.look_up(f"{name}.pad_image_to_square") is True
        path = (*data, "image_aspect_ratio")
        self.draft.mapped(f"{name}.pad_image_to_square", str(pads), path, "pad" if pads else "square")
        self._length(f"{name}.max_length")
        self._sampler()

    def _template(self, name: str) -> None:
        template = self.look_up(name)
        # A list that holds itself twice, often enough, must not be spelled out.
        shown = template.name if isinstance(template, Symbol) else self._text(name) or "…"
        word = shown.rpartition(".")[2]
        path = (STAGE, "data", "template")
        ours = TEMPLATES.get(word, word)
        self.draft.mapped(name, shown, path, ours)
        if word in TEMPLATES:
            why = f"XTuner writes no system prompt before the first turn; `{ours}` writes one"
            self.draft.lost(name, shown, why, self._mark("llava_dataset"))

    def _length(self, name: str) -> None:
        length = self.number(name)
        if length is None:
            return
        source = self.draft.read(MODEL, "vision_tower", "source")
        tower = VISION_TOWERS.get(source) if isinstance(source, str) else None
        path = (STAGE, "data", "max_length")
        if tower is None:
            why = "XTuner counts without the image, whose tokens are not known here: add them"
            self.draft.lost(name, str(length), why)
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
                self.draft.mapped(f"{optimizer}.betas", str(beta), (*train, key), float(beta))
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
        kinds: dict[str, Mapping[str, PythonValue]] = {}
        for entry in schedule if isinstance(schedule, list) else [schedule]:
            if isinstance(entry, dict) and isinstance(kind := entry.get("type"), Symbol):
                kinds[kind.name.rpartition(".")[2]] = entry
        if _COSINE in kinds:
            self.draft.mapped("param_scheduler", _COSINE, (*train, "lr_scheduler_type"), "cosine")
        elif schedule is not None:
            self.draft.lost(
                "param_scheduler", ", ".join(kinds) or "…", "write `lr_scheduler_type:` under `train:`"
            )
        end = kinds.get(_WARM_UP, {}).get("end")
        if isinstance(end, int | float) and epochs and end > 0:
            ratio = round(end / epochs, 6)
            self.draft.mapped("param_scheduler", _WARM_UP, (*train, "warmup_ratio"), ratio)

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
        remark = "XTuner's own default"
        self.draft.default(
            "model.use_activation_checkpointing", (*train, "gradient_checkpointing"), True, remark=remark
        )
        stem = re.sub(r"\.py$", "", self._file.rpartition("/")[2])
        self.draft.default("work_dir", (STAGE, "output_dir"), f"./work_dirs/{stem}")
        self.draft.name = stem
        why = "it is given on XTuner's command line, `--deepspeed deepspeed_zero2`: write `deepspeed: zero2`"
        self.draft.lost("--deepspeed", "", why)
        for name in ("evaluation_inputs", "evaluation_images", "custom_hooks"):
            if name in self._config.values:
                why = "it changes nothing in training"
                self.draft.needless(name, "…", why, self._mark(name))


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
