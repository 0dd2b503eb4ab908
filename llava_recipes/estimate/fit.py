"""What to change in a recipe so that a stage fits on a GPU with the same global batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from llava_recipes.deepspeed_presets import PRESETS
from llava_recipes.estimate.cost import GIB, Gpu
from llava_recipes.estimate.estimate import Estimator, Fit, judge
from llava_recipes.plan import deepspeed
from llava_recipes.plan.batch import divisors
from llava_recipes.plan.types import StagePlan
from llava_recipes.recipe.scalars import spell
from llava_recipes.recipe.writer import block_lines

_OFFLOAD: Mapping[str, JsonValue] = {"device": "cpu", "pin_memory": True}
_ROOM = 0.03
"""Share of a GPU that a proposal leaves free, since an estimate isn't a measurement."""

_LARGEST_GROWTH = 4
"""How many times larger than the recipe's a proposed micro batch may be."""
_TOKENS_OF_DELAY = 1500
"""Tokens that a GPU could compute while a pass is launched: small passes are slow. An assumption."""


@dataclass(frozen=True)
class Choice:
    """One way to run a stage; `engine` is `as it is`, `none`, a preset, or a preset followed by `offload`."""

    micro_batch: int
    checkpoints: bool
    engine: str

    @property
    def offloads(self) -> bool:
        return self.engine.endswith("offload")


@dataclass(frozen=True)
class Proposal:
    """A choice that fits, with the lines of the recipe."""

    stage: str
    changes: tuple[str, ...]
    """Empty where the stage fits as it is."""
    lines: tuple[str, ...]
    overrides: tuple[str, ...]
    """The same as arguments of `--set`."""
    fit: Fit
    notes: tuple[str, ...]


def propose(estimator: Estimator, stage: StagePlan, *, gpu: Gpu, world_size: int) -> Proposal | None:
    """The choice that fits at `max_length` and is fastest by the cost model; None where none fits.

    Of equally fast ones the one that changes least. A stage that fits does not change.
    """
    best: tuple[tuple[float, ...], Choice, Fit, int] | None = None
    for choice in _choices(stage, world_size=world_size, splits_weights=estimator.splits_weights):
        changed = apply(choice, stage, world_size=world_size)
        usual, longest = estimator.memory(changed)
        fit = judge(gpu, changed, usual, longest)
        unchanged = not _changes(choice, stage)
        if fit.longest_margin_bytes < (0 if unchanged else _ROOM * gpu.memory_bytes):
            continue
        if unchanged:
            return Proposal(stage.name, (), (), (), fit, ())
        waiting = 1 + _TOKENS_OF_DELAY / (usual.length * choice.micro_batch)
        hours = (estimator.compute(changed).hours or 0.0) * waiting
        rank = (hours, len(_changes(choice, stage)), _distance(choice, stage))
        if best is None or rank < best[0]:
            best = (rank, choice, fit, longest.host_bytes)
    return None if best is None else _proposal(*best[1:], stage)


def apply(choice: Choice, stage: StagePlan, *, world_size: int) -> StagePlan:
    """The stage's plan under a choice."""
    accumulation = stage.train.global_batch_size // (choice.micro_batch * world_size)
    arguments = {**stage.train.training_arguments, "activation_checkpointing": choice.checkpoints}
    train = stage.train.model_copy(
        update={
            "per_device_train_batch_size": choice.micro_batch,
            "gradient_accumulation_steps": accumulation,
            "training_arguments": arguments,
        }
    )
    update: dict[str, object] = {"train": train}
    if choice.engine != "as it is":
        update |= {"deepspeed": _config(choice), "deepspeed_source": choice.engine}
    return stage.model_copy(update=update)


def _config(choice: Choice) -> dict[str, JsonValue] | None:
    if choice.engine == "none":
        return None
    config = {**deepspeed.original_file(choice.engine.split()[0]), "gradient_clipping": "auto"}
    zero = config["zero_optimization"]
    assert isinstance(zero, dict), "a preset has a ZeRO block"
    if choice.offloads:
        zero["offload_optimizer"] = dict(_OFFLOAD)
        if zero["stage"] == 3:
            zero["offload_param"] = dict(_OFFLOAD)
    return config


def _stage_of(engine: str) -> int:
    """The ZeRO stage of an engine's preset."""
    return deepspeed.zero_stage(None if engine == "none" else deepspeed.original_file(engine.split()[0]))


def _choices(stage: StagePlan, *, world_size: int, splits_weights: bool) -> Iterator[Choice]:
    """The stage as it is, then all other choices; only engines that differ in memory."""
    train = stage.train
    now = train.per_device_train_batch_size
    checkpoints = train.gradient_checkpointing
    share = train.global_batch_size // world_size
    sizes = [size for size in divisors(share) if size <= _LARGEST_GROWTH * now]
    engines, plain = ["as it is"], [name for name, preset in PRESETS.items() if not preset.offloads]
    if train.precision != "fp32" or stage.deepspeed is not None:
        engines += [name for name in plain if _stage_of(name) != deepspeed.zero_stage(stage.deepspeed)]
        engines += [f"{name} offload" for name in plain]
    if not splits_weights:
        engines = [name for name in engines if name == "as it is" or _stage_of(name) != 3]
    yield Choice(now, checkpoints, "as it is")
    for engine in engines:
        for recompute in (False, True):
            for size in sizes:
                if (size, recompute, engine) != (now, checkpoints, "as it is"):
                    yield Choice(size, recompute, engine)


def _distance(choice: Choice, stage: StagePlan) -> float:
    """How far the micro batch is from the recipe's, a larger one further."""
    ratio = math.log2(choice.micro_batch / stage.train.per_device_train_batch_size)
    return abs(ratio) + (0.5 if ratio > 0 else 0)


def _changes(choice: Choice, stage: StagePlan) -> list[str]:
    """What a choice changes, in words."""
    train, changes = stage.train, []
    if choice.micro_batch != train.per_device_train_batch_size:
        samples = "1 sample" if choice.micro_batch == 1 else f"{choice.micro_batch} samples"
        changes.append(f"{samples} per device")
    if choice.checkpoints != train.gradient_checkpointing:
        changes.append("gradient checkpointing" if choice.checkpoints else "no gradient checkpointing")
    if choice.engine != "as it is":
        words = f"ZeRO stage {_stage_of(choice.engine)}" if choice.engine != "none" else "no DeepSpeed"
        changes.append(words + (", optimizer and weights in main memory" if choice.offloads else ""))
    return changes


def _proposal(choice: Choice, fit: Fit, host_bytes: int, stage: StagePlan) -> Proposal:
    train, changes = stage.train, _changes(choice, stage)
    lines, overrides, notes = ["stages:", f"  - name: {stage.name}"], list[str](), list[str]()
    values: dict[str, str] = {}
    if choice.micro_batch != train.per_device_train_batch_size:
        values["per_device_train_batch_size"] = str(choice.micro_batch)
        values["global_batch_size"] = str(train.global_batch_size)
        notes.append("`global_batch_size` replaces `gradient_accumulation_steps`")
        if train.loss_normalization == "device_batch":
            notes.append(
                "`loss_normalization: device_batch` takes the mean over each device batch, so another size "
                "changes the weight of short answers; `token` does not depend on it"
            )
    if choice.checkpoints != train.gradient_checkpointing:
        values["gradient_checkpointing"] = str(choice.checkpoints).lower()
    if values:
        lines += ["    train:", *(f"      {key}: {value}" for key, value in values.items())]
        overrides = [f"stages.{stage.name}.train.{key}={value}" for key, value in values.items()]
    if choice.engine != "as it is":
        engine = _config(choice) if choice.offloads else choice.engine
        lines += block_lines({"deepspeed": engine}, "    ")
        overrides.append(f"stages.{stage.name}.deepspeed={spell(engine)}")
    if host_bytes:
        notes.append(f"each process needs {host_bytes / GIB:,.0f} GiB of main memory")
    return Proposal(stage.name, tuple(changes), tuple(lines), tuple(overrides), fit, tuple(notes))
