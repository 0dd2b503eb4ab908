"""What is left of an XTuner config: every setting that nothing was said about is needless, or it is lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from llava_recipes.migrate.draft import Draft
from llava_recipes.migrate.python_config import PythonConfig, PythonValue, Symbol, Unknown

_MAX_SETTINGS = 2_000
_MAX_ALIASES = 20
_USUAL_TYPES = frozenset(
    {
        *(
            "LLaVAModel",
            "from_pretrained",
            "LLaVADataset",
            "ConcatDataset",
            "LoraConfig",
            "BitsAndBytesConfig",
        ),
        *("AmpOptimWrapper", "OptimWrapper", "AdamW", "LinearLR", "CosineAnnealingLR", "TrainLoop"),
        *("EpochBasedTrainLoop", "IterBasedTrainLoop", "DefaultSampler", "LengthGroupedSampler"),
        *("template_map_fn_factory", "default_collate_fn", "mm_collate_fn", "DatasetInfoHook"),
        *("EvaluateChatHook", "ThroughputHook", "IterTimerHook", "LoggerHook", "ParamSchedulerHook"),
        *("CheckpointHook", "DistSamplerSeedHook"),
    }
)
"""Classes whose work a recipe does too, or that only report."""

_NEEDLESS: tuple[tuple[str, str], ...] = (
    ("model.llm.trust_remote_code", "no code of a model's folder is run"),
    ("model.llm.torch_dtype", "`fp16` and `bf16` say it"),
    ("model.llm.quantization_config.bnb_4bit_compute_dtype", "`fp16` and `bf16` say it"),
    ("model.llm.quantization_config.llm_int8_*", "as bitsandbytes has it"),
    ("*.task_type", "it says what a language model is for"),
    ("*tokenizer.trust_remote_code", "no code of a model's folder is run"),
    ("*tokenizer.padding_side", "sequences are padded at the right"),
    ("*image_processor.trust_remote_code", "no code of a model's folder is run"),
    ("train_dataloader.pin_memory", "it changes nothing in training"),
    ("train_dataloader.persistent_workers", "it changes nothing in training"),
    ("train_dataloader.prefetch_factor", "it changes nothing in training"),
    ("train_dataloader.collate_fn.use_varlen_attn", "sequences are padded"),
    ("train_dataloader.sampler.per_device_batch_size", "it follows from the batch"),
    ("optim_wrapper.loss_scale", "the loss is scaled as `fp16` needs it"),
    ("optim_wrapper.clip_grad.error_if_nonfinite", "it changes nothing in training"),
    ("param_scheduler*.by_epoch", "rates are counted in steps"),
    ("param_scheduler*.begin", "the schedule follows the warm-up"),
    ("param_scheduler*.end", "the schedule ends with the run"),
    ("param_scheduler*.T_max", "the schedule ends with the run"),
    ("param_scheduler*.convert_to_iter_based", "rates are counted in steps"),
    ("train_cfg.by_epoch", "the length says it"),
    ("train_cfg.val_interval", "nothing is measured there"),
    ("default_hooks.*", "it reports, and changes nothing in training"),
    ("custom_hooks*", "it reports, and changes nothing in training"),
    ("evaluation_*", "it changes nothing in training"),
    ("env_cfg*", "it changes nothing in training"),
    ("visualizer*", "write `report_to:` for a tracker"),
    ("log_level", "it changes nothing in training"),
    ("log_processor*", "it changes nothing in training"),
    ("default_scope", "it names a library"),
    ("launcher", "`llava-recipe run` starts the processes"),
    ("randomness.deterministic", "it changes nothing but the speed"),
    ("SYSTEM", "it is for the chat while training"),
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


def tell_rest(config: PythonConfig, draft: Draft) -> None:
    """Say of each setting of the config what became of it."""
    told = {entry.name for entry in draft.entries}
    aliases: dict[str, list[str]] = {}
    for number, (name, value) in enumerate(list(_settings(config, aliases))):
        names = [name, *_other_names(name, aliases)]
        if not told.isdisjoint(names):
            continue
        root = name.partition(".")[0].partition("[")[0]
        mark, shown = config.marks.get(root), spell_python(value)
        if number >= _MAX_SETTINGS:
            draft.lost("…", "", f"more than {_MAX_SETTINGS:,} settings; the rest is not looked at", mark)
            return
        reasons = (_why_needless(each, value, draft, is_variable=name == root) for each in names)
        why = next((reason for reason in reasons if reason is not None), None)
        if why is not None:
            draft.needless(name, shown, why, mark)
        else:
            draft.lost(name, shown, "recipes have no key for it yet", mark)


def _other_names(name: str, aliases: Mapping[str, list[str]]) -> list[str]:
    """A setting's places by way of the other names of what it stands in."""
    return [
        other + name[len(first) :]
        for first, others in aliases.items()
        if name.startswith((f"{first}.", f"{first}["))
        for other in others
    ]


def spell_python(value: PythonValue) -> str:
    """A value as it is written about; what is long or holds others is cut."""
    if isinstance(value, Symbol):
        return value.name
    if isinstance(value, list) and len(value) < 8 and not any(isinstance(x, list | dict) for x in value):
        return "[" + ", ".join(spell_python(entry) for entry in value) + "]"
    return "…" if isinstance(value, Unknown | list | dict) else str(value)


def _settings(config: PythonConfig, aliases: dict[str, list[str]]) -> Iterator[tuple[str, PythonValue]]:
    """Every value that holds no others, by its place; `aliases` gets other names of what has several."""
    seen: dict[int, str] = {}

    def inside(name: str, value: PythonValue, depth: int) -> Iterator[tuple[str, PythonValue]]:
        if not isinstance(value, dict | list) or not value or depth > 50:
            yield name, value
            return
        if isinstance(value, list) and not any(isinstance(entry, dict | list) for entry in value):
            yield name, value
            return
        if id(value) in seen:
            others = aliases.setdefault(seen[id(value)], [])
            if len(others) < _MAX_ALIASES:
                others.append(name)
            return
        seen[id(value)] = name
        if isinstance(value, dict):
            for key, entry in value.items():
                yield from inside(f"{name}.{key}", entry, depth + 1)
        else:
            for number, entry in enumerate(value):
                yield from inside(f"{name}[{number}]", entry, depth + 1)

    for name, value in config.values.items():
        yield from inside(name, value, 0)


def _why_needless(name: str, value: PythonValue, draft: Draft, *, is_variable: bool) -> str | None:
    """Why nothing is lost without a setting; None where something is."""
    if value is None:
        return "it is not set"
    if name.endswith(".type") and isinstance(value, Symbol):
        usual = value.name.rpartition(".")[2] in _USUAL_TYPES
        return "its work is a recipe's too, or it only reports" if usual else None
    for pattern, harmless in _HARMLESS_VALUES:
        if fnmatchcase(name, pattern) and value == harmless and type(value) is type(harmless):
            return "as without it"
    for ending, key in _SAME_MODEL.items():
        if name.endswith(ending):
            ours = draft.read(*key.split("."))
            ours = ours.get("source") if isinstance(ours, dict) else ours
            return "that of the model" if value == ours else None
    if fnmatchcase(name, "param_scheduler*.start_factor") and isinstance(value, int | float):
        return "the rate rises from 0" if value <= 1e-3 else None
    found = next((why for pattern, why in _NEEDLESS if fnmatchcase(name, pattern)), None)
    if found is None and is_variable and name not in ("load_from", "resume") and not isinstance(value, dict):
        return "a variable: what it is given to is told under its own name"
    return found
