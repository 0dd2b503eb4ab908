"""Device batches dealt to other numbers of processes, against what accelerate deals to the original ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from llava_recipes.data.dealing import Dealing, PassSampler, deal
from llava_recipes.data.order import BatchLayout, EpochSampler, Grouping

sizes = st.integers(1, 6)
counts = st.integers(1, 70)


def dealt_by_accelerate(order: list[int], layout: BatchLayout, *, drops_last: bool) -> list[list[list[int]]]:
    """The device batches of each step, pass by pass and process by process, from the Trainer's loaders."""
    batches = BatchSampler(order, layout.per_device_train_batch_size, drop_last=drops_last)
    shards = [
        batches if layout.world_size == 1 else BatchSamplerShard(batches, layout.world_size, process)
        for process in range(layout.world_size)
    ]
    passes = list(zip(*shards, strict=True))
    size = layout.gradient_accumulation_steps
    return [
        [batch for each in passes[start : start + size] for batch in each]
        for start in range(0, len(passes), size)
    ]


def steps_of(order: list[int], dealing: Dealing) -> Iterator[list[list[tuple[int, int]]]]:
    """The counted passes of each step: samples, each with the number of its device batch."""
    samplers = [deal(order, dealing, rank=rank) for rank in range(dealing.world_size)]
    for step in range(dealing.num_steps):
        by_process = [dealing.passes(step, rank) for rank in range(dealing.world_size)]
        assert len({len(passes) for passes in by_process}) == 1
        counted = []
        for passes in zip(*by_process, strict=True):
            for rows, sampler in zip(passes, samplers, strict=True):
                indices = next(sampler)
                assert len(indices) == max(1, len(rows)) <= dealing.per_device
                if rows:
                    counted.append(list(zip(indices, map(dealing.device_batch, rows), strict=True)))
        yield counted
    assert all(next(sampler, None) is None for sampler in samplers)


def batches_of(passes: list[list[tuple[int, int]]]) -> list[list[int]]:
    """The device batches that the passes of a step are parts of."""
    rows = sorted(itertools.chain(*passes), key=lambda row: row[1])
    return [[index for index, _ in batch] for _, batch in itertools.groupby(rows, key=lambda row: row[1])]


@given(n=counts, b=sizes, w0=sizes, a0=sizes, w=sizes, drops_last=st.booleans())
def test_steps_compute_the_same_device_batches_on_any_processes(
    n: int, b: int, w0: int, a0: int, w: int, drops_last: bool
) -> None:
    assume(w0 * a0 % w == 0)
    layout, order = BatchLayout(w0, b, a0), list(range(100, 100 + n))
    dealing = Dealing(layout, n, drops_last, w, b)
    wanted = dealt_by_accelerate(order, layout, drops_last=drops_last)
    found = [[[index for index, _ in each] for each in passes] for passes in steps_of(order, dealing)]
    assert found == wanted
    assert dealing.is_kept
    assert [dealing.num_device_batches(step) for step in range(len(wanted))] == list(map(len, wanted))
    # A whole step has no pass that counts nothing.
    for step in range(dealing.num_steps - 1):
        assert all(map(len, dealing.passes(step, w - 1)))


@given(n=counts, b0=sizes, w0=sizes, a0=sizes, w=sizes, b=sizes, drops_last=st.booleans())
def test_passes_of_another_size_are_parts_of_the_same_device_batches(
    n: int, b0: int, w0: int, a0: int, w: int, b: int, drops_last: bool
) -> None:
    layout, order = BatchLayout(w0, b0, a0), list(range(n))
    dealing = Dealing(layout, n, drops_last, w, b)
    wanted = dealt_by_accelerate(order, layout, drops_last=drops_last)
    assert [batches_of(passes) for passes in steps_of(order, dealing)] == wanted
    samplers = [PassSampler(EpochSampler(n, 1, order="file"), dealing, rank=rank) for rank in range(w)]
    assert all(len(list(sampler)) == len(sampler) == dealing.num_passes for sampler in samplers)


@given(n=counts, b=sizes, w0=sizes, a0=sizes, drops_last=st.booleans())
def test_on_its_own_processes_each_draws_what_accelerate_gives_it(
    n: int, b: int, w0: int, a0: int, drops_last: bool
) -> None:
    sampler = EpochSampler(n, 3, order="seed")
    dealing = Dealing(BatchLayout(w0, b, a0), n, drops_last, w0, b)
    for rank, epoch in itertools.product(range(w0), range(2)):
        sampler.set_epoch(epoch)
        batches = BatchSampler(sampler, b, drop_last=drops_last)
        wanted = list(batches if w0 == 1 else BatchSamplerShard(batches, w0, rank))
        assert list(PassSampler(sampler, dealing, rank=rank)) == wanted
        # The Trainer counts epochs in passes.
        assert dealing.num_passes == len(wanted)
        assert dealing.num_steps == math.ceil(len(wanted) / a0)
    for step in range(dealing.num_steps):
        assert dealing.epoch_after(step) == 0 + a0 * step / max(1, dealing.num_passes)
        assert dealing.epoch_after(step + 3 * dealing.num_steps) == 3 + a0 * step / dealing.num_passes


@pytest.mark.parametrize("w", [1, 2, 4])
def test_a_grouped_order_is_that_of_the_layout(w: int) -> None:
    """Samples of like length lie in one device batch, whatever processes there are now."""
    layout = BatchLayout(2, 2, 2)
    grouping = Grouping([*range(1, 13), *range(-10, 0)], 2, layout.batches_per_step, by_modality=True)
    sampler = EpochSampler(22, 42, order="original", grouping=grouping)
    dealing = Dealing(layout, 22, False, w, 2)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order = list(sampler)
        found = [batches_of(passes) for passes in steps_of(order, dealing)]
        assert found == dealt_by_accelerate(order, layout, drops_last=False)


@pytest.mark.parametrize(
    "values",
    [
        None,
        [1, 1, 1],
        {"world_size": 1, "per_device_train_batch_size": 1},
        {"world_size": 0, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1},
        {"world_size": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1},
        {"world_size": 1, "per_device_train_batch_size": 1.0, "gradient_accumulation_steps": 1},
        {"world_size": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "x": 1},
    ],
)
def test_a_damaged_layout_is_not_read(values: object) -> None:
    with pytest.raises(ValueError):
        BatchLayout.from_json(values)


def test_a_layout_is_read_as_it_was_written() -> None:
    layout = BatchLayout(4, 2, 3)
    assert BatchLayout.from_json(layout.to_json()) == layout
    assert (layout.batches_per_step, layout.samples_per_step) == (12, 24)
