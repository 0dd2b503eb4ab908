"""Grouped orders against the original's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.data.order import EpochSampler, Grouping, deal_evenly, epoch_order, grouped_order
from llava_recipes.data.records import open_records
from llava_recipes.plan.types import SourcePlan
from tests.golden_runs import STAGE2_RUNS, recorded_run
from tests.tiny import FIXTURES, GOLDEN

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


def test_the_sampler_draws_the_epoch_that_was_set() -> None:
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


def test_a_malformed_record_is_measured_and_told_when_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text('[{"id": 1}, {"conversations": [3, {"value": 4}, {"value": "two words"}]}]')
    records = open_records([SourcePlan(annotations=str(file), images=None, num_samples=None)], measure=True)
    assert records.lengths() == [0, -2]


def test_lengths_of_several_sources_follow_each_other(tmp_path: Path) -> None:
    source = SourcePlan(annotations=str(FIXTURES / "stage2.json"), images=None, num_samples=None)
    assert open_records([source, source], measure=True).lengths() == 2 * stage2_lengths()
    assert open_records([source]).lengths() == []
