"""DeepSpeed configs: the presets, what contradicts a recipe, and what the "auto" values stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy

from pydantic import JsonValue

from llava_recipes.deepspeed_presets import DEEPSPEED_PRESETS, OFFLOADS, PRESETS
from llava_recipes.errors import KeyPath, Problem
from llava_recipes.plan.batch import BatchSizes
from llava_recipes.plan.types import StagePlan
from llava_recipes.recipe.names import DEEPSPEED_KEYS, DEEPSPEED_REMOVED_KEYS, ZERO_KEYS, ZERO_REMOVED_KEYS
from llava_recipes.recipe.renames import did_you_mean, nearest
from llava_recipes.recipe.scalars import as_mapping, say_number
from llava_recipes.recipe.schema import Train

Config = dict[str, JsonValue]

OFFLOADED = frozenset(
    ["adamw_torch", "adamw_torch_fused", "adagrad", "lion_32bit", "paged_adamw_32bit", "paged_lion_32bit"]
)
"""Optimizers that DeepSpeed has a CPU version of; accelerate replaces any other by DeepSpeed's Adam."""

_DEVICES = ("none", "cpu", "nvme")
_DEPRECATED_KEYS: Mapping[str, str] = {
    "cpu_offload": "offload_optimizer",
    "cpu_offload_param": "offload_param",
    "cpu_offload_use_pin_memory": "offload_optimizer",
}
_AGREE = 'write "auto" there, or make the two agree'


def original_file(name: str) -> Config:
    """The original LLaVA's file of a preset, without clipping and blocks that replace keys of a recipe."""
    return deepcopy(PRESETS[name].config)


def preset(name: str, *, max_grad_norm: float) -> Config:
    """The complete config of a preset."""
    return complete(original_file(name), max_grad_norm=max_grad_norm)


def complete(config: Config, *, max_grad_norm: float) -> Config:
    """The config with every key set whose default differs between versions of DeepSpeed.

    Without `gradient_clipping` DeepSpeed up to 0.19.2 doesn't clip and 0.19.3 clips at 1; the recipe decides.
    Without `pin_memory` an offload pins its memory from 0.19.8 on and not in 0.19.3; it does here, as in the
    original's own offload file.
    """
    config = deepcopy(config)
    if config.get("gradient_clipping") is None:
        config["gradient_clipping"] = max_grad_norm
    for block in OFFLOADS:
        if offload_device(config, block) != "none":
            as_mapping(zero_block(config)[block]).setdefault("pin_memory", True)
    return config


def zero_block(config: Config | None) -> Config:
    """The `zero_optimization` of a config; empty where there is none."""
    return as_mapping((config or {}).get("zero_optimization"))


def zero_stage(config: Config | None) -> int:
    """The ZeRO stage of a config, 0 for none."""
    stage = zero_block(config).get("stage", 0)
    return stage if isinstance(stage, int) else 0


def offload_device(config: Config | None, block: str) -> JsonValue:
    """Where `offload_optimizer` or `offload_param` moves its data: `cpu`, `nvme` or `none`."""
    return as_mapping(zero_block(config).get(block)).get("device") or "none"


def unknown_choice(word: str, *, path: KeyPath) -> Problem:
    """The problem of a word at `path` that is neither a preset nor an existing file."""
    presets = f"presets: {', '.join((*DEEPSPEED_PRESETS, 'none'))}"
    if "/" in word or "\\" in word or word.startswith(("~", ".")) or word.lower().endswith(".json"):
        file = word.replace("\\", "/").rpartition("/")[2]
        same = next((name for name, each in PRESETS.items() if each.file == file), None)
        equals = "the preset that equals the original's file"
        return Problem(
            "DeepSpeed config not found",
            code="deepspeed-config-not-found",
            path=path,
            found=f"no file {word}",
            hint=presets if same is None else f"check the path, or write `deepspeed: {same}`, {equals}",
        )
    return Problem(
        f"unknown DeepSpeed preset {word!r}",
        code="unknown-deepspeed-preset",
        path=path,
        found=word,
        hint=did_you_mean(word, (*DEEPSPEED_PRESETS, "none"))
        or f"{presets}; a file is written with its folder, such as ./{word}.json",
    )


def check_config(
    config: Config, *, train: Train, batch: BatchSizes | None, path: KeyPath, inline: bool
) -> list[Problem]:
    """Where a config contradicts the recipe, or would silently replace what the recipe says.

    `path` is that of `deepspeed`; the problems of an inline config point to its keys.
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


class _Report:
    """Collects problems, each at its key of an inline config, or at `deepspeed` itself."""

    def __init__(self, path: KeyPath, inline: bool) -> None:
        self._path, self._inline = path, inline
        self.problems: list[Problem] = []

    def add(
        self,
        keys: KeyPath,
        message: str,
        *,
        code: str,
        hint: str | None = None,
        on_key: bool = False,
        found: str | None = None,
    ) -> None:
        path = (*self._path, *keys) if self._inline else self._path
        on_key = on_key and self._inline
        self.problems.append(Problem(message, code=code, path=path, found=found, hint=hint, on_key=on_key))


def _check_keys(config: Config, report: _Report) -> None:
    places = (
        (config, DEEPSPEED_KEYS, DEEPSPEED_REMOVED_KEYS, ()),
        (zero_block(config), ZERO_KEYS, ZERO_REMOVED_KEYS, ("zero_optimization",)),
    )
    for block, known, removed, path in places:
        place = "DeepSpeed's `zero_optimization`" if path else "DeepSpeed"
        for key in block:
            if key == "amp" and _enabled(config, "amp") is True:
                continue  # reported with the precision
            if key in removed:
                message = f"{place} has no key `{key}` since 0.19.8, and refuses it"
                report.add((*path, key), message, code="unknown-deepspeed-key", hint="remove it", on_key=True)
                continue
            near = None if key in known else nearest(key, known)
            # DeepSpeed ignores unknown keys at the top and refuses them inside ZeRO's block.
            if near is not None or (path and key not in known):
                hint = "remove it" if near is None else f"did you mean `{near}`?"
                message = f"{place} has no key `{key}`"
                report.add((*path, key), message, code="unknown-key", hint=hint, on_key=True)


def _enabled(config: Config, block: str) -> JsonValue:
    """`enabled` of a block; None where the block or the key is absent."""
    return as_mapping(config.get(block)).get("enabled")


def _check_precision(config: Config, train: Train, report: _Report) -> None:
    for block, wanted in (("bf16", train.bf16), ("fp16", train.fp16)):
        enabled, said = _enabled(config, block), str(wanted).lower()
        if enabled in (True, False) and enabled != wanted:
            report.add(
                (block, "enabled"),
                f"the recipe says `{block}: {said}`, DeepSpeed's `{block}.enabled` is {str(enabled).lower()}",
                code="deepspeed-contradicts-recipe",
                hint=_AGREE,
            )
        elif enabled is None and wanted:
            report.add(
                (),
                f"the recipe says `{block}: true`, but the DeepSpeed config does not enable {block}",
                code="deepspeed-contradicts-recipe",
                hint=f'add {block}: {{"enabled": "auto"}}',
            )
    if _enabled(config, "amp") is True:
        report.add(
            ("amp", "enabled"),
            "`amp.enabled` of DeepSpeed would replace the recipe's precision",
            code="deepspeed-amp",
            hint="remove `amp`",
        )


def _check_batch(config: Config, batch: BatchSizes, report: _Report) -> None:
    for key, planned in (
        ("train_micro_batch_size_per_gpu", batch.per_device),
        ("gradient_accumulation_steps", batch.accumulation),
        ("train_batch_size", batch.in_all),
    ):
        value = config.get(key, "auto")
        if value not in ("auto", planned):
            report.add(
                (key,),
                f"the DeepSpeed config says `{key}: {value}`, the recipe results in {planned}",
                code="deepspeed-contradicts-recipe",
                hint=_AGREE,
            )
    if "train_micro_batch_size_per_gpu" not in config and "train_batch_size" not in config:
        report.add(
            (),
            "the DeepSpeed config has no batch size, which DeepSpeed needs",
            code="deepspeed-batch-missing",
            hint='add "train_micro_batch_size_per_gpu": "auto"',
        )
    if "gradient_accumulation_steps" not in config and batch.accumulation != 1:
        report.add(
            (),
            f"the recipe results in {batch.accumulation} accumulation steps, but DeepSpeed takes 1 where its "
            "config sets none",
            code="deepspeed-contradicts-recipe",
            hint='add "gradient_accumulation_steps": "auto"',
        )


def _check_zero(config: Config, report: _Report) -> None:
    zero = config.get("zero_optimization")
    if not isinstance(zero, dict):
        report.add(
            (),
            "the DeepSpeed config has no `zero_optimization`",
            code="deepspeed-zero-missing",
            hint='add "zero_optimization": {"stage": 2}, or write `deepspeed: none` in the stage',
        )
        return
    stage = zero.get("stage", 0)
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        message = "`zero_optimization.stage` must be 0, 1, 2 or 3"
        report.add(("zero_optimization", "stage"), message, code="invalid-zero-stage", found=str(stage))
    elif stage != 3 and zero.get("offload_param") is not None:
        report.add(
            ("zero_optimization", "offload_param"),
            f"`zero_optimization.offload_param` needs ZeRO stage 3, the config says {stage}",
            code="offload-param-needs-zero3",
            hint="remove it, or write `stage: 3`",
            on_key=True,
        )


def _check_blocks(config: Config, report: _Report) -> None:
    """Blocks that aren't mappings, and offloads that DeepSpeed or accelerate refuse."""
    for block in ("bf16", "fp16"):
        if config.get(block) is not None and not isinstance(config[block], dict):
            message = f"`{block}` must be a mapping"
            report.add((block,), message, code="mapping", hint='write {"enabled": "auto"}')
    zero = zero_block(config)
    for key, block in _DEPRECATED_KEYS.items():
        if key in zero:
            hint = f'remove it; for an offload write "{block}": {{"device": "cpu"}}'
            place = ("zero_optimization", key)
            report.add(place, f"`{key}` is deprecated", code="deprecated", hint=hint, on_key=True)
    for block in OFFLOADS:
        offload, path = zero.get(block), ("zero_optimization", block)
        if offload is None:
            continue
        if not isinstance(offload, dict):
            message = f"`{block}` must be a mapping"
            report.add(path, message, code="mapping", hint='write {"device": "cpu"}')
        elif offload.get("device", "none") not in _DEVICES:
            message = f"`{block}.device` must be one of {', '.join(_DEVICES)}"
            report.add((*path, "device"), message, code="device-one", found=str(offload["device"]))
        elif not isinstance(offload.get("pin_memory", False), bool):
            message = f"`{block}.pin_memory` must be true or false"
            report.add((*path, "pin_memory"), message, code="value-of-wrong-kind")


def _check_offload(config: Config, train: Train, report: _Report) -> None:
    replaces = config.get("zero_force_ds_cpu_optimizer") is not False and train.optim not in OFFLOADED
    if replaces and offload_device(config, "offload_optimizer") != "none":
        report.add(
            ("zero_optimization", "offload_optimizer"),
            f"with `offload_optimizer` DeepSpeed's Adam replaces the recipe's `optim: {train.optim}`",
            code="offload-needs-deepspeed-optimizer",
            hint='write `optim: adamw_torch` under `train:`, or add "zero_force_ds_cpu_optimizer": false',
            on_key=True,
        )


def _check_clipping(config: Config, train: Train, report: _Report) -> None:
    clipping = config.get("gradient_clipping")
    if isinstance(clipping, bool) or clipping not in (None, "auto", train.max_grad_norm):
        report.add(
            ("gradient_clipping",),
            f"the recipe says `max_grad_norm: {say_number(train.max_grad_norm)}`, the DeepSpeed config says "
            f"`gradient_clipping: {clipping}`",
            code="deepspeed-contradicts-recipe",
            hint=_AGREE,
        )


def effective_deepspeed(stage: StagePlan, *, world_size: int, hidden: int | None) -> Config | None:
    """A stage's DeepSpeed config with its "auto" values filled in; None without DeepSpeed.

    `hidden` is the hidden size of the language model, which the sizes of buffers depend on; where it is None
    they stay "auto".
    """
    if stage.deepspeed is None:
        return None
    config = deepcopy(stage.deepspeed)
    for block, key, value in _auto_values(stage, world_size=world_size, hidden=hidden):
        place = as_mapping(config.get(block)) if block else config
        if place.get(key) == "auto":
            place[key] = value
    return config


def _auto_values(
    stage: StagePlan, *, world_size: int, hidden: int | None
) -> Iterator[tuple[str, str, JsonValue]]:
    """Each block, its key, and the value that transformers fills in for "auto"."""
    train = stage.train
    per_pass = train.per_device_train_batch_size * train.gradient_accumulation_steps
    yield "", "train_micro_batch_size_per_gpu", train.per_device_train_batch_size
    yield "", "gradient_accumulation_steps", train.gradient_accumulation_steps
    yield "", "train_batch_size", per_pass * world_size
    yield "", "gradient_clipping", train.training_arguments.get("max_grad_norm")
    yield "bf16", "enabled", train.precision == "bf16"
    yield "fp16", "enabled", train.precision == "fp16"
    if hidden is not None:
        yield "zero_optimization", "reduce_bucket_size", hidden * hidden
        if zero_stage(stage.deepspeed) == 3:
            yield "zero_optimization", "stage3_prefetch_bucket_size", int(0.9 * hidden * hidden)
            yield "zero_optimization", "stage3_param_persistence_threshold", 10 * hidden
