"""Near misses: what is suggested, and that the quick look at lengths and letters changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.recipe.renames import did_you_mean, distance, nearest

WORDS = st.text(alphabet="abcde_-", max_size=9)
TRAIN = ("learning_rate", "warmup_ratio", "warmup_steps", "bf16", "fp16", "tf32", "seed", "optim")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("learning_rte", "learning_rate"),
        ("learningRate", "learning_rate"),
        ("leanring-rate", "learning_rate"),
        ("warmup_step", "warmup_steps"),
        ("bf15", "bf16"),
        ("sede", "seed"),
        ("rate", None),
        ("", None),
        ("x" * 300, None),
    ],
)
def test_what_was_meant(word: str, meant: str | None) -> None:
    assert nearest(word, TRAIN) == meant
    assert did_you_mean(word, TRAIN) == (f"did you mean `{meant}`?" if meant else None)


@given(WORDS, WORDS)
def test_distance_is_a_metric_of_slips(left: str, right: str) -> None:
    slips = distance(left, right)
    assert slips == distance(right, left)
    assert (slips == 0) == (left == right)
    # The bounds by which words are left out unread.
    assert slips >= abs(len(left) - len(right))
    assert slips >= len(set(left) - set(right))
    assert slips <= max(len(left), len(right))


@given(WORDS, st.lists(WORDS))
def test_a_suggestion_is_the_nearest_of_all(word: str, known: list[str]) -> None:
    def bare(text: str) -> str:
        return text.replace("-", "").replace("_", "").lower()

    ranked = sorted((distance(bare(word), bare(other)), other) for other in known if other != word)
    near = nearest(word, known)
    if near is None:
        # With a slip for every letter of the shorter word, nothing of it is left to be meant.
        slips, other = ranked[0] if ranked else (0, "")
        assert slips > max(1, len(word) // 4) or min(len(bare(word)), len(bare(other))) <= slips
    else:
        assert near == ranked[0][1]
