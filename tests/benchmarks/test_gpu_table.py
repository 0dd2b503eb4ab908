"""The table of the GPU benchmark, from rows as a card would give them."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu_table import markdown

MACHINE = {
    "part": "machine",
    "event": "machine",
    "device": "NVIDIA H100 80GB HBM3",
    "num_devices": 1,
    "memory_gib": 79.11,
    "cuda": "13.0",
    "python": "3.12.3",
    "versions": {"torch": "2.11.0", "deepspeed": None},
}
SPEED = {
    "part": "a",
    "event": "figures",
    "size": 8192,
    "num_products": 20,
    "tflops": 800.0,
    "slowest_tflops": 790.0,
    "fastest_tflops": 810.0,
}
STEPS: dict[str, Any] = {
    "part": "c",
    "event": "figures",
    "status": "measured",
    "model": "13B",
    "tuning": "Stage 1",
    "checkpointing": True,
    "batch": 16,
    "tokens": 605,
    "planned_gib": 32.3,
    "planned_without_context_gib": 31.7,
    "plan_says_fits": True,
    "flops_per_sample": 50e12,
    "model_flops_per_sample": 30e12,
    "step_s": 2.0,
    "samples_per_s": 8.0,
    "allocated_gib": 30.5,
    "reserved_gib": 31.25,
}
NO_MEMORY = {
    **{key: value for key, value in STEPS.items() if key not in ("step_s", "samples_per_s")},
    "status": "out of memory",
    "checkpointing": False,
    "plan_says_fits": False,
}


def golden(precision: str, off: float) -> dict[str, Any]:
    row = {"part": "b", "event": "figures", "run": "stage 1, base", "num_steps": 18}
    return {**row, "precision": precision, "largest_difference": off}


def row_of(table: str, start: str) -> str:
    (row,) = [line for line in table.splitlines() if line.startswith(start)]
    return row


def test_the_card_and_the_versions_come_first() -> None:
    assert markdown([MACHINE]) == (
        "NVIDIA H100 80GB HBM3, 79.11 GiB, CUDA 13.0; Python 3.12.3, torch 2.11.0.\n"
    )


def test_rates_are_shares_of_the_matrix_product() -> None:
    row = row_of(markdown([SPEED, STEPS]), "| 13B")
    assert row == (
        "| 13B | Stage 1 | on | 16 | 605 | 2.000 | 8.00 | 400 | 50 % | 30 % | 30.50 | 31.25 | 31.70 | 32.30 "
        "| fits |"
    )


def test_without_the_matrix_product_there_are_no_shares() -> None:
    assert "| 400 | – | – |" in row_of(markdown([STEPS]), "| 13B")


def test_what_does_not_fit_stands_beside_what_the_plan_says() -> None:
    row = row_of(markdown([SPEED, NO_MEMORY]), "| 13B")
    assert row == (
        "| 13B | Stage 1 | off | 16 | 605 | out of memory | – | – | – | – | – | – | 31.70 | 32.30 "
        "| does not fit |"
    )


def test_what_the_card_holds_besides_is_said_once() -> None:
    rows = [{**STEPS, "outside_torch_gib": 0.5}, {**STEPS, "outside_torch_gib": 0.75}]
    assert markdown(rows).count("all else on the card: 0.50 to 0.75 GiB.") == 1
    assert "on the card" not in markdown([STEPS])


def test_every_row_has_as_many_cells_as_its_head() -> None:
    rows = [MACHINE, SPEED, STEPS, NO_MEMORY, golden("fp32", 1e-6), golden("bf16", 0.01)]
    counts: list[set[int]] = [set()]
    for line in markdown(rows).splitlines():
        if line.startswith("|"):
            counts[-1].add(line.count("|"))
        elif counts[-1]:
            counts.append(set())
    assert [len(each) for each in counts if each] == [1, 1]


def test_a_run_s_precisions_stand_side_by_side() -> None:
    table = markdown([golden("fp32", 1.2e-6), golden("bf16", 0.0123)])
    assert row_of(table, "| stage 1") == "| stage 1, base | 18 | 1.2e-06 | – | 0.012 |"


def test_what_was_not_measured_is_said_with_its_reason() -> None:
    labels = {"part": "d", "model": "7B", "tuning": "QLoRA", "checkpointing": True, "event": "ended"}
    why = {"status": "skipped", "why": "bitsandbytes not installed"}
    assert markdown([{**labels, **why}]) == (
        "Not measured:\n\n- (d) 7B QLoRA checkpointing on: skipped, bitsandbytes not installed\n"
    )
    assert markdown([{**labels, "status": "done"}]) == "\n"
