"""The original's recorded runs, trained again on this device: how far the losses differ."""

from __future__ import annotations

import contextlib
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from llava_recipes.model.placing import usual_device
from llava_recipes.plan.types import Plan
from llava_recipes.recipe.load import load_source
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.runner.run_folder import stage_plan, write_opening, write_results
from llava_recipes.train.stage import train_stage
from tests.golden_runs import (
    STAGE1_RUNS,
    STAGE2_RUNS,
    golden_stage1,
    golden_stage2,
    recorded_adapters,
    recorded_run,
    stage1_steps,
)
from tests.tiny import read_metrics, yaml_text

Emit = Callable[[dict[str, Any]], None]

FARTHEST = {"fp32": 1e-3, "fp32, usual TF32": 1e-2, "bf16": 0.2}
"""A loss that is farther off is a failure. A CPU in float32 stays below 1e-5, in bf16 below 0.02."""

_NUM_POSITIONS, _HEAD_WIDTH, _BASE = 2048, 128, 10_000.0


def replay(emit: Emit, *, stage1: Sequence[str] = STAGE1_RUNS, stage2: Sequence[str] = STAGE2_RUNS) -> None:
    """Train each run in float32 and in bf16; emit the largest difference in the loss of each.

    `fp32` has TF32 off altogether; `fp32, usual TF32` is float32 as a recipe leaves a card, on the first run
    of each stage.
    """
    emit({"event": "rotary", **rotary_errors()})
    # Stage 2 last: it treats samples as the original does, and so changes this process.
    runs: list[tuple[int, str]] = [*((1, name) for name in stage1), *((2, name) for name in stage2)]
    firsts = {(1, stage1[0]), (2, stage2[0])}
    for stage, name in runs:
        usual = ["fp32, usual TF32"] if (stage, name) in firsts and torch.cuda.is_available() else []
        precisions = ("fp32", *usual, "bf16")
        for precision in precisions:
            began_s = time.monotonic()
            found = _losses(stage, name, precision)
            recorded = _recorded(stage, name)
            assert len(found) == len(recorded), f"{len(found)} steps, {len(recorded)} were recorded"
            off = max(abs(ours - theirs) for ours, theirs in zip(found, recorded, strict=True))
            emit(
                {
                    "event": "figures",
                    "status": "measured" if off <= FARTHEST[precision] else "failed",
                    "run": f"stage {stage}, {name}",
                    "precision": precision,
                    "num_steps": len(found),
                    "largest_difference": off,
                    "last_loss": found[-1],
                    "seconds": time.monotonic() - began_s,
                    **({} if off <= FARTHEST[precision] else {"error": f"the loss is off by {off:.2g}"}),
                }
            )


def _recorded(stage: int, name: str) -> list[float]:
    if stage == 1:
        return [sum(each["loss"] for each in batches) for batches in stage1_steps(name)]
    return [step["loss"] for step in recorded_run(name)["steps"]]


def _losses(stage: int, name: str, precision: str) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="gpu-benchmark-") as folder:
        output_dir = Path(folder) / "run"
        values = golden_stage1(output_dir, name) if stage == 1 else golden_stage2(output_dir, name)
        values["stages"][0]["train"] |= {"bf16": True} if precision == "bf16" else {}
        plan = plan_recipe(load_source(yaml_text(values), "golden.yaml"), world_size=1)
        with without_tf32() if precision == "fp32" else contextlib.nullcontext():
            if stage == 1:
                _train(plan, output_dir)
            else:
                from tests.train.as_the_original import train_alike

                train_alike(plan, recorded_adapters(name))
        gc.collect()
        return [line["loss"] for line in read_metrics(output_dir)]


def _train(plan: Plan, output_dir: Path) -> None:
    """What a worker of `llava-recipe run` does."""
    own = stage_plan(plan, 0)
    write_opening(output_dir, plan=own, recipe_yaml="", environment={})
    write_results(own, train_stage(own, 0, output_dir=output_dir, resume_from=None), output_dir)


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Float32 as such while a block runs; by itself torch lets cuDNN's convolutions use TF32."""
    cudnn: Any = torch.backends.cudnn
    backends = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def rotary_errors() -> dict[str, float | None]:
    """Largest error of rotary angles, in radians, over the positions of a usual context.

    transformers multiplies frequencies and positions as matrices, so that `tf32: true` rounds them.
    """
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=4 * _HEAD_WIDTH, num_attention_heads=4, max_position_embeddings=_NUM_POSITIONS
    )
    device = usual_device()
    positions = torch.arange(_NUM_POSITIONS, device=device)
    module = LlamaRotaryEmbedding(config).to(device)
    exact = positions.double()[:, None] * module.inv_freq.double()
    found: dict[str, float | None] = {}
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for precision in ("ieee", "tf32"):
            matmul.fp32_precision = precision
            # By a report, some cards round products of several samples alone.
            cos, sin = module(torch.zeros(1, device=device), positions[None].expand(4, -1))
            half = cos.shape[-1] // 2
            angle = torch.atan2(sin[0, :, :half].double(), cos[0, :, :half].double())
            off = torch.remainder(angle - exact + torch.pi, 2 * torch.pi) - torch.pi
            found[precision] = float(off.abs().max())
    finally:
        matmul.fp32_precision = before
    return {**found, "num_positions": _NUM_POSITIONS}
