"""The score counts what a caption names, and compares with an honest guess."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_recipes.demo.drawn_data import HeldOut
from llava_recipes.demo.score import (
    Tally,
    count_right,
    render_examples,
    render_scores,
    score_captions,
    scores_as_json,
)

TRUE = "a small red cross at the top left"


@pytest.mark.parametrize(
    ("said", "color", "shape"),
    [
        (TRUE, 1, 1),
        ("a large red cross at the bottom right", 1, 1),
        ("red cross", 1, 1),
        ("a small red circle at the top left", 1, 0),
        ("a small blue cross at the top left", 0, 1),
        ("a small pink square at the top left", 0, 0),
        ("a red blue cross", 0, 1),
        ("a red cross circle square triangle", 1, 0),
        ("a reddish crossing", 0, 0),
        ("", 0, 0),
    ],
)
def test_color_and_shape_are_counted_by_name(said: str, color: int, shape: int) -> None:
    assert count_right([said], [TRUE]) == Tally(1, color, shape, color * shape)


def test_both_counts_single_captions_where_both_are_right() -> None:
    said = ["a red circle", "a blue cross", "a red cross", "a red cross"]
    assert count_right(said, [TRUE] * 4) == Tally(4, num_color=3, num_shape=3, num_both=2)
    assert count_right(said, [TRUE] * 4).share_both == 0.5


def test_captions_and_images_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="zip"):
        count_right(["a red cross"], [TRUE, TRUE])


def test_scores_keep_known_and_unseen_combinations_apart() -> None:
    held_out = [HeldOut(Path(f"{index}.png"), TRUE, is_unseen=index >= 3) for index in range(5)]
    known, unseen = score_captions(
        held_out,
        {"one": [""] * 5, "two": ["red cross", "red cross", "blue cross", "red cross", "ground"]},
    )
    assert known.after == {"one": Tally(3, 0, 0, 0), "two": Tally(3, 2, 3, 2)}
    assert unseen.after == {"one": Tally(2, 0, 0, 0), "two": Tally(2, 1, 1, 1)}
    assert known.last == known.after["two"]
    assert known.chance == 1 / 28
    assert unseen.chance == 1 / 32
    assert known.times_chance == pytest.approx(28 * 2 / 3)


def test_scores_are_shown_to_people_and_kept_for_programs() -> None:
    held_out = [HeldOut(Path(f"{index}.png"), TRUE, is_unseen=index == 1) for index in range(2)]
    scores = score_captions(held_out, {"one": ["", ""], "two": [TRUE, "blue cross"]})
    head, known, unseen = render_scores(scores).splitlines()[1:]
    assert head.split()[-3:] == ["chance", "one", "two"]
    assert known.split() == ["1", "of", "known", "combinations", "3.6%", "0.0%", "100.0%"]
    assert unseen.split()[-2:] == ["0.0%", "0.0%"]
    stored = json.loads(scores_as_json(scores))
    assert [entry["after"]["two"]["num_both"] for entry in stored] == [1, 0]
    assert stored[0]["times_chance"] == pytest.approx(28)
    examples = render_examples(held_out, [TRUE, "blue cross"])
    assert "0.png" in examples and "  said   blue cross" in examples
