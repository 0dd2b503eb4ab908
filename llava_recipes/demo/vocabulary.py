"""The demo's language: captions, notes for the warm-up, questions and answers, and its tokenizer."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from llava_recipes.templates import Turn, spell

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
GLUE = ("a", "at", "the")
FILLER = "ground"

WHAT, COLOR, SHAPE, SIZE, PLACE = (
    "what is this",
    "which colour is it",
    "which shape is it",
    "how large is it",
    "where is it",
)
QUESTIONS = (WHAT, COLOR, SHAPE, SIZE, PLACE)

BOS, EOS, UNKNOWN, PAD = "<s>", "</s>", "<unk>", "<pad>"
_CAPTION_WORDS = (*GLUE, *COLORS, *SHAPES, *SIZES, *ROWS, *COLUMNS)


def _conversation_words() -> tuple[str, ...]:
    """Words of the questions and of what the template `v1` adds to them, each once."""
    turns = (Turn("human", " ".join(QUESTIONS)), Turn("gpt", "a"))
    text = "".join(segment.text for segment in spell("v1", turns, has_image=False, start_end=False))
    words = dict.fromkeys(text.replace(EOS, " ").split())
    return tuple(word for word in words if word not in _CAPTION_WORDS)


WORDS = (UNKNOWN, BOS, EOS, PAD, "\n", FILLER, *_CAPTION_WORDS, *_conversation_words())
"""Every token in the order of ids; the recipe's `vocab_size` is their number."""

NUM_NOTES = 9
"""Words before a caption in the warm-up: one for each patch of the demo's tower."""
REPEAT_SHARE = 0.4


def caption_of(*, size: str, color: str, shape: str, row: str, column: str) -> str:
    """The one sentence that describes an image."""
    return f"a {size} {color} {shape} at the {row} {column}"


@dataclass(frozen=True)
class Notes:
    """Messy notes about a thing, and the thing."""

    text: str
    size: str
    color: str
    shape: str
    row: str
    column: str

    @property
    def caption(self) -> str:
        return caption_of(
            size=self.size, color=self.color, shape=self.shape, row=self.row, column=self.column
        )


def answer_to(question: str, caption: str) -> str:
    """The answer to one of QUESTIONS about a thing with this caption."""
    _, size, color, shape, *place = caption.split()
    answers = {WHAT: caption, COLOR: color, SHAPE: f"a {shape}", SIZE: size, PLACE: " ".join(place)}
    return answers[question]


def draw_notes(*, color: str, shape: str, draw: random.Random) -> Notes:
    """Messy notes about a thing of this color and shape.

    NUM_NOTES words in any order: each relevant word at least once, some of them again, the rest filler.
    A language model that has learned to caption such notes reads the words before the caption, so that a
    projector only has to map patches near those words.
    """
    size, row, column = draw.choice(SIZES), draw.choice(ROWS), draw.choice(COLUMNS)
    seen = (color, shape, size, row, column)
    rest = [_repeat_or_fill(seen, draw) for _ in range(NUM_NOTES - len(seen))]
    notes = [*seen, *rest]
    draw.shuffle(notes)
    return Notes(" ".join(notes), size, color, shape, row, column)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer folder that transformers loads: one token per word, `<s>` first, line ends kept."""
    ids = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, WORDS.index(BOS))]
    )
    tokenizer.add_special_tokens([UNKNOWN, BOS, EOS, PAD])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def _repeat_or_fill(seen: Sequence[str], draw: random.Random) -> str:
    return draw.choice(seen) if draw.random() < REPEAT_SHARE else FILLER
