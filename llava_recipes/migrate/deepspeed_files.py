"""The DeepSpeed file that a command names: a preset if it contains the same, else the file or its config."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from llava_recipes.deepspeed_presets import PRESETS
from llava_recipes.migrate.draft import Draft
from llava_recipes.migrate.settings import Settings
from llava_recipes.plan.deepspeed import Config, original_file
from llava_recipes.recipe.scalars import Value

ReadText = Callable[[str], tuple[str, str] | None]
"""From a path in the script to the file found there and its text; None if there is none."""

_BY_NAME = {preset.file: name for name, preset in PRESETS.items() if preset.file is not None}
_BLOCKS = ("optimizer", "scheduler")
_OF_THE_LOG = ("steps_per_print", "wall_clock_breakdown")
_RENAMED = {"gather_16bit_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save"}
_OLD_OFFLOADS = {
    "cpu_offload": "offload_optimizer",
    "cpu_offload_param": "offload_param",
    "cpu_offload_params": "offload_param",
}
_TO_MEMORY: Config = {"device": "cpu", "pin_memory": True}
_CLIPPING = "gradient_clipping"
_MAX_GRAD_NORM = "train.max_grad_norm"


@dataclass(frozen=True)
class DeepSpeedDefaults:
    """What a DeepSpeed file means in another program."""

    deepspeed: str | None
    """Its version of DeepSpeed: up to 0.19.2 nothing is clipped without `gradient_clipping`. None if that is
    not known; then a file without the key has no known meaning."""
    files_clip: bool
    """Whether its zero2.json and zero3.json have `gradient_clipping: auto`."""


LLAVA = DeepSpeedDefaults(deepspeed="0.12.6", files_clip=False)
"""LLaVA, and Open-LLaVA-NeXT."""
LLAVA_NEXT = DeepSpeedDefaults(deepspeed="0.14.4", files_clip=True)
TINYLLAVA = DeepSpeedDefaults(deepspeed="0.14.0", files_clip=False)
FORK = DeepSpeedDefaults(deepspeed="up to 0.19.2", files_clip=False)
"""Forks of LLaVA, older than DeepSpeed 0.19.3, which clips."""
OTHER = DeepSpeedDefaults(deepspeed=None, files_clip=True)
"""axolotl and LLaMA-Factory."""


@dataclass(frozen=True)
class _Choice:
    """The value of `deepspeed`, a remark on it, and whether the file clips or may clip."""

    value: Value
    remark: str
    clips: bool
    blocks: Config = field(default_factory=dict)
    """The file's `optimizer` and `scheduler`, which the recipe's keys replace."""


def translate_deepspeed(
    settings: Settings, path: str, *, read_text: ReadText, program: DeepSpeedDefaults
) -> None:
    """Fill in `deepspeed`, and `max_grad_norm` if nothing is clipped; `train` is filled in before."""
    choice, file = _choose(path, read_text, program, settings.draft), path.rpartition("/")[2]
    settings.put("deepspeed", "deepspeed", choice.value, choice.remark, shown=path)
    _report_blocks(choice.blocks, file, settings)
    if not choice.clips and program.deepspeed is not None:
        _switch_clipping_off(settings.draft, program.deepspeed, file)


def _choose(path: str, read_text: ReadText, program: DeepSpeedDefaults, draft: Draft) -> _Choice:
    found = read_text(path)
    if found is None:
        return _by_name(path, program)
    file, text = found
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return _Choice(path, "", True)
    if not isinstance(config, dict):
        return _Choice(path, "kept as a file", True)
    clips = config.get(_CLIPPING) is not None
    blocks = {key: config[key] for key in _BLOCKS if config.get(key) is not None}
    norm = draft.read(_MAX_GRAD_NORM)
    bare = _bare(config, draft)
    same = next((preset for preset in PRESETS if bare == original_file(preset)), None)
    if same is not None and config.get(_CLIPPING) in (None, "auto", norm):
        return _Choice(same, "the preset equals the file", clips, blocks)
    current = _updated(config)
    if not _has_plain_keys(current):
        return _Choice(path, "kept as a file", clips)
    if current == config:
        if os.path.normpath(file) == os.path.normpath(path):
            return _Choice(path, "kept as a file", clips)
        return _Choice(config, "written out: the file isn't in this folder", clips)
    return _Choice(
        current, "written out, without keys that DeepSpeed or a recipe doesn't take", clips, blocks
    )


def _by_name(path: str, program: DeepSpeedDefaults) -> _Choice:
    """The preset that equals the original's file of this name."""
    file = path.rpartition("/")[2]
    if file == "zero2_offload.json":
        remark = "the file is not here; by its name it is `zero2` with the optimizer in CPU memory"
        return _Choice(_zero2_offload(), remark, program.deepspeed is None)
    named = _BY_NAME.get(file)
    if named is None:
        remark = "the file is not here"
        if program.deepspeed is not None:
            remark += f"; if it has no `{_CLIPPING}`, nothing is clipped there: write `max_grad_norm: 0`"
        return _Choice(path, remark, True)
    remark = "the file is not here; by its name it is the original's, which equals the preset"
    blocks = dict(PRESETS[named].blocks)
    if not blocks:
        return _Choice(named, remark, program.files_clip)
    names = " and ".join(f"`{block}`" for block in blocks)
    return _Choice(named, f"{remark} except for {names}", True, blocks)


def _zero2_offload() -> Config:
    """What the files of this name in LLaVA-NeXT and forks have in common; none of them clips."""
    config = original_file("zero2")
    zero = config["zero_optimization"]
    assert isinstance(zero, dict)
    return {**config, "zero_optimization": {**zero, "offload_optimizer": dict(_TO_MEMORY)}}


def _bare(config: Config, draft: Draft) -> Config:
    """A config in the presets' form: without logging keys and without what follows from the recipe."""
    bare = {key: value for key, value in _updated(config).items() if key not in (_CLIPPING, *_OF_THE_LOG)}
    for key in ("bf16", "fp16"):
        block = bare.get(key)
        if isinstance(block, dict) and block.get("enabled") == bool(draft.read(f"train.{key}")):
            bare[key] = {**block, "enabled": "auto"}
    return bare


def _updated(config: Config) -> Config:
    """A config with DeepSpeed's current names, and without blocks that replace the recipe's keys."""
    updated = {key: value for key, value in config.items() if key not in _BLOCKS}
    zero = updated.get("zero_optimization")
    if isinstance(zero, dict):
        renamed = {_RENAMED.get(key, key): value for key, value in zero.items()}
        for old, new in _OLD_OFFLOADS.items():
            if renamed.pop(old, False) is True:
                renamed.setdefault(new, {"device": "cpu"})
        # Below stage 3 it has no effect.
        if renamed.get("stage", 0) in (0, 1, 2):
            renamed.pop("offload_param", None)
        updated["zero_optimization"] = renamed
    return updated


def _has_plain_keys(value: JsonValue) -> bool:
    if isinstance(value, list):
        return all(_has_plain_keys(entry) for entry in value)
    return not isinstance(value, dict) or all(
        key.isidentifier() and _has_plain_keys(inner) for key, inner in value.items()
    )


def _report_blocks(blocks: Config, file: str, settings: Settings) -> None:
    """Report the file's optimizer and schedule, which are left out."""
    draft, mark = settings.draft, settings.mark("deepspeed")
    for key, block in blocks.items():
        kind = str(block.get("type")) if isinstance(block, dict) else ""
        if key == "optimizer" and _is_same_optimizer(block, draft):
            why = "the recipe's `optim` and learning rate equal it"
            draft.report("needless", f"{file}: {key}", kind, why, mark)
            continue
        ours = "optim" if key == "optimizer" else "lr_scheduler_type"
        why = f"it replaces `{ours}` there; the recipe trains with `{ours}: {draft.read(f'train.{ours}')}`"
        draft.report("lost", f"{file}: {key}", kind, why, mark)


def _is_same_optimizer(block: JsonValue, draft: Draft) -> bool:
    if not isinstance(block, dict) or str(block.get("type")).lower() not in ("adam", "adamw"):
        return False
    params = block.get("params") or {}
    optim = draft.read("train.optim")
    ours = {"lr": "learning_rate", "weight_decay": "weight_decay", "eps": "adam_epsilon"}
    same = {
        **{name: draft.read(f"train.{key}") for name, key in ours.items()},
        **{"torch_adam": True, "adam_w_mode": True},
    }
    return (
        isinstance(params, dict)
        and (optim is None or str(optim).startswith("adamw"))
        and all(value == "auto" or (key in same and value == same[key]) for key, value in params.items())
    )


def _switch_clipping_off(draft: Draft, version: str, file: str) -> None:
    why = f"DeepSpeed {version} doesn't clip without `{_CLIPPING}`, and {file} has none"
    given = [entry for entry in draft.entries if entry.key == _MAX_GRAD_NORM]
    mapped = next((entry for entry in given if entry.kind == "mapped"), None)
    if mapped is not None and draft.read(_MAX_GRAD_NORM) == 0:
        return
    draft.entries = [entry for entry in draft.entries if entry not in given]
    comment = f"not clipped: {file} has no {_CLIPPING}"
    if mapped is None:
        draft.default(_CLIPPING, _MAX_GRAD_NORM, 0, remark=why, comment=comment)
    else:
        draft.put(_MAX_GRAD_NORM, 0, comment)
        draft.entries.append(replace(mapped, remark=why))
