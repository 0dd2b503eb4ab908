"""DeepSpeed configs: the presets, and whether a config of the user's agrees with the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

from pydantic import JsonValue

from llava_recipes.deepspeed_presets import DEEPSPEED_PRESETS, OFFLOADS, PRESETS
from llava_recipes.errors import KeyPath, Problem
from llava_recipes.plan.batch import BatchSizes
from llava_recipes.plan.types import StagePlan
from llava_recipes.recipe.names import DEEPSPEED_KEYS, DEEPSPEED_REMOVED_KEYS, ZERO_KEYS, ZERO_REMOVED_KEYS
from llava_recipes.recipe.renames import did_you_mean, nearest
from llava_recipes.recipe.scalars import say_number
from llava_recipes.recipe.schema import Train

Config = dict[str, JsonValue]

OFFLOADED = frozenset(
    ["adamw_torch", "adamw_torch_fused", "adagrad", "lion_32bit", "paged_adamw_32bit", "paged_lion_32bit"]
)
"""Optimizers that DeepSpeed has a CPU version of; accelerate puts its Adam in the place of any other."""

_DEVICES = ("none", "cpu", "nvme")
_DEPRECATEDOFFLOADS: Mapping[str, str] = {
    "cpu_offload": "offload_optimizer",
    "cpu_offload_param": "offload_param",
    "cpu_offload_use_pin_memory": "offload_optimizer",
}


def original_file(name: str) -> Config:
    """A file of the original LLaVA, but for clipping, and for blocks that would replace a recipe's keys."""
    return deepcopy(PRESETS[name].config)


def preset(name: str, *, max_grad_norm: float) -> Config:
    """A config of the original LLaVA, which clips where the recipe does."""
    return complete(original_file(name), max_grad_norm=max_grad_norm)


def complete(config: Config, *, max_grad_norm: float) -> Config:
    """The config with every key written out that DeepSpeed's versions take another default for.

    Without `gradient_clipping` DeepSpeed up to 0.19.2 doesn't clip and 0.19.3 clips at 1; the recipe decides.
    Without `pin_memory` an offload pins its memory from 0.19.8 on and not in 0.19.3; it does here, as in the
    original's own offload file.
    """
    config = deepcopy(config)
    if config.get("gradient_clipping") is None:
        config["gradient_clipping"] = max_grad_norm
    zero = config.get("zero_optimization")
    for block in OFFLOADS:
        offload = zero.get(block) if isinstance(zero, dict) else None
        if isinstance(offload, dict) and offload.get("device", "none") != "none":
            offload.setdefault("pin_memory", True)
    return config


def looks_like_path(word: str) -> bool:
    """Whether a `deepspeed` word means a file rather than a preset."""
    return "/" in word or "\\" in word or word.startswith(("~", ".")) or word.lower().endswith(".json")


def unknown_choice(word: str, *, path: KeyPath) -> Problem:
    """The problem with a word that is neither a preset nor a file at hand."""
    if looks_like_path(word):
        return Problem(
            "DeepSpeed config not found",
            code="deepspeed-config-not-found",
            path=path,
            found=f"no file {word}",
            hint=f"presets: {_preset_names()}",
        )
    return Problem(
        f"unknown DeepSpeed preset {word!r}",
        code="unknown-deepspeed-preset",
        path=path,
        found=word,
        hint=did_you_mean(word, (*DEEPSPEED_PRESETS, "none"))
        or f"presets: {_preset_names()}; a file is written with its folder, such as ./{word}.json",
    )


def _preset_names() -> str:
    return ", ".join((*DEEPSPEED_PRESETS, "none"))


def check_config(
    config: Config, *, train: Train, batch: BatchSizes | None, path: KeyPath, inline: bool
) -> list[Problem]:
    """Where a config contradicts the recipe, or would silently replace what the recipe says.

    `path` is that of `deepspeed`; problems of an inline config point below it.
    """
    report = _Report(path, inline)
    _check_keys(config, report)
    _check_precision(config, train, report)
    if batch is not None:
        _check_batch(config, batch, report)
    _check_zero(config, report)
    _check_blocks(config, report)
    _check_offload(config, train, report)
    _check_clipping(config, train, report)
    for block, key in (("optimizer", "optim"), ("scheduler", "lr_scheduler_type")):
        if config.get(block) is not None:
            report.add(
                (block,),
                f"DeepSpeed's own `{block}` would replace the recipe's `{key}: {getattr(train, key)}`",
                code="deepspeed",
                hint=f"remove the block; set `{key}` under `train:`",
                on_key=True,
            )
    return report.problems


def zero_stage(config: Config | None) -> int:
    """The ZeRO stage of a config, 0 for none."""
    zero = config.get("zero_optimization") if config is not None else None
    stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    return stage if isinstance(stage, int) else 0


class _Report:
    """Collects problems, each at its key where the config stands in the recipe."""

    def __init__(self, path: KeyPath, inline: bool) -> None:
        self._path, self._inline = path, inline
        self.problems: list[Problem] = []

    def add(
        self,
        keys: KeyPath,
        message: str,
        *,
        code: str,
        hint: str | None,
        on_key: bool = False,
        found: str | None = None,
    ) -> None:
        path = (*self._path, *keys) if self._inline else self._path
        on_key = on_key and self._inline
        self.problems.append(Problem(message, code=code, path=path, found=found, hint=hint, on_key=on_key))


def _check_keys(config: Config, report: _Report) -> None:
    zero = config.get("zero_optimization")
    places = [
        (config, DEEPSPEED_KEYS, DEEPSPEED_REMOVED_KEYS, ()),
        (zero if isinstance(zero, dict) else {}, ZERO_KEYS, ZERO_REMOVED_KEYS, ("zero_optimization",)),
    ]
    for block, known, removed, path in places:
        for key in block:
            place = "DeepSpeed's `zero_optimization`" if path else "DeepSpeed"
            if key == "amp" and _enabled(config, "amp") is True:
                continue  # reported with the precision
            if key in removed:
                message = f"{place} has no key `{key}` from 0.19.8 on, which stops at it"
                report.add((*path, key), message, code="unknown-deepspeed-key", hint="remove it", on_key=True)
                continue
            near = None if key in known else nearest(key, known)
            # What stands at the top and isn't known is ignored; inside ZeRO's block DeepSpeed stops at it.
            if near is not None or (path and key not in known):
                message = f"{place} has no key `{key}`"
                hint = "remove it" if near is None else f"did you mean `{near}`?"
                report.add((*path, key), message, code="unknown-key", hint=hint, on_key=True)


def _enabled(config: Config, block: str) -> JsonValue:
    """`enabled` of a block; None where the block or the key is absent."""
    value = config.get(block)
    return value.get("enabled") if isinstance(value, dict) else None


def _check_precision(config: Config, train: Train, report: _Report) -> None:
    for block, wanted in (("bf16", train.bf16), ("fp16", train.fp16)):
        enabled = _enabled(config, block)
        said = "true" if wanted else "false"
        if enabled in (True, False) and enabled != wanted:
            report.add(
                (block, "enabled"),
                f"the recipe says `{block}: {said}`, DeepSpeed's `{block}.enabled` is {str(enabled).lower()}",
                code="deepspeed-contradicts-recipe",
                hint='write "auto" there, or make the two agree',
            )
        elif enabled is None and wanted:
            report.add(
                (),
                f"the recipe says `{block}: true`, and the DeepSpeed config does not switch {block} on",
                code="deepspeed-contradicts-recipe",
                hint=f'add {block}: {{"enabled": "auto"}}',
            )
    if _enabled(config, "amp") is True:
        message = "`amp.enabled` of DeepSpeed would replace the recipe's precision"
        report.add(
            ("amp", "enabled"),
            message,
            code="deepspeed-amp",
            hint="remove `amp`",
        )


def _check_clipping(config: Config, train: Train, report: _Report) -> None:
    wanted = f"the recipe says `max_grad_norm: {say_number(train.max_grad_norm)}`"
    clipping = config.get("gradient_clipping")
    if isinstance(clipping, bool) or clipping not in (None, "auto", train.max_grad_norm):
        report.add(
            ("gradient_clipping",),
            f"{wanted}, the DeepSpeed config says `gradient_clipping: {clipping}`",
            code="deepspeed-contradicts-recipe",
            hint='write "auto" there, or make the two agree',
        )


def _check_batch(config: Config, batch: BatchSizes, report: _Report) -> None:
    for key, planned in (
        ("train_micro_batch_size_per_gpu", batch.per_device),
        ("gradient_accumulation_steps", batch.accumulation),
        ("train_batch_size", batch.in_all),
    ):
        value = config.get(key, "auto")
        if value != "auto" and value != planned:
            report.add(
                (key,),
                f"the DeepSpeed config says `{key}: {value}`, the recipe comes to {planned}",
                code="deepspeed-contradicts-recipe",
                hint='write "auto" there, or make the two agree',
            )
    if "train_micro_batch_size_per_gpu" not in config and "train_batch_size" not in config:
        hint = 'add "train_micro_batch_size_per_gpu": "auto"'
        report.add(
            (),
            "the DeepSpeed config has no batch size, which DeepSpeed needs",
            code="deepspeed-batch-missing",
            hint=hint,
        )
    if "gradient_accumulation_steps" not in config and batch.accumulation != 1:
        report.add(
            (),
            f"the recipe comes to {batch.accumulation} accumulation steps, DeepSpeed takes 1 where its "
            "config does not say",
            code="deepspeed-contradicts-recipe",
            hint='add "gradient_accumulation_steps": "auto"',
        )


def _check_zero(config: Config, report: _Report) -> None:
    zero = config.get("zero_optimization")
    if not isinstance(zero, dict):
        hint = 'add "zero_optimization": {"stage": 2}, or write `deepspeed: none` in the stage'
        report.add(
            (),
            "the DeepSpeed config has no `zero_optimization`",
            code="deepspeed-zero-missing",
            hint=hint,
        )
        return
    stage = zero.get("stage", 0)
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        message = "`zero_optimization.stage` is 0, 1, 2 or 3"
        report.add(
            ("zero_optimization", "stage"),
            message,
            code="invalid-zero-stage",
            hint=None,
            found=str(stage),
        )
        return
    if stage != 3 and zero.get("offload_param") is not None:
        report.add(
            ("zero_optimization", "offload_param"),
            f"`zero_optimization.offload_param` needs ZeRO stage 3, the config says {stage}",
            code="offload-param-needs-zero3",
            hint="remove it, or write `stage: 3`",
            on_key=True,
        )


def _check_blocks(config: Config, report: _Report) -> None:
    """Blocks that are no mappings, and offload in a way that DeepSpeed or accelerate stops at."""
    for block in ("bf16", "fp16"):
        if config.get(block) is not None and not isinstance(config[block], dict):
            report.add((block,), f"`{block}` is a mapping", code="mapping", hint='write {"enabled": "auto"}')
    zero = config.get("zero_optimization")
    if not isinstance(zero, dict):
        return
    for key, block in _DEPRECATEDOFFLOADS.items():
        if key in zero:
            hint = f'remove it; for an offload write "{block}": {{"device": "cpu"}}'
            report.add(
                ("zero_optimization", key),
                f"`{key}` is deprecated",
                code="deprecated",
                hint=hint,
                on_key=True,
            )
    for block in OFFLOADS:
        offload = zero.get(block)
        if offload is None:
            continue
        if not isinstance(offload, dict):
            hint = 'write {"device": "cpu"}'
            report.add(("zero_optimization", block), f"`{block}` is a mapping", code="mapping", hint=hint)
        elif offload.get("device", "none") not in _DEVICES:
            message = f"`{block}.device` is one of {', '.join(_DEVICES)}"
            found = str(offload["device"])
            report.add(
                ("zero_optimization", block, "device"), message, code="device-one", hint=None, found=found
            )
        elif not isinstance(offload.get("pin_memory", False), bool):
            message = f"`{block}.pin_memory` is true or false"
            report.add(
                ("zero_optimization", block, "pin_memory"), message, code="value-of-wrong-kind", hint=None
            )


def _check_offload(config: Config, train: Train, report: _Report) -> None:
    zero = config.get("zero_optimization")
    offload = zero.get("offload_optimizer") if isinstance(zero, dict) else None
    device = offload.get("device", "none") if isinstance(offload, dict) else "none"
    if device == "none" or config.get("zero_force_ds_cpu_optimizer") is False or train.optim in OFFLOADED:
        return
    report.add(
        ("zero_optimization", "offload_optimizer"),
        f"with `offload_optimizer` DeepSpeed's Adam takes the place of the recipe's `optim: {train.optim}`",
        code="offload-needs-deepspeed-optimizer",
        hint='write `optim: adamw_torch` under `train:`, or add "zero_force_ds_cpu_optimizer": false',
        on_key=True,
    )


def effective_deepspeed(
    stage: StagePlan, *, world_size: int, hidden: int | None
) -> dict[str, JsonValue] | None:
    """A stage's DeepSpeed config with its "auto" values filled in; None without DeepSpeed.

    `hidden` is the language model's hidden size, which the sizes of buffers follow; what needs it stays
    "auto" where it is None.
    """
    if stage.deepspeed is None:
        return None
    config = deepcopy(stage.deepspeed)
    train, arguments = stage.train, stage.train.training_arguments
    values: dict[str, JsonValue] = {
        "train_micro_batch_size_per_gpu": train.per_device_train_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "train_batch_size": train.per_device_train_batch_size
        * train.gradient_accumulation_steps
        * world_size,
        "gradient_clipping": arguments.get("max_grad_norm"),
        "bf16.enabled": train.precision == "bf16",
        "fp16.enabled": train.precision == "fp16",
    }
    if hidden is not None:
        values |= _buffer_sizes(config, hidden)
    _fill(config, values)
    return config


def _buffer_sizes(config: dict[str, JsonValue], hidden: int) -> dict[str, JsonValue]:
    sizes: dict[str, JsonValue] = {"zero_optimization.reduce_bucket_size": hidden * hidden}
    if zero_stage(config) == 3:
        sizes["zero_optimization.stage3_prefetch_bucket_size"] = int(0.9 * hidden * hidden)
        sizes["zero_optimization.stage3_param_persistence_threshold"] = 10 * hidden
    return sizes


def _fill(config: dict[str, JsonValue], values: Mapping[str, JsonValue]) -> None:
    for path, value in values.items():
        block, _, key = path.rpartition(".")
        place = config.get(block) if block else config
        if isinstance(place, dict) and place.get(key) == "auto":
            place[key] = value
