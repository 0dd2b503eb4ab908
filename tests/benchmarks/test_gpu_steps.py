"""Steps with random weights: what is tried where memory is too little, and what the weights are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import gpu_steps
from benchmarks.drawn_weights import DrawnTensors
from benchmarks.gpu_steps import Setting, measure_steps
from llava_recipes.model.assemble import Assembled
from llava_recipes.plan.types import Plan

SETTING = Setting(
    model="tiny",
    tuning="Stage 1",
    checkpointing=False,
    batches=(8, 4, 2, 1),
    num_fits=2,
    num_warmup=0,
    num_steps=1,
    budget_s=60.0,
)
NO_MEMORY = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")]


def fail_above(batch: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model's forward pass raise an error for larger batches."""
    build = vars(gpu_steps)["build_stage"]

    def built(plan: Plan) -> Assembled:
        assembled: Assembled = build(plan)
        forward = assembled.model.forward

        def bounded(**given: Any) -> Any:
            if len(given["input_ids"]) > batch:
                raise error
            return forward(**given)

        assembled.model.__dict__["forward"] = bounded
        return assembled

    monkeypatch.setattr(gpu_steps, "build_stage", built)


def figures() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    measure_steps(SETTING, rows.append)
    return [row for row in rows if row["event"] == "figures"]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_smaller_batches_are_tried_until_two_fit(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_above(4, error, monkeypatch)
    found = figures()
    assert [(row["batch"], row["status"]) for row in found] == [
        (8, "out of memory"),
        (4, "measured"),
        (2, "measured"),
    ]
    assert all(row["samples_per_s"] > 0 for row in found[1:])
    assert found[0]["planned_gib"] > found[1]["planned_gib"] > found[2]["planned_gib"]


def test_another_error_is_not_taken_for_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_above(4, RuntimeError("two devices, cuda:0 and cpu"), monkeypatch)
    with pytest.raises(RuntimeError, match="two devices"):
        figures()


def test_norms_begin_at_one_biases_at_nothing_and_matrices_small() -> None:
    shapes = {"layer_norm1.weight": (64,), "layer_norm1.bias": (64,), "mlp.weight": (64, 64)}
    drawn = DrawnTensors(
        {name: torch.Size(shape) for name, shape in shapes.items()},
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        seed=0,
    )
    assert drawn.names() == set(shapes)
    assert drawn.read("layer_norm1.weight").unique().tolist() == [1.0]
    assert drawn.read("layer_norm1.bias").unique().tolist() == [0.0]
    matrix = drawn.read("mlp.weight")
    assert matrix.dtype == torch.bfloat16
    assert float(matrix.float().std()) == pytest.approx(0.02, rel=0.05)
