"""Orders of samples, plain and grouped, against the original's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from llava_recipes.data.order import EpochSampler, Grouping, Order, deal_evenly, epoch_order, grouped_order
from llava_recipes.data.records import open_records
from llava_recipes.plan.types import SourcePlan
from tests.golden_runs import STAGE2_RUNS, recorded_run, runs_of_several_processes
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


CASES: list[dict[str, Any]] = json.loads((GOLDEN / "08_sampler/sampler.json").read_text())["samples"]
SPLITS: list[dict[str, Any]] = json.loads((GOLDEN / "08_sampler/split_to_even_chunks.json").read_text())[
    "samples"
]
# The original's own lengths of the Stage-2 fixture, written into the header of its tokenization.
MEASURED = json.loads((GOLDEN / "01_tokenization/stage2__v1__se0__tiny_vicuna__slow__512.json").read_text())[
    "header"
]


def stage2_lengths() -> list[int]:
    source = SourcePlan(annotations=str(FIXTURES / "stage2.json"), images=None, num_samples=None)
    return open_records([source], measure=True).lengths()


def test_every_recorded_order_is_drawn_again() -> None:
    num_compared = 0
    for case in CASES:
        generator = torch.Generator().manual_seed(case["seed"])
        grouping = Grouping(
            case["lengths"], case["batch_size"], case["world_size"], case["group_by_modality"]
        )
        order = grouping.order(within=generator, between=generator)
        if "exception" in case:
            # The original refuses a sample without words; here it counts as text.
            assert 0 in case["lengths"] and sorted(order) == list(range(case["n"]))
            continue
        assert order == case["indices"], case
        if "next_random" in case:
            drawn_next = torch.empty((), dtype=torch.int64).random_(generator=generator)
            assert int(drawn_next) == case["next_random"]
        num_compared += 1
    assert (len(CASES), num_compared) == (746, 743)


@pytest.mark.parametrize("case", SPLITS, ids=lambda case: f"{len(case['lengths'])}-{case['num_chunks']}")
def test_shares_are_the_originals(case: dict[str, Any]) -> None:
    lengths = case["lengths"]
    assert deal_evenly(range(len(lengths)), lengths, num_shares=case["num_chunks"]) == case["chunks"]


def test_lengths_are_the_originals() -> None:
    lengths = stage2_lengths()
    assert lengths == MEASURED["modality_lengths"]
    assert [length + 128 if length > 0 else -length for length in lengths] == MEASURED["lengths"]


@pytest.mark.parametrize("name", STAGE2_RUNS)
def test_order_of_a_run_is_the_originals(name: str) -> None:
    lengths, recorded = stage2_lengths(), recorded_run(name)["order"]
    assert len(recorded) == 3 * len(lengths)
    grouping = Grouping(lengths, batch_size=4, num_shares=1, by_modality=True)
    drawn = [
        index
        for epoch in range(3)
        for index in (
            epoch_order(len(lengths), 42, epoch, "seed")
            if name == "ungrouped"
            else grouped_order(grouping, 42, epoch, "seed")
        )
    ]
    assert drawn == recorded


def test_the_sampler_groups_the_epoch_that_was_set() -> None:
    grouping = Grouping(stage2_lengths(), batch_size=4, num_shares=2, by_modality=True)
    sampler = EpochSampler(24, 42, order="seed", grouping=grouping)
    sampler.set_epoch(2)
    assert list(sampler) == list(sampler) == grouped_order(grouping, 42, 2, "seed")
    assert list(sampler) != grouped_order(grouping, 42, 1, "seed")


@given(
    lengths=st.lists(st.integers(-40, 40), min_size=1, max_size=120),
    batch_size=st.integers(1, 6),
    num_shares=st.integers(1, 5),
    by_modality=st.booleans(),
)
def test_every_sample_comes_once(
    lengths: list[int], batch_size: int, num_shares: int, by_modality: bool
) -> None:
    grouping = Grouping(lengths, batch_size, num_shares, by_modality)
    assert sorted(grouped_order(grouping, 7, 1, "seed")) == list(range(len(lengths)))


def test_a_malformed_record_is_measured_and_reported_when_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text('[{"id": 1}, {"conversations": [3, {"value": 4}, {"value": "two words"}]}]')
    records = open_records([SourcePlan(annotations=str(file), images=None, num_samples=None)], measure=True)
    assert records.lengths() == [0, -2]


def test_lengths_of_several_sources_follow_each_other(tmp_path: Path) -> None:
    source = SourcePlan(annotations=str(FIXTURES / "stage2.json"), images=None, num_samples=None)
    assert open_records([source, source], measure=True).lengths() == 2 * stage2_lengths()
    assert open_records([source]).lengths() == []
