"""Which records of a file are samples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.data.records import by_chance, open_records, positions
from llava_recipes.errors import RecipeError, SampleError
from llava_recipes.plan.data import count_used, mix_sources
from llava_recipes.plan.types import SourcePlan
from llava_recipes.recipe.schema import Source
from tests.laws import examples
from tests.tiny import FIXTURES

IMAGES = str(FIXTURES / "images")
RECORDED = [0, 2, 4, 5, 9, 18]


def drawn(num_records: int, **settings: Any) -> list[int]:
    source = SourcePlan(annotations="a.json", images=None, num_samples=None, **settings)
    return list(positions(source, num_records))


def test_first_and_end_are_those_of_the_file() -> None:
    assert drawn(10) == list(range(10))
    assert drawn(10, sampling_strategy="first:3") == [0, 1, 2]
    assert drawn(10, sampling_strategy="end:3") == [7, 8, 9]
    assert drawn(10, sampling_strategy="first:25%") == [0, 1, 2]
    assert drawn(10, sampling_strategy="end:100%") == list(range(10))


def test_a_draw_stays_what_it_was() -> None:
    """Recorded once: a draw that changes with a version would train and hold out other records."""
    assert list(by_chance(range(20), 6, "42/0/random")) == RECORDED
    assert drawn(20, sampling_strategy="random:6", draw_seed="42/0") == RECORDED
    assert drawn(20, sampling_strategy="random:6", draw_seed="42/1") != RECORDED
    assert drawn(20, sampling_strategy="random:6", draw_seed="43/0") != RECORDED


def test_a_larger_share_holds_a_smaller_one() -> None:
    some = drawn(500, sampling_strategy="random:10%", draw_seed="1/0")
    more = drawn(500, sampling_strategy="random:30%", draw_seed="1/0")
    assert len(some) == 50
    assert set(some) < set(more)
    assert some == sorted(some)


def test_chance_favours_nobody() -> None:
    """Each of 50 records is taken in about a fifth of 400 draws: 80 or so."""
    taken = Counter(place for seed in range(400) for place in by_chance(range(50), 10, f"{seed}/0"))
    assert all(40 < taken[place] < 120 for place in range(50))


@examples(100)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    strategy=st.sampled_from(["all", "first:1", "end:40%", "random:50%", "random:1"]),
    weight=st.sampled_from([0.3, 1.0, 2.0, 2.7]),
    split=st.sampled_from([None, 0.2, 3.0]),
    seed=st.integers(0, 9),
)
def test_what_is_drawn_is_what_the_plan_counts(
    counts: list[int], strategy: str, weight: float, split: float | None, seed: int
) -> None:
    source = Source(annotations="a.json", sampling_strategy=strategy, weight=weight)
    mix = mix_sources([source] * len(counts), counts, seed=str(seed), split=split)
    for number, (training, count) in enumerate(zip(mix.training, counts, strict=True)):
        used = Counter(positions(training, count))
        assert used.total() == training.num_used
        held_out = [] if mix.held_out is None else list(positions(mix.held_out[number], count))
        assert len(held_out) == training.num_held_out
        assert not set(held_out) & set(used)
        # Every record comes as often as the weight says, give or take the part that is drawn.
        assert not used or max(used.values()) - int(weight) in (0, 1)
        chosen = SourcePlan(
            annotations="a.json",
            images=None,
            num_samples=None,
            sampling_strategy=strategy,
            draw_seed=training.draw_seed,
        )
        everything = set(positions(chosen, count))
        assert set(used) | set(held_out) <= everything
        if weight >= 1:
            assert set(used) | set(held_out) == everything
        assert used.total() == count_used(weight, len(everything) - len(held_out))


def test_records_are_counted_through_the_mix_and_named_in_their_file(tmp_path: Path) -> None:
    text = (FIXTURES / "stage1.json").read_text()
    (tmp_path / "bad.json").write_text(text.replace('"from": "gpt"', '"from": "bot"'))
    sources = [
        SourcePlan(
            annotations=str(FIXTURES / "stage1.json"),
            images=IMAGES,
            num_samples=24,
            sampling_strategy="end:2",
            weight=1.5,
        ),
        SourcePlan(
            annotations=str(tmp_path / "bad.json"),
            images=IMAGES,
            num_samples=None,
            sampling_strategy="end:1",
        ),
    ]
    records = open_records(sources)
    assert len(records) == 4
    ids = [record.id for record in records[:3]]
    assert ids[:2] == ["s1_022", "s1_023"] and ids[2] in ids[:2]
    assert [record.index for record in records[:3]] == [0, 1, 2]
    with pytest.raises(SampleError) as caught:
        records[3]
    (problem,) = caught.value.problems
    assert 'sample 3 (id "s1_023")' in problem.message
    assert problem.mark is not None and problem.mark.file == str(tmp_path / "bad.json")
    lines = (tmp_path / "bad.json").read_text().splitlines()
    assert any("s1_023" in line for line in lines[problem.mark.line - 1 : problem.mark.line + 2])


def test_more_than_the_file_holds() -> None:
    source = SourcePlan(
        annotations=str(FIXTURES / "stage1.json"), images=IMAGES, num_samples=None, sampling_strategy="end:25"
    )
    with pytest.raises(RecipeError, match="asks for more records than the file holds") as caught:
        open_records([source])
    assert caught.value.problems[0].path == ("sampling_strategy",)
    assert caught.value.problems[0].found == "end:25, and the file holds 24"
