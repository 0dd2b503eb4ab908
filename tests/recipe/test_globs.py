from __future__ import annotations

import itertools
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llava_recipes.recipe.globs import decide, match_glob, split_glob, summarize_modules, tree_of
from tests.laws import examples

SEGMENTS = st.sampled_from(["a", "b", "layers", "0", "1", "29", "30", "39", "40", "weight", "x_y"])
NAMES = st.lists(SEGMENTS, min_size=1, max_size=4).map(".".join)
GLOB_SEGMENTS = SEGMENTS | st.sampled_from(["*", "**", "{30..39}", "l*s", "{1..2}", "x{0..1}"])
GLOBS = st.lists(GLOB_SEGMENTS, min_size=1, max_size=4).map(".".join)
# Short texts of few letters: what matches in several ways is drawn often.
LETTERS = st.sampled_from(["a", "b", "0", "1", "12"])
WORDS = st.lists(LETTERS, min_size=1, max_size=4).map("".join)
PIECES = LETTERS | st.sampled_from(
    ["*", "*", "{0..1}", "{1..12}", "{5..200}", "{3..1}", "{0..999999999}", "{"]
)
WILD_SEGMENTS = st.just("**") | st.lists(PIECES, min_size=1, max_size=5).map("".join)
WILD_NAMES = st.lists(WORDS, min_size=1, max_size=5).map(".".join)
WILD_GLOBS = st.lists(WILD_SEGMENTS, min_size=1, max_size=6).map(".".join)
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


def test_globs_that_match_nothing_are_reported_in_their_order() -> None:
    decision = decide(
        MODEL, freeze=("mm_projector",), trainable=("projector", "language_model.layers.{50..60}")
    )
    assert decision.unmatched == ("mm_projector", "language_model.layers.{50..60}")
    assert decision.trainable == MODEL


def _defined(glob: str, name: str) -> bool:
    """The definition, by trying every way to part a name: for short texts alone."""
    segments, parts = tuple(split_glob(glob)), tuple(name.split("."))
    return any(_spans(segments, parts[:end]) for end in range(1, len(parts) + 1))


def _spans(segments: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if not segments:
        return not parts
    if segments[0] == "**":
        return any(_spans(segments[1:], parts[start:]) for start in range(len(parts) + 1))
    return bool(parts) and _stands_for(segments[0], parts[0]) and _spans(segments[1:], parts[1:])


def _stands_for(segment: str, text: str) -> bool:
    if not segment:
        return not text
    numbers = re.match(r"\{(\d+)\.\.(\d+)\}", segment)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        ends = range(1, len(text) + 1)
        found = [end for end in ends if text[:end].isdigit() and str(int(text[:end])) == text[:end]]
        good = [end for end in found if first <= int(text[:end]) <= last]
        return any(_stands_for(segment[numbers.end() :], text[end:]) for end in good)
    if segment[0] == "*":
        return any(_stands_for(segment[1:], text[start:]) for start in range(len(text) + 1))
    return text[:1] == segment[0] and _stands_for(segment[1:], text[1:])


@given(glob=WILD_GLOBS, name=WILD_NAMES)
@example(glob="{1..5}{1..50}", name="123")
@example(glob="*{30..39}", name="x130")
@example(glob="**.a.**.a.**", name="b.a.b.a")
@examples(1200)
def test_matching_is_as_defined(glob: str, name: str) -> None:
    assert match_glob(glob, name) is _defined(glob, name)


@given(glob=WILD_GLOBS, names=st.lists(WILD_NAMES, unique=True, max_size=8))
@examples(400)
def test_a_tree_matches_each_of_its_names(glob: str, names: list[str]) -> None:
    assert list(tree_of(names).matched(glob)) == [name for name in names if _defined(glob, name)]


@given(names=st.lists(WILD_NAMES, unique=True), segments=st.lists(WILD_SEGMENTS.filter(lambda s: s != "**")))
def test_a_tree_says_what_is_below(names: list[str], segments: list[str]) -> None:
    parted = [name.split(".") for name in names]
    depth = len(segments)
    below = [
        parts[depth]
        for parts in parted
        if len(parts) > depth and _spans(tuple(segments), tuple(parts[:depth]))
    ]
    assert set(tree_of(names).below(segments)) == set(below)
    reached = itertools.takewhile(
        lambda end: tree_of(names).below(segments[:end]), range(1, len(segments) + 1)
    )
    assert tree_of(names).depth_of(segments) == max(reached, default=0)


HARD = (
    "**." * 3000 + "nothing",
    "**.*." * 3000 + "nothing",
    "*a" * 5000 + "b",
    "*" * 10_000 + "b",
    "a" * 10_000 + "*",
    "{0..999999999}" * 2000,
    "{1..12}*" * 2000,
    "{" * 10_000,
    "{1..{1..{1..",
    "{" + "9" * 9000 + ".." + "9" * 9000 + "}",
    "." * 10_000,
)


@pytest.mark.parametrize("glob", HARD, ids=lambda glob: str(glob[:12]))
@pytest.mark.parametrize("name", ["a" * 3000, "1" * 400, "a." * 1500 + "a", ".".join("1" * 500)])
def test_no_glob_takes_long(glob: str, name: str) -> None:
    began = time.process_time()
    match_glob(glob, name)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("glob", HARD, ids=lambda glob: str(glob[:12]))
def test_no_glob_takes_long_on_a_model(glob: str) -> None:
    began = time.process_time()
    decide(MODEL, freeze="all", trainable=(glob,))
    assert time.process_time() - began < 0.5


def test_two_thousand_globs_take_seconds() -> None:
    globs = tuple(f"**.layers.{{0..{number}}}.**.weight" for number in range(2000))
    began = time.process_time()
    decision = decide(MODEL, freeze="all", trainable=globs)
    assert time.process_time() - began < 5
    assert len(decision.trainable) == 82
