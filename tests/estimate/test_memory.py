"""What the plan says of memory, held against what torch keeps on models that a CPU can carry."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from benchmarks.memory import CASES, Case, Measured, measure
from tests.laws import only_long

pytestmark = pytest.mark.filterwarnings("ignore:.*TorchDispatchMode.*")

CORNERS = {
    "projector trains, bf16",
    "projector and LLM train, checkpointing, fp32",
    "all trains, SigLIP, bf16",
    "last two layers train, bf16",
    "projector trains, qwen2, bf16",
    "projector and LLM train, qwen3, bf16",
    "projector and LoRA train, bf16",
    "projector and LLM train, checkpointing, autocast",
    "projector and LoRA train, checkpointing, autocast",
}
"""Every kind of training, precision, tower and language model at least once."""

TRIED = [pytest.param(name, marks=() if name in CORNERS else (only_long,)) for name in CASES]


def test_the_corners_are_cases() -> None:
    assert CASES.keys() >= CORNERS


@cache
def measured(case: Case) -> Measured:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure(case)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", TRIED)
def test_activations_are_those_that_torch_keeps(name: str) -> None:
    found = measured(CASES[name])
    assert found.estimated_saved == pytest.approx(found.saved, rel=0.05)


@pytest.mark.parametrize("name", TRIED)
def test_the_peak_is_near_what_is_alive_at_once(name: str) -> None:
    found = measured(CASES[name])
    assert found.estimated_peak == pytest.approx(found.peak, rel=0.10)


def test_longer_and_wider_batches_keep_as_much_more() -> None:
    small, large = (
        measured(CASES["projector trains, bf16"]),
        measured(Case(num_samples=6, num_text_tokens=90)),
    )
    assert large.saved > 1.8 * small.saved
    assert large.estimated_saved == pytest.approx(large.saved, rel=0.05)
    assert large.estimated_peak == pytest.approx(large.peak, rel=0.10)
