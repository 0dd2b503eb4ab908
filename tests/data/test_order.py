"""The order of samples against the original's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from llava_recipes.data.order import EpochSampler, Grouping, Order, epoch_order, grouped_order
from llava_recipes.data.records import open_records
from llava_recipes.plan.types import SourcePlan
from tests.golden_runs import runs_of_several_processes
from tests.tiny import FIXTURES, GOLDEN

RECORDED = json.loads((GOLDEN / "09_order/two_processes.json").read_text())
RUNS = runs_of_several_processes()

NUM_SAMPLES, SEED = 24, 42


@pytest.mark.parametrize("run", ["base", "pad", "linear", "accum2"])
def test_order_is_the_originals(run: str) -> None:
    recorded = json.loads((GOLDEN / f"06_stage1/{run}/record.json").read_text())["order"]
    assert len(recorded) == 3 * NUM_SAMPLES
    drawn = [index for epoch in range(3) for index in epoch_order(NUM_SAMPLES, SEED, epoch, "seed")]
    assert drawn == recorded


def test_the_sampler_draws_the_epoch_that_was_set() -> None:
    sampler = EpochSampler(NUM_SAMPLES, SEED, order="seed")
    assert len(sampler) == NUM_SAMPLES
    assert list(sampler) == list(sampler) == epoch_order(NUM_SAMPLES, SEED, 0, "seed")
    sampler.set_epoch(2)
    assert list(sampler) == epoch_order(NUM_SAMPLES, SEED, 2, "seed")


def test_without_shuffle_every_epoch_is_the_file_order() -> None:
    assert [epoch_order(5, 1, epoch, "file") for epoch in (0, 7)] == [[0, 1, 2, 3, 4]] * 2


@given(
    num_samples=st.integers(1, 200),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 5),
    order=st.sampled_from(["file", "seed", "original"]),
)
def test_every_epoch_draws_every_sample_once(num_samples: int, seed: int, epoch: int, order: Order) -> None:
    assert sorted(epoch_order(num_samples, seed, epoch, order)) == list(range(num_samples))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(100, seed, epoch, "seed")) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def drawn_by_each(sampler: EpochSampler, *, batch_size: int, processes: int, epochs: int) -> list[list[int]]:
    """What each process draws, through the batches that the installed accelerate deals out."""
    drawn: list[list[int]] = [[] for _ in range(processes)]
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for process, indices in enumerate(drawn):
            batches = BatchSampler(sampler, batch_size, drop_last=False)
            for batch in BatchSamplerShard(batches, num_processes=processes, process_index=process):
                indices += batch
    return drawn


@pytest.mark.parametrize("record", RECORDED, ids=lambda record: record["kind"])
def test_order_on_two_processes_is_the_originals(record: dict[str, Any]) -> None:
    batch_size, processes = record["per_device_train_batch_size"], record["processes"]
    grouping = None
    if record["lengths"] is not None:
        shares = processes * record["gradient_accumulation_steps"]
        grouping = Grouping(record["lengths"], batch_size, shares, by_modality=True)
    sampler = EpochSampler(record["num_samples"], record["seed"], order="original", grouping=grouping)
    assert (
        drawn_by_each(sampler, batch_size=batch_size, processes=processes, epochs=record["epochs"])
        == record["order_of_process"]
    )


@pytest.mark.parametrize("name", RUNS)
def test_order_of_a_run_on_several_processes_is_the_originals(name: str) -> None:
    """Also where the last batches are filled up, with accumulation, and on three processes."""
    run = RUNS[name]
    batch_size, processes = run["per_device_train_batch_size"], run["processes"]
    file = str(FIXTURES / run["annotations"])
    source = SourcePlan(annotations=file, images=None, num_samples=None)
    lengths = open_records([source], measure=True).lengths()
    shares = processes * run["gradient_accumulation_steps"]
    grouping = Grouping(lengths, batch_size, shares, by_modality=True) if run["group_by"] != "none" else None
    sampler = EpochSampler(len(lengths), SEED, order="original", grouping=grouping)
    drawn = drawn_by_each(sampler, batch_size=batch_size, processes=processes, epochs=3)
    assert drawn == run["order_of_process"]


def test_several_processes_draw_alike_whatever_their_number_and_the_seed() -> None:
    orders = [epoch_order(50, seed, 1, "original") for seed in (1, 42)]
    assert orders[0] == orders[1] != epoch_order(50, 42, 1, "seed")
    # The same samples in a step, on two processes and on four, which accumulate half as often.
    lengths = [*range(1, 41), *range(-20, 0)]
    two, four = (
        Grouping(lengths, 2, num_shares=processes * steps, by_modality=True)
        for processes, steps in ((2, 4), (4, 2))
    )
    drawn = grouped_order(two, 42, 2, "original")
    assert drawn == grouped_order(four, 42, 2, "original") != grouped_order(two, 42, 2, "seed")


@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=60), epoch=st.integers(0, 3))
def test_grouped_samples_of_one_kind_do_not_follow_the_seed(lengths: list[int], epoch: int) -> None:
    """The original's sampler shuffles them with its own generator, which no seed reaches."""
    grouping = Grouping(lengths, 2, num_shares=2, by_modality=True)
    one, other = (grouped_order(grouping, seed, epoch, "original") for seed in (1, 2))
    assert one == other
