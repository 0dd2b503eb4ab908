"""Training steps of LLaVA-1.5 at true shapes with random weights: speed, and memory next to the estimate.

A step is what the Trainer takes: batch to the device, forward pass under autocast, backward pass, clipping,
optimizer. One batch is prepared beforehand and used in every step: reading images is left out.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.drawn_weights import weights_drawn_on
from benchmarks.gpu_shapes import draw_sample_data, recipe_values
from benchmarks.stage_model import build_stage, trained_parameters
from llava_recipes.estimate.cost import GIB
from llava_recipes.estimate.estimate import Assumptions, Estimator
from llava_recipes.model.assemble import Assembled, collator_of, open_samples
from llava_recipes.model.placing import TORCH_DTYPES, usual_device
from llava_recipes.plan.compile import Compiled
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import load_source
from llava_recipes.runner.facts import compile_loaded

Row = dict[str, Any]
Emit = Callable[[Row], None]

_NO_MEMORY = ("out of memory", "ALLOC_FAILED")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one process measures: batches from the largest on, until `num_fits` of them fitted."""

    model: str
    tuning: str
    checkpointing: bool
    batches: tuple[int, ...]
    num_fits: int
    num_warmup: int
    num_steps: int
    budget_s: float
    """No batch is begun when this has passed since the start; none takes more steps after a half of it."""


def measure_steps(setting: Setting, emit: Emit) -> None:
    """Emit a row for each batch size that was tried."""
    began_s = time.monotonic()
    device = usual_device()
    with tempfile.TemporaryDirectory(prefix="gpu-benchmark-") as name:
        folder = Path(name)
        draw_sample_data(folder, setting.model, setting.tuning, num_samples=setting.batches[0])
        plan = _compile(folder, setting, batch=setting.batches[0]).plan
        with weights_drawn_on(device, TORCH_DTYPES[plan.stages[0].train.precision]):
            assembled = build_stage(plan)
        assembled.model.to(device)
        emit({"event": "built", "seconds": time.monotonic() - began_s})
        num_fits = 0
        for batch in setting.batches:
            if num_fits == setting.num_fits or time.monotonic() - began_s > setting.budget_s:
                break
            compiled = _compile(folder, setting, batch=batch)
            row = _measure_batch(compiled, assembled, device, setting)
            num_fits += row["status"] == "measured"
            emit({"event": "figures", **row})


def _measure_batch(compiled: Compiled, assembled: Assembled, device: torch.device, setting: Setting) -> Row:
    plan, stage = compiled.plan, compiled.plan.stages[0]
    prepared = _prepared_batch(plan, assembled)
    on_card = device.type == "cuda"
    row: Row = {"batch": stage.train.per_device_train_batch_size, **planned(compiled, prepared, device)}
    gc.collect()
    if on_card:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        row["weights_gib"] = torch.cuda.memory_allocated() / GIB
        prepared = {name: tensor.pin_memory() for name, tensor in prepared.items()}
    seconds = _take_steps(plan, assembled.model, prepared, device, setting)
    if on_card:
        free, total = torch.cuda.mem_get_info()
        row["allocated_gib"] = torch.cuda.max_memory_allocated() / GIB
        row["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
        row["outside_torch_gib"] = (total - free - torch.cuda.memory_reserved()) / GIB
    assembled.model.zero_grad(set_to_none=True)
    if seconds is None:
        return {"status": "out of memory", **row}
    step_s = statistics.median(seconds)
    return {
        "status": "measured",
        **row,
        "step_s": step_s,
        "fastest_step_s": min(seconds),
        "slowest_step_s": max(seconds),
        "num_steps": len(seconds),
        "samples_per_s": row["batch"] / step_s,
    }


def _take_steps(
    plan: Plan, model: nn.Module, batch: dict[str, Tensor], device: torch.device, setting: Setting
) -> list[float] | None:
    """Seconds of each step after the warm-up; None where memory was too little."""
    stage = plan.stages[0]
    dtype = TORCH_DTYPES[stage.train.precision]
    trained = trained_parameters(model)
    # The recipe's `adamw_torch`, as the Trainer makes it.
    optimizer = torch.optim.AdamW(trained, lr=stage.train.learning_rate, weight_decay=0.0)
    assert stage.train.training_arguments["optim"] == "adamw_torch"

    def step() -> float:
        _wait_for(device)
        begin_s = time.perf_counter()
        there = {name: tensor.to(device) for name, tensor in batch.items()}
        with torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext():
            loss: Tensor = model(**there).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        _wait_for(device)
        taken_s = time.perf_counter() - begin_s
        if not torch.isfinite(loss.detach()):
            raise FloatingPointError(f"the loss is {float(loss)}")
        return taken_s

    seconds: list[float] = []
    began_s = time.monotonic()
    try:
        for number in range(setting.num_warmup + setting.num_steps):
            taken_s = step()
            if number >= setting.num_warmup:
                seconds.append(taken_s)
            if seconds and time.monotonic() - began_s > setting.budget_s / 2:
                break
    except RuntimeError as error:
        # cuBLAS and bitsandbytes raise a plain RuntimeError where torch has a class of its own.
        if not isinstance(error, torch.OutOfMemoryError) and not any(w in str(error) for w in _NO_MEMORY):
            raise
        return None
    return seconds


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _prepared_batch(plan: Plan, assembled: Assembled) -> dict[str, Tensor]:
    """The first samples of the stage's data, through the dataset and the collator of training."""
    stage = plan.stages[0]
    dataset = open_samples(assembled, stage.data, start_end=False)
    collate = collator_of(assembled, dataset)
    return collate([dataset[index] for index in range(stage.train.per_device_train_batch_size)])


def planned(compiled: Compiled, batch: dict[str, Tensor], device: torch.device) -> Row:
    """The plan's estimate for this batch: memory, operations, and whether it fits on this card."""
    plan, stage = compiled.plan, compiled.plan.stages[0]
    num_samples, length = batch["input_ids"].shape
    num_image_tokens = int(batch["is_image"].sum()) // num_samples
    num_labels = int((batch["labels"] != -100).sum()) // num_samples
    given = Assumptions(None, text_tokens=length - num_image_tokens, label_tokens=num_labels)
    estimator = Estimator(compiled, given)
    tokens, (memory, _) = estimator.tokens(stage), estimator.memory(stage)
    assert (tokens.usual_length, tokens.labels, tokens.image) == (length, num_labels, num_image_tokens)
    context = sum(part.num_bytes for part in memory.parts if part.name == "CUDA context")
    capacity = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return {
        "tokens": length,
        "labels": num_labels,
        "planned_gib": memory.total_bytes / GIB,
        "planned_without_context_gib": (memory.total_bytes - context) / GIB,
        "planned_moment": memory.moment,
        "plan_says_fits": None if capacity is None else memory.total_bytes <= capacity,
        "flops_per_sample": _flops_of_a_sample(estimator, plan),
        "model_flops_per_sample": _flops_of_a_sample(estimator, plan, recomputed=False),
    }


def _flops_of_a_sample(estimator: Estimator, plan: Plan, *, recomputed: bool = True) -> float:
    """By `estimate/cost.py`; without what gradient checkpointing computes again if `recomputed` is false."""
    stage = plan.stages[0]
    if not recomputed:
        arguments = {**stage.train.training_arguments, "activation_checkpointing": False}
        train = stage.train.model_copy(update={"training_arguments": arguments})
        stage = stage.model_copy(update={"train": train})
    flops, num_samples = estimator.compute(stage).flops, estimator.tokens(stage).samples
    assert flops is not None and num_samples
    return flops / num_samples


def _compile(folder: Path, setting: Setting, *, batch: int) -> Compiled:
    values = recipe_values(
        folder, setting.model, setting.tuning, batch=batch, checkpointing=setting.checkpointing
    )
    return compile_loaded(load_source(json.dumps(values), "benchmark.yaml"), world_size=1)
