"""The order of samples against the original's."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.data.order import EpochSampler, epoch_order
from tests.tiny import GOLDEN

NUM_SAMPLES, SEED = 24, 42


@pytest.mark.parametrize("run", ["base", "pad", "linear", "accum2"])
def test_order_is_the_originals(run: str) -> None:
    recorded = json.loads((GOLDEN / f"06_stage1/{run}/record.json").read_text())["order"]
    assert len(recorded) == 3 * NUM_SAMPLES
    drawn = [index for epoch in range(3) for index in epoch_order(NUM_SAMPLES, SEED, epoch, True)]
    assert drawn == recorded


def test_the_sampler_draws_the_epoch_that_was_set() -> None:
    sampler = EpochSampler(NUM_SAMPLES, SEED, shuffle=True)
    assert len(sampler) == NUM_SAMPLES
    assert list(sampler) == list(sampler) == epoch_order(NUM_SAMPLES, SEED, 0, True)
    sampler.set_epoch(2)
    assert list(sampler) == epoch_order(NUM_SAMPLES, SEED, 2, True)


def test_without_shuffle_every_epoch_is_the_file_order() -> None:
    assert [epoch_order(5, 1, epoch, False) for epoch in (0, 7)] == [[0, 1, 2, 3, 4]] * 2


@given(num_samples=st.integers(1, 200), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 5))
def test_every_epoch_draws_every_sample_once(num_samples: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_order(num_samples, seed, epoch, True)) == list(range(num_samples))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(100, seed, epoch, True)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
