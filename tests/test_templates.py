"""Conversations as segments: what is written, and what of it is learned."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.layouts import ALIASES, IMAGE, LAYOUTS, V1_SYSTEM, Alias, Template, meaning_of
from llava_recipes.templates import Segment, Turn, spell, spoken_turns, stop_text

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
        ("v1", [Turn("human", "a"), Turn("gpt", f"see {IMAGE}")], "an answer contains the tag <image>"),
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


CHATS: list[Template] = [template for template in LAYOUTS if template != "plain"]
ORIGINAL_NAMES = (
    *("default", "v0", "v1", "vicuna_v1", "llama_2", "mistral_instruct", "chatml_direct", "mistral_direct"),
    *("plain", "v0_plain", "llava_v0", "v0_mmtag", "llava_v1", "v1_mmtag", "llava_llama_2", "mpt"),
)
"""The keys of `conv_templates` in the original's conversation.py at c121f04."""


def test_every_name_has_a_meaning() -> None:
    assert set(LAYOUTS) == set(get_args(Template))
    assert set(ALIASES) == set(get_args(Alias))
    assert set(ORIGINAL_NAMES) | {"llama_3", "qwen", "gemma", "phi3"} == {*LAYOUTS, *ALIASES}
    for name in (*get_args(Template), *get_args(Alias)):
        assert meaning_of(meaning_of(name)) == meaning_of(name)


def test_no_two_templates_write_the_same() -> None:
    turns = [Turn("human", "Hi"), Turn("gpt", "Ho"), Turn("human", "And?"), Turn("gpt", "So")]
    texts = {joined(spell(template, turns, has_image=False, start_end=False)) for template in CHATS}
    assert len(texts) == len(CHATS)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("v0", "S\n\n### Human: Q\n### Assistant: A\n### Human: R\n### Assistant: B\n### "),
        ("v1", "S USER: Q ASSISTANT: A</s>USER: R ASSISTANT: B</s>"),
        ("llama_2", "[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A </s><s>[INST] R [/INST] B </s>"),
        ("mistral_instruct", "[INST] Q [/INST] A </s>[INST] R [/INST] B </s>"),
        (
            "mpt",
            "<|im_start|>system\nS<|im_end|><|im_start|>user\nQ<|im_end|><|im_start|>assistant\nA<|im_end|>"
            "<|im_start|>user\nR<|im_end|><|im_start|>assistant\nB<|im_end|>",
        ),
        (
            "qwen",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
            "A<|im_end|>\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n",
        ),
    ],
)
def test_the_layouts(template: Template, text: str) -> None:
    turns = [Turn("human", "Q"), Turn("gpt", "A"), Turn("human", "R"), Turn("gpt", "B")]
    system_prompt = None if LAYOUTS[template].system is None else "S"
    segments = spell(template, turns, has_image=False, start_end=False, system_prompt=system_prompt)
    assert joined(segments) == text


@pytest.mark.parametrize("template", LAYOUTS)
def test_a_system_prompt_stands_in_its_place_or_is_refused(template: Template) -> None:
    turns = [Turn("human", "Hi"), Turn("gpt", "Ho")]
    own = LAYOUTS[template].system
    if own is None:
        with pytest.raises(ValueError, match="no place for a system prompt"):
            spell(template, turns, has_image=False, start_end=False, system_prompt="Be brief.")
        return
    usual = joined(spell(template, turns, has_image=False, start_end=False))
    assert own in usual
    given = joined(spell(template, turns, has_image=False, start_end=False, system_prompt="Be brief."))
    assert given == usual.replace(own, "Be brief.")


@pytest.mark.parametrize("template", LAYOUTS)
@given(turns=conversations, start_end=st.booleans())
def test_an_open_prompt_is_what_stands_before_the_answer(
    template: Template, turns: list[Turn], start_end: bool
) -> None:
    turns = turns[:2] if template == "plain" else turns
    *asked, answer = [Turn(turns[0].role, f"{IMAGE}\n{turns[0].text}"), *turns[1:]]
    whole = joined(spell(template, [*asked, answer], has_image=True, start_end=start_end))
    prompt = joined(spell(template, asked, has_image=True, start_end=start_end, open_answer=True))
    layout = LAYOUTS[template]
    said = answer.text.strip() if layout.trims else answer.text
    gap = "" if layout.bare_when_empty and not said else layout.gap
    assert whole.startswith(prompt + gap + said + (layout.end or "</s>"))
    assert stop_text(template) in whole[len(prompt) + len(gap + said) :]
    with pytest.raises(ValueError, match="ends with a human turn"):
        spell(template, [*asked, answer], has_image=True, start_end=start_end, open_answer=True)


@pytest.mark.parametrize("template", [template for template in CHATS if not LAYOUTS[template].mark])
@given(turns=conversations)
def test_answers_and_their_ends_are_learned_and_nothing_else(template: Template, turns: list[Turn]) -> None:
    learned = [s.text for s in spell(template, turns, has_image=False, start_end=False) if s.learn]
    layout = LAYOUTS[template]
    answers = [turn.text.strip() if layout.trims else turn.text for turn in turns if turn.role == "gpt"]
    end = layout.end or "</s>"
    assert learned == [
        ("" if layout.bare_when_empty and not answer else layout.gap) + answer + end for answer in answers
    ]


def test_v0_learns_whole_answers_and_every_mark() -> None:
    turns = [Turn("human", "Hi"), Turn("gpt", "Ho"), Turn("human", "Bye"), Turn("gpt", "So")]
    segments = spell("v0", turns, has_image=False, start_end=False, system_prompt="S")
    assert [(segment.text, segment.learn) for segment in segments] == [
        ("S\n\n", False),
        ("###", True),
        (" Human: Hi\n", False),
        ("### Assistant: Ho\n###", True),
        (" Human: Bye\n", False),
        ("### Assistant: So\n### ", True),
    ]


def test_v0_keeps_an_answer_that_begins() -> None:
    turns = [Turn("gpt", "I begin."), Turn("human", "Hi"), Turn("gpt", "Ho")]
    assert "\n\n### Assistant: I begin.\n###" in joined(spell("v0", turns, has_image=False, start_end=False))
    for template in CHATS:
        kept = "I begin." in joined(spell(template, turns, has_image=False, start_end=False))
        assert kept == (template in ("v0", "v0_mmtag"))


def test_mmtag_puts_images_between_marks() -> None:
    turns = [Turn("human", f"What is it? {IMAGE}"), Turn("gpt", "ok")]
    text = joined(spell("v1_mmtag", turns, has_image=True, start_end=True))
    assert f"USER: <Image><im_start>{IMAGE}<im_end></Image>\nWhat is it? ASSISTANT:" in text


@pytest.mark.parametrize("template", CHATS)
def test_several_images_stay_where_llava_next_leaves_them(template: Template) -> None:
    turns = [Turn("human", f"First {IMAGE} and {IMAGE}."), Turn("gpt", "ok")]
    text = joined(spell(template, turns, has_image=True, start_end=False))
    stay = template in ("llama_3", "qwen", "gemma", "phi3")
    assert (f"First {IMAGE} and {IMAGE}." in text) == stay
    alone = [Turn("human", f"It is {IMAGE}."), Turn("gpt", "ok")]
    assert f"{IMAGE}\nIt is ." in joined(spell(template, alone, has_image=True, start_end=False)).replace(
        f"<Image>{IMAGE}</Image>", IMAGE
    )


@pytest.mark.parametrize("template", LAYOUTS)
def test_neighboring_segments_differ(template: Template) -> None:
    turns = [Turn("human", f"{IMAGE}\nHi"), Turn("gpt", "Ho")]
    segments = spell(template, turns, has_image=True, start_end=True)
    assert all(segment.text for segment in segments)
    assert all(left.learn != right.learn for left, right in itertools.pairwise(segments))
