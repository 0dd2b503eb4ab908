"""Write a conversation as segments of text, each of them learned or ignored.

The layouts are in `layouts.py`. With those of LLaVA (arXiv 2310.03744) the joined segments are, character
for character, what the original code passes to its tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llava_recipes.layouts import IMAGE, IMAGE_END, IMAGE_START, LAYOUTS, Layout, Template


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
    system_prompt: str | None = None,
    open_answer: bool = False,
) -> tuple[Segment, ...]:
    """The segments of the whole prompt, in order; an image is `<image>` inside an ignored segment.

    has_image      move image tags to the front of their turn, as in the original; else leave the text alone
    start_end      put `<im_start>` and `<im_end>` around every image (`plain` drops them, as in the original)
    end_of_answer  the tokenizer's end-of-sequence text, written and learned after every answer of `v1`
    system_prompt  replaces the template's own
    open_answer    end where the model is to answer; the last turn is then a human one

    A leading gpt turn is left out, except with the `v0` templates. Raises ValueError when the roles do not
    alternate, an answer contains `<image>`, the template has no place for the turns or the system prompt, or
    an open conversation does not end with a human turn.
    """
    layout = LAYOUTS[template]
    if system_prompt is not None:
        if layout.system is None:
            raise ValueError(f"template `{template}` has no place for a system prompt")
        layout = replace(layout, system=system_prompt)
    spoken = spoken_turns(turns, leading_answer=layout.leading_answer)
    if open_answer and spoken[-1].role != "human":
        raise ValueError("the last turn is an answer; a prompt ends with a human turn")
    if template == "plain":
        return _spell_plain(spoken, has_image=has_image, open_answer=open_answer)
    if has_image:
        spoken = [
            Turn(turn.role, _place_tags(turn.text, layout=layout, start_end=start_end)) for turn in spoken
        ]
    if layout.end is None:
        layout = replace(layout, end=end_of_answer)
    return tuple(_spell_turns(spoken, layout, open_answer=open_answer))


def spoken_turns(turns: Sequence[Turn], *, leading_answer: bool = False) -> list[Turn]:
    """The turns to write, human and gpt in alternation; a leading gpt turn only with `leading_answer`.

    Raises ValueError when they do not alternate, there is no human turn, or an answer contains `<image>`.
    """
    for turn in turns:
        if turn.role == "gpt" and IMAGE in turn.text:
            raise ValueError(f"an answer contains the tag {IMAGE}; only human turns may")
    first_human = 1 if turns and turns[0].role == "gpt" else 0
    spoken = list(turns[first_human:])
    if not spoken:
        raise ValueError("the conversation has no human turn")
    for position, turn in enumerate(spoken):
        expected = ("human", "gpt")[position % 2]
        if turn.role != expected:
            raise ValueError(f"two {turn.role} turns follow each other; human and gpt must alternate")
    return list(turns) if leading_answer else spoken


def stop_text(template: Template, *, end_of_answer: str = "</s>") -> str:
    """The text that ends an answer: the end-of-turn token, or a mark such as `###`."""
    layout = LAYOUTS[template]
    return layout.stop or layout.end or end_of_answer


def _place_tags(text: str, *, layout: Layout, start_end: bool) -> str:
    num_images = text.count(IMAGE)
    if num_images == 0:
        return text
    tag = IMAGE_START + IMAGE + IMAGE_END if start_end else IMAGE
    if layout.mmtag:
        tag = f"<Image>{tag}</Image>"
    if layout.interleaved and (num_images > 1 or text.startswith(IMAGE)):
        return text.replace(IMAGE, tag)
    words = text.replace(IMAGE, "").strip()
    return ((tag + "\n") * num_images + words).strip()


def _spell_plain(turns: Sequence[Turn], *, has_image: bool, open_answer: bool) -> tuple[Segment, ...]:
    if len(turns) != (1 if open_answer else 2):
        raise ValueError(f"template `plain` takes one human turn and one answer, not {len(turns)} turns")
    num_images = turns[0].text.count(IMAGE) if has_image else 0
    segments = [Segment(IMAGE * num_images, learn=False)] if num_images else []
    if not open_answer:
        segments.append(Segment(turns[1].text + "\n", learn=True))
    return tuple(segments)


def _spell_turns(turns: Sequence[Turn], layout: Layout, *, open_answer: bool) -> list[Segment]:
    writer = _Writer()
    before, after = layout.opening
    writer.write(before + (layout.system or "") + after)
    for position, turn in enumerate(turns):
        text = turn.text.strip() if layout.trims else turn.text
        if turn.role == "human":
            writer.write(layout.mark, learn=True)
            writer.write(_question(text, layout, is_first=position == 0))
        else:
            _write_header(writer, layout)
            gap = "" if layout.bare_when_empty and not text else layout.gap
            writer.write(gap + text + (layout.end or ""), learn=True)
            writer.write(layout.after)
    if open_answer:
        _write_header(writer, layout)
    elif layout.mark:
        writer.write(layout.mark + " ", learn=True)
    return writer.segments


def _question(text: str, layout: Layout, *, is_first: bool) -> str:
    before, after = layout.human
    if is_first and layout.first_human is not None:
        before = layout.first_human
    # As the original writes an empty turn of `v1`.
    return before.rstrip() if layout.bare_when_empty and not text else before + text + after


def _write_header(writer: _Writer, layout: Layout) -> None:
    writer.write(layout.mark + layout.gpt, learn=bool(layout.mark))


class _Writer:
    """Collects segments; neighbors of one kind become one."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []

    def write(self, text: str, *, learn: bool = False) -> None:
        if not text:
            return
        if self.segments and self.segments[-1].learn == learn:
            text = self.segments.pop().text + text
        self.segments.append(Segment(text, learn))
