"""Conversations as a stage's token ids and labels: whole for training, or up to the answer as a prompt."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import cast

from transformers import PreTrainedTokenizerBase

from llava_recipes.data.chat_template import ChatTemplate, TemplateLimit, template_place
from llava_recipes.errors import RecipeError
from llava_recipes.layouts import IMAGE, IMAGE_END, IMAGE_START, LAYOUTS
from llava_recipes.plan.types import DataPlan
from llava_recipes.templates import Segment, Turn, spell, spoken_turns, stop_text

IMAGE_ID = -200
IGNORED = -100


class Prompts:
    """Conversations as token ids, by the template or the chat template of a stage.

    stop  the text that ends an answer, mostly a token; None when it is unknown

    Raises RecipeError when the tokenizer does not fit the template; the problem's path starts at `data`.
    """

    def __init__(self, data: DataPlan, tokenizer: PreTrainedTokenizerBase, *, start_end: bool) -> None:
        self._data, self._tokenizer, self._start_end = data, tokenizer, start_end
        self._end_of_answer = str(tokenizer.eos_token or "</s>")
        self._chat_template: ChatTemplate | None = None
        if data.template is not None:
            _check_tokens(data, tokenizer, end_of_answer=self._end_of_answer)
            self.stop: str | None = stop_text(data.template, end_of_answer=self._end_of_answer)
        else:
            try:
                self._chat_template = ChatTemplate(tokenizer, system_prompt=data.system_prompt)
            except TemplateLimit as error:
                where = ("data", "chat_template")
                raise RecipeError(*(replace(problem, path=where) for problem in error.problems)) from None
            except ValueError as error:
                hint = "write `template:` with the name of a built-in one, and remove `chat_template`"
                raise RecipeError.of(
                    str(error),
                    code="chat-template-not-usable",
                    path=("data", "chat_template"),
                    found=str(template_place(tokenizer)),
                    hint=hint,
                ) from None
            self.stop = self._chat_template.stop

    def spell(self, turns: Sequence[Turn], *, has_image: bool) -> tuple[Segment, ...]:
        """Segments of a whole conversation. Raises ValueError when it does not fit the template."""
        return self._spell(turns, has_image=has_image, open_answer=False)

    def encode(self, turns: Sequence[Turn], *, has_image: bool) -> Encoded:
        """Token ids and labels of a whole conversation. Raises ValueError as `spell` does."""
        return self._encode(self.spell(turns, has_image=has_image))

    def encode_prompt(self, turns: Sequence[Turn], *, has_image: bool) -> list[int]:
        """Token ids up to where the answer to the last turn starts, `IMAGE_ID` where an image goes.

        They are followed by the answer in training. Raises ValueError when the last turn isn't a human one.
        """
        return self._encode(self.spell_prompt(turns, has_image=has_image)).input_ids

    def spell_prompt(self, turns: Sequence[Turn], *, has_image: bool) -> tuple[Segment, ...]:
        """Segments up to where the answer to the last turn starts. Raises ValueError as `encode_prompt`."""
        return self._spell(turns, has_image=has_image, open_answer=True)

    def _spell(self, turns: Sequence[Turn], *, has_image: bool, open_answer: bool) -> tuple[Segment, ...]:
        if self._data.template is not None:
            segments = spell(
                self._data.template,
                turns,
                has_image=has_image,
                start_end=self._start_end,
                end_of_answer=self._end_of_answer,
                system_prompt=self._data.system_prompt,
                open_answer=open_answer,
            )
            return _with_tokens(segments) if self._data.tokens_in_plain else segments
        assert self._chat_template is not None
        spoken = spoken_turns(turns)
        if open_answer and spoken[-1].role != "human":
            raise ValueError("the last turn is an answer; a prompt ends with a human turn")
        if has_image and self._start_end:
            tag = IMAGE_START + IMAGE + IMAGE_END
            spoken = [Turn(turn.role, turn.text.replace(IMAGE, tag)) for turn in spoken]
        write = self._chat_template.spell_prompt if open_answer else self._chat_template.spell
        return tuple(write(spoken))

    def _encode(self, segments: Sequence[Segment]) -> Encoded:
        # A chat template itself writes what comes before a text.
        return encode(segments, self._tokenizer, begin=self._chat_template is None)


def _with_tokens(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Segments of `plain`, which leaves them out, with the tokens around each image."""
    tag = IMAGE_START + IMAGE + IMAGE_END
    return tuple(
        segment if segment.learn else replace(segment, text=segment.text.replace(IMAGE, tag))
        for segment in segments
    )


def _check_tokens(data: DataPlan, tokenizer: PreTrainedTokenizerBase, *, end_of_answer: str) -> None:
    assert data.template is not None
    layout = LAYOUTS[data.template]
    needed = layout.tokens if layout.end is not None else (*layout.tokens, end_of_answer)
    for token in needed:
        num_pieces = len(tokenizer(token, add_special_tokens=False).input_ids)
        if num_pieces != 1:
            raise RecipeError.of(
                f"template `{data.template}` needs the token {token}, which this tokenizer doesn't have",
                code="template-token-missing",
                path=("data", "template"),
                found=f"{tokenizer.name_or_path} spells it in {num_pieces} tokens",
                hint="choose the template of this language model"
                + (", or `chat_template: tokenizer`" if tokenizer.chat_template else ""),
            )


@dataclass(frozen=True)
class Encoded:
    """Token ids, `IMAGE_ID` where an image goes, and labels, `IGNORED` where nothing is learned."""

    input_ids: list[int]
    labels: list[int]


def encode(segments: Sequence[Segment], tokenizer: PreTrainedTokenizerBase, *, begin: bool = True) -> Encoded:
    """Token ids and labels of a prompt; both lists have the same length.

    Text between images is tokenized as one piece, so that the ids are those of the joined text. A token is
    learned when its first character is in a learned segment. The tokenizer must be a fast one: the mask comes
    from its character offsets. With `begin` the ids start with what the tokenizer puts before a text.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} has no character offsets; use a fast tokenizer")
    input_ids = _first_ids(tokenizer) if begin else []
    labels = [IGNORED] * len(input_ids)
    for position, piece in enumerate(_split_at_images(segments)):
        if position:
            input_ids.append(IMAGE_ID)
            labels.append(IGNORED)
        ids, learned = _encode_piece(piece, tokenizer)
        input_ids += ids
        labels += [token if learn else IGNORED for token, learn in zip(ids, learned, strict=True)]
    return Encoded(input_ids, labels)


def _first_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    empty = cast(list[int], tokenizer("").input_ids)
    return [tokenizer.bos_token_id] if empty and empty[0] == tokenizer.bos_token_id else []


def _split_at_images(segments: Sequence[Segment]) -> list[list[Segment]]:
    pieces: list[list[Segment]] = [[]]
    for segment in segments:
        first, *rest = segment.text.split(IMAGE)
        pieces[-1].append(Segment(first, segment.learn))
        pieces.extend([Segment(text, segment.learn)] for text in rest)
    return pieces


def _encode_piece(
    piece: Sequence[Segment], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[bool]]:
    kept = [segment for segment in piece if segment.text]
    if not kept:
        return [], []
    encoding = tokenizer(
        "".join(segment.text for segment in kept), add_special_tokens=False, return_offsets_mapping=True
    )
    ids = cast(list[int], encoding["input_ids"])
    offsets = cast(list[tuple[int, int]], encoding["offset_mapping"])
    ends = list(accumulate(len(segment.text) for segment in kept))
    learned = [kept[min(bisect_right(ends, start), len(kept) - 1)].learn for start, _ in offsets]
    return ids, learned
