"""XTuner's LLaVA configs as recipes, read from their syntax tree."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llava_recipes.migrate.combine import IsFolder, Migration, combine
from llava_recipes.migrate.draft import MODEL, STAGE
from llava_recipes.migrate.python_config import PythonConfig, PythonValue, Symbol, Unknown, read_python_config
from llava_recipes.migrate.quantization import default_part, put_bits, put_part
from llava_recipes.migrate.xtuner_data import translate_data
from llava_recipes.migrate.xtuner_reader import Reader, not_known
from llava_recipes.migrate.xtuner_rest import spell_python, tell_rest
from llava_recipes.recipe.errors import Mark, Problem, RecipeError
from llava_recipes.recipe.scalars import Value, say_number

_WARM_UP, _COSINE = "LinearLR", "CosineAnnealingLR"


def migrate_xtuner(text: str, file: str, *, recipe_file: str, is_folder: IsFolder) -> Migration:
    """The recipe of one config. Raises RecipeError where it is no LLaVA config."""
    config = read_python_config(text, file)
    model = config.values.get("model")
    if isinstance(model, Unknown):
        raise RecipeError(not_known("model", model.mark))
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(kind, Symbol) or not kind.name.endswith("LLaVAModel"):
        hint = "looked for `model = dict(type=LLaVAModel, …)`"
        raise RecipeError(
            Problem(
                "this is no LLaVA config of XTuner",
                code="unknown-config-format",
                mark=Mark(file, 0, 0),
                hint=hint,
            )
        )
    translation = _Translation(config, file)
    translation.translate()
    return combine([translation.draft], file=file, recipe_file=recipe_file, marks=[None], is_folder=is_folder)


_LORA_NUMBERS = (("r", "r", 8), ("lora_alpha", "alpha", 8), ("lora_dropout", "dropout", 0.0))


class _Translation(Reader):
    """One config, looked up by dotted names."""

    def __init__(self, config: PythonConfig, file: str) -> None:
        super().__init__(config)
        self._file = file

    def translate(self) -> None:
        self._model()
        self._freezing()
        translate_data(self)
        self._optimizer()
        self._schedule()
        self._runtime()
        tell_rest(self.config, self.draft)
        self.draft.settle()

    def _model(self) -> None:
        llm, tower = (
            "model.llm.pretrained_model_name_or_path",
            "model.visual_encoder.pretrained_model_name_or_path",
        )
        self.put(llm, (MODEL, "language_model"), self.text(llm))
        self.put(tower, (MODEL, "vision_tower", "source"), self.text(tower))
        layer = self.number("model.visual_select_layer")
        self.put("model.visual_select_layer", (MODEL, "vision_tower", "select_layer"), layer, default=-2)
        depth = self.number("model.projector_depth")
        path = (MODEL, "projector", "type")
        if depth is None:
            self.draft.default("model.projector_depth", path, "mlp2x_gelu", remark="depth 2")
        else:
            self.draft.mapped("model.projector_depth", str(depth), path, f"mlp{depth}x_gelu")
        self.draft.put((MODEL, "image_tokens"), {"start_end": False, "patch": False})
        weights = self.text("model.pretrained_pth")
        if weights is not None:
            why = "XTuner's checkpoints cannot be read: name the folder of a recipe's Stage 1 in `init_from:`"
            self.draft.lost("model.pretrained_pth", weights, why, self.mark("model"))
        self._quantization("model.llm.quantization_config")
        checkpoints = self.look_up("model.use_activation_checkpointing")
        path = (STAGE, "train", "gradient_checkpointing")
        if isinstance(checkpoints, bool):
            name = "model.use_activation_checkpointing"
            self.draft.mapped(name, str(checkpoints), path, checkpoints, mark=self.mark(name))
        else:
            remark = "XTuner's own default"
            self.draft.default("model.use_activation_checkpointing", path, True, remark=remark)

    def _quantization(self, name: str) -> None:
        """bitsandbytes' own config, whose defaults are other ones than LLaVA's."""
        if not isinstance(self.look_up(name), dict):
            return
        mark = self.mark(name)
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
                self.draft.tell_mapped(name, str(value is True), path, mark=self.mark("model"))
        if isinstance(adapters, dict):
            self._adapters("model.llm_lora", ["language_model"])
        if isinstance(tower_adapters, dict):
            self._tower_adapters(adapters, tower_adapters)

    def _adapters(self, name: str, modules: list[Value]) -> None:
        lora = (STAGE, "lora")
        self.draft.put((*lora, "modules"), modules)
        for key, ours, default in _LORA_NUMBERS:
            self.put(f"{name}.{key}", (*lora, ours), self.number(f"{name}.{key}"), default=default)
        self.put(f"{name}.bias", (*lora, "bias"), self.text(f"{name}.bias"), default="none")

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
        mark = self.mark("model")
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

    def _optimizer(self) -> None:
        train = (STAGE, "train")
        loader, optimizer = "train_dataloader", "optim_wrapper.optimizer"
        for name, key in (
            (f"{loader}.batch_size", "per_device_train_batch_size"),
            ("optim_wrapper.accumulative_counts", "gradient_accumulation_steps"),
            (f"{optimizer}.lr", "learning_rate"),
            (f"{optimizer}.weight_decay", "weight_decay"),
            (f"{optimizer}.eps", "adam_epsilon"),
            ("optim_wrapper.clip_grad.max_norm", "max_grad_norm"),
            (f"{loader}.num_workers", "dataloader_num_workers"),
        ):
            value = self.number(name)
            if value is not None and key in (
                "learning_rate",
                "weight_decay",
                "adam_epsilon",
                "max_grad_norm",
            ):
                value = float(value)
            self.put(name, (*train, key), value)
        if self.look_up("optim_wrapper.clip_grad") is None:
            remark = "XTuner clips where its config says so"
            self.draft.default("optim_wrapper.clip_grad", (*train, "max_grad_norm"), 0, remark=remark)
        betas = self.look_up(f"{optimizer}.betas")
        for key, beta in zip(
            ("adam_beta1", "adam_beta2"), betas if isinstance(betas, list) else [], strict=False
        ):
            if isinstance(beta, int | float):
                self.draft.put((*train, key), float(beta))
        if isinstance(betas, list):
            self.draft.tell_mapped(f"{optimizer}.betas", spell_python(betas), (*train, "adam_beta1"))
        kind = self.symbol(f"{optimizer}.type")
        if kind == "AdamW":
            self.draft.mapped(f"{optimizer}.type", kind, (*train, "optim"), "adamw_torch")
            if self.number(f"{optimizer}.weight_decay") is None:
                self.draft.default(
                    f"{optimizer}.weight_decay", (*train, "weight_decay"), 0.01, remark="torch's own"
                )
        elif kind:
            self.draft.lost(f"{optimizer}.type", kind, "write `optim:` with a name of Hugging Face's")
        dtype = self.text("optim_wrapper.dtype")
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
        mark = self.mark("param_scheduler")
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
            self.draft.mapped(f"{name}.end", say_number(end), (*train, "warmup_ratio"), ratio, mark=mark)
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
        folder = self.text("work_dir")
        self.put("work_dir", (STAGE, "output_dir"), folder, default=f"./work_dirs/{stem}")
        self.draft.name = stem
        why = "it is given on XTuner's command line, `--deepspeed deepspeed_zero2`: write `deepspeed: zero2`"
        self.draft.lost("--deepspeed", "", why)
