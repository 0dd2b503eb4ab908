"""Spell a conversation as text segments, each marked learn or ignore.

The layouts `plain` and `v1` are those of LLaVA (arXiv 2310.03744): the joined text of the segments is,
character for character, what the original code gives to its tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

IMAGE = "<image>"
IMAGE_START = "<im_start>"
IMAGE_END = "<im_end>"
IMAGE_PATCH = "<im_patch>"

V1_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

Template = Literal["plain", "v1"]


@dataclass(frozen=True)
class Turn:
    """One speaker's text."""

    role: Literal["human", "gpt"]
    text: str


@dataclass(frozen=True)
class Segment:
    """A piece of the prompt; `learn` says whether the model is trained to write it."""

    text: str
    learn: bool


def spell(
    template: Template,
    turns: Sequence[Turn],
    *,
    has_image: bool,
    start_end: bool,
    end_of_answer: str = "</s>",
) -> tuple[Segment, ...]:
    """Segments of the whole prompt, in order; an image stands as `<image>` inside an ignored segment.

    has_image      tags move to the front of their turn, as in the original; without it text stays as it is
    start_end      put `<im_start>` and `<im_end>` around every image (`plain` drops them, as in the original)
    end_of_answer  the tokenizer's end-of-sequence text, written and learned after every answer of `v1`

    A leading gpt turn is left out. Raises ValueError when the roles do not alternate, when an answer holds
    `<image>`, or when the template cannot hold the conversation.
    """
    spoken = spoken_turns(turns)
    if template == "plain":
        return _spell_plain(spoken, has_image=has_image)
    if has_image:
        spoken = [Turn(turn.role, _place_tags(turn.text, start_end=start_end)) for turn in spoken]
    return _spell_v1(spoken, end_of_answer=end_of_answer)


def spoken_turns(turns: Sequence[Turn]) -> list[Turn]:
    """The turns that are written: human and gpt in alternation, without a leading gpt turn.

    Raises ValueError when they do not alternate, when nothing is left, or when an answer holds `<image>`.
    """
    for turn in turns:
        if turn.role == "gpt" and IMAGE in turn.text:
            raise ValueError(f"an answer holds the tag {IMAGE}; only human turns may")
    spoken = list(turns[1:] if turns and turns[0].role == "gpt" else turns)
    if not spoken:
        raise ValueError("the conversation has no human turn")
    for position, turn in enumerate(spoken):
        expected = ("human", "gpt")[position % 2]
        if turn.role != expected:
            raise ValueError(f"two {turn.role} turns follow each other; human and gpt must alternate")
    return spoken


def _place_tags(text: str, *, start_end: bool) -> str:
    num_images = text.count(IMAGE)
    if num_images == 0:
        return text
    tag = IMAGE_START + IMAGE + IMAGE_END if start_end else IMAGE
    words = text.replace(IMAGE, "").strip()
    return ((tag + "\n") * num_images + words).strip()


def _spell_plain(turns: Sequence[Turn], *, has_image: bool) -> tuple[Segment, ...]:
    if len(turns) != 2:
        raise ValueError(f"template `plain` holds one human turn and one answer, not {len(turns)} turns")
    question, caption = turns
    learned = Segment(caption.text + "\n", learn=True)
    num_images = question.text.count(IMAGE)
    return (Segment(IMAGE * num_images, learn=False), learned) if has_image and num_images else (learned,)


def _spell_v1(turns: Sequence[Turn], *, end_of_answer: str) -> tuple[Segment, ...]:
    segments = []
    prompt = V1_SYSTEM + " "
    for turn in turns:
        if turn.role == "human":
            # An empty turn has no space on either side of it: that is how the original writes it.
            prompt += f"USER: {turn.text} " if turn.text else "USER:"
            continue
        segments.append(Segment(prompt + "ASSISTANT:", learn=False))
        segments.append(Segment((f" {turn.text}" if turn.text else "") + end_of_answer, learn=True))
        prompt = ""
    if prompt:
        segments.append(Segment(prompt, learn=False))
    return tuple(segments)
