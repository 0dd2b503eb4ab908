from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.freeze import decide, match_glob, split_glob, summarize_modules

SEGMENTS = st.sampled_from(["a", "b", "layers", "0", "1", "29", "30", "39", "40", "weight", "x_y"])
NAMES = st.lists(SEGMENTS, min_size=1, max_size=4).map(".".join)
GLOB_SEGMENTS = SEGMENTS | st.sampled_from(["*", "**", "{30..39}", "l*s", "{1..2}", "x{0..1}"])
GLOBS = st.lists(GLOB_SEGMENTS, min_size=1, max_size=4).map(".".join)
FREEZES = st.sampled_from(["all", "none"]) | st.lists(GLOBS, max_size=3).map(tuple)

MODEL = (
    "vision_tower.embeddings.weight",
    "projector.0.weight",
    "projector.0.bias",
    "projector.2.weight",
    *(f"language_model.layers.{n}.mlp.up_proj.weight" for n in range(41)),
    *(f"language_model.layers.{n}.self_attn.q_proj.weight" for n in range(41)),
    "language_model.norm.weight",
    "lm_head.weight",
)


@pytest.mark.parametrize(
    ("glob", "name", "matches"),
    [
        ("projector", "projector.0.weight", True),
        ("projector.0.weight", "projector.0.weight", True),
        ("proj", "projector.0.weight", False),
        ("proj*", "projector.0.weight", True),
        ("*", "projector.0.weight", True),
        ("*.weight", "projector.0.weight", False),
        ("*.*.weight", "projector.0.weight", True),
        ("**.weight", "projector.0.weight", True),
        ("**", "lm_head.weight", True),
        ("a.**.d", "a.d", True),
        ("a.**.d", "a.b.c.d.e", True),
        ("a.**", "a.b", True),
        ("a.**", "b.a", False),
        ("layers.{30..39}", "layers.30.w", True),
        ("layers.{30..39}", "layers.39.w", True),
        ("layers.{30..39}", "layers.40.w", False),
        ("layers.{30..39}", "layers.3.w", False),
        ("layers.{0..9}", "layers.007.w", False),
        ("l*s.{1..2}.w", "layers.2.w", True),
        ("block{1..2}x", "block2x.w", True),
        ("{3..", "3", False),
        ("a.", "a.b", False),
        ("a+", "aa", False),
    ],
)
def test_globs_match_modules_by_segment(glob: str, name: str, matches: bool) -> None:
    assert match_glob(glob, name) is matches


def test_a_range_stays_in_one_segment() -> None:
    assert split_glob("a.{3..4}.b") == ("a", "{3..4}", "b")


@given(names=st.lists(NAMES, unique=True), freeze=FREEZES, trainable=st.lists(GLOBS, max_size=3).map(tuple))
def test_freezing_splits_the_model_in_two(names, freeze, trainable) -> None:  # type: ignore[no-untyped-def]
    decision = decide(names, freeze=freeze, trainable=trainable)
    assert sorted(decision.trainable + decision.frozen) == sorted(names)
    assert not set(decision.trainable) & set(decision.frozen)
    for name in names:
        if any(match_glob(glob, name) for glob in trainable):
            assert name in decision.trainable
    given_globs = {*trainable, *(freeze if isinstance(freeze, tuple) else ())}
    matched = {glob for glob in given_globs if any(match_glob(glob, name) for name in names)}
    assert set(decision.unmatched) == given_globs - matched


@given(glob=GLOBS, name=NAMES, below=NAMES)
def test_a_matched_module_brings_everything_under_it(glob: str, name: str, below: str) -> None:
    if match_glob(glob, name):
        assert match_glob(glob, f"{name}.{below}")


@given(names=st.lists(NAMES, unique=True), data=st.data())
def test_the_summary_names_exactly_what_trains(names: list[str], data: st.DataObject) -> None:
    trains = data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    # A name that is also the parent of another is no tree of modules and parameters.
    leaves = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    trains = [name for name in trains if name in leaves]
    modules = summarize_modules(trains, leaves)
    decision = decide(leaves, freeze="all", trainable=modules)
    assert sorted(decision.trainable) == sorted(trains)
    assert decision.unmatched == ()


def test_freeze_all_leaves_what_trainable_names() -> None:
    decision = decide(MODEL, freeze="all", trainable=("projector", "language_model.layers.{30..39}"))
    assert len(decision.trainable) == 3 + 20
    assert summarize_modules(decision.trainable, MODEL) == (
        "projector",
        *(f"language_model.layers.{n}" for n in range(30, 40)),
    )


def test_a_list_of_globs_freezes_those_and_trains_the_rest() -> None:
    decision = decide(MODEL, freeze=("vision_tower", "**.mlp"), trainable=("language_model.layers.0",))
    assert set(decision.frozen) == {
        MODEL[0],
        *(f"language_model.layers.{n}.mlp.up_proj.weight" for n in range(1, 41)),
    }


def test_globs_that_match_nothing_are_told_in_their_order() -> None:
    decision = decide(
        MODEL, freeze=("mm_projector",), trainable=("projector", "language_model.layers.{50..60}")
    )
    assert decision.unmatched == ("mm_projector", "language_model.layers.{50..60}")
    assert decision.trainable == MODEL
