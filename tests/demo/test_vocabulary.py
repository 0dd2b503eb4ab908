"""Words of the demo: notes that hold what their caption says, and a tokenizer that keeps every word."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llava_recipes.demo.drawn_data import all_combinations
from llava_recipes.demo.vocabulary import (
    COLOR,
    FILLER,
    GLUE,
    NUM_NOTES,
    PLACE,
    QUESTIONS,
    SHAPE,
    SIZE,
    WHAT,
    WORDS,
    answer_to,
    caption_of,
    draw_notes,
    write_tokenizer,
)
from llava_recipes.templates import Turn, spell


@pytest.mark.parametrize("combination", all_combinations())
def test_notes_hold_every_word_of_their_caption_and_nothing_else(combination: tuple[str, str]) -> None:
    color, shape = combination
    drawn = draw_notes(color=color, shape=shape, draw=random.Random(f"{color} {shape}"))
    notes, caption = drawn.text.split(), drawn.caption.split()
    assert len(notes) == NUM_NOTES
    assert set(notes) - {FILLER} == set(caption) - set(GLUE)
    assert caption[2:4] == [color, shape]
    assert {*notes, *caption} <= set(WORDS)


def test_answers_say_what_the_caption_says() -> None:
    caption = caption_of(size="small", color="red", shape="cross", row="top", column="left")
    answers = {question: answer_to(question, caption) for question in QUESTIONS}
    assert answers == {
        WHAT: caption,
        COLOR: "red",
        SHAPE: "a cross",
        SIZE: "small",
        PLACE: "at the top left",
    }


def test_a_conversation_has_no_unknown_word(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    caption = caption_of(size="small", color="red", shape="cross", row="top", column="left")
    turns = []
    for question in QUESTIONS:
        turns += [Turn("human", question), Turn("gpt", answer_to(question, caption))]
    segments = spell("v1", turns, has_image=False, start_end=False)
    ids = tokenizer("".join(segment.text for segment in segments)).input_ids
    assert tokenizer.unk_token_id not in ids
    assert ids.count(tokenizer.eos_token_id) == len(QUESTIONS)


def test_the_tokenizer_keeps_captions_and_their_line_end(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    caption = caption_of(size="small", color="red", shape="cross", row="top", column="left")
    ids = tokenizer(caption + "\n").input_ids
    assert tokenizer.is_fast
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", *caption.split(), "\n"]
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == caption.split()


def test_the_tokenizer_has_one_id_per_word_and_the_special_tokens(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert len(tokenizer) == len(WORDS) == len(set(WORDS))
    assert [tokenizer.convert_tokens_to_ids(word) for word in WORDS] == list(range(len(WORDS)))
    special = (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert special == ("<unk>", "<s>", "</s>", "<pad>")
    assert tokenizer("a zebra", add_special_tokens=False).input_ids == [
        WORDS.index("a"),
        WORDS.index("<unk>"),
    ]
