"""Conversations as segments: what is written, and what of it is learned."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.templates import IMAGE, V1_SYSTEM, Segment, Template, Turn, spell, spoken_turns

words = st.text(alphabet="ab <>/s:\né", max_size=12).filter(lambda text: IMAGE not in text)
conversations = st.lists(st.tuples(words, words), min_size=1, max_size=4).map(
    lambda rounds: [turn for asked, said in rounds for turn in (Turn("human", asked), Turn("gpt", said))]
)


def joined(segments: tuple[Segment, ...]) -> str:
    return "".join(segment.text for segment in segments)


def test_plain_keeps_the_image_and_the_caption_alone() -> None:
    turns = [Turn("human", f"Describe it.\n{IMAGE}"), Turn("gpt", "a cat")]
    assert spell("plain", turns, has_image=True, start_end=True) == (
        Segment(IMAGE, learn=False),
        Segment("a cat\n", learn=True),
    )


def test_plain_without_image_is_the_caption() -> None:
    turns = [Turn("human", "Describe it."), Turn("gpt", "a cat")]
    assert spell("plain", turns, has_image=False, start_end=False) == (Segment("a cat\n", learn=True),)


def test_v1_learns_answers_and_their_ends() -> None:
    turns = [Turn("human", "Hi"), Turn("gpt", "Ho"), Turn("human", "Bye"), Turn("gpt", "")]
    assert spell("v1", turns, has_image=False, start_end=False) == (
        Segment(f"{V1_SYSTEM} USER: Hi ASSISTANT:", learn=False),
        Segment(" Ho</s>", learn=True),
        Segment("USER: Bye ASSISTANT:", learn=False),
        Segment("</s>", learn=True),
    )


def test_v1_ends_answers_with_the_tokenizers_own_end() -> None:
    turns = [Turn("human", "Hi"), Turn("gpt", "Ho")]
    *_, answer = spell("v1", turns, has_image=False, start_end=False, end_of_answer="<|im_end|>")
    assert answer == Segment(" Ho<|im_end|>", learn=True)


def test_tags_move_to_the_front_of_their_turn() -> None:
    turns = [Turn("human", f"  Describe {IMAGE} now "), Turn("gpt", "ok")]
    prompt, _ = spell("v1", turns, has_image=True, start_end=True)
    assert prompt.text.endswith(f"USER: <im_start>{IMAGE}<im_end>\nDescribe  now ASSISTANT:")


def test_two_tags_for_two_images_both_stay() -> None:
    turns = [Turn("human", f"{IMAGE} and {IMAGE} differ?"), Turn("gpt", "yes")]
    prompt, _ = spell("v1", turns, has_image=True, start_end=False)
    assert prompt.text.endswith(f"USER: {IMAGE}\n{IMAGE}\nand  differ? ASSISTANT:")


def test_a_leading_answer_is_left_out() -> None:
    turns = [Turn("gpt", "I begin."), Turn("human", "Hi"), Turn("gpt", "Ho")]
    assert "I begin" not in joined(spell("v1", turns, has_image=False, start_end=False))


@pytest.mark.parametrize(
    ("template", "turns", "message"),
    [
        ("v1", [], "no human turn"),
        ("v1", [Turn("gpt", "alone")], "no human turn"),
        ("v1", [Turn("human", "a"), Turn("human", "b")], "two human turns follow each other"),
        ("v1", [Turn("human", "a"), Turn("gpt", f"see {IMAGE}")], "an answer holds the tag <image>"),
        ("plain", [Turn("human", "a"), Turn("gpt", "b"), Turn("human", "c")], "not 3 turns"),
    ],
)
def test_refuses(template: Template, turns: list[Turn], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spell(template, turns, has_image=False, start_end=False)


@given(turns=conversations)
def test_what_is_learned_is_exactly_the_answers(turns: list[Turn]) -> None:
    segments = spell("v1", turns, has_image=False, start_end=False)
    learned = [segment.text for segment in segments if segment.learn]
    answers = [turn.text for turn in turns if turn.role == "gpt"]
    assert learned == [f" {text}</s>" if text else "</s>" for text in answers]


@given(turns=conversations, has_image=st.booleans(), start_end=st.booleans())
def test_without_tags_images_change_nothing(turns: list[Turn], has_image: bool, start_end: bool) -> None:
    assert spell("v1", turns, has_image=has_image, start_end=start_end) == spell(
        "v1", turns, has_image=False, start_end=False
    )


@given(turns=conversations)
def test_spoken_turns_of_spoken_turns_are_the_same(turns: list[Turn]) -> None:
    once = spoken_turns(turns)
    assert spoken_turns(once) == once
