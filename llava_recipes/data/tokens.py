"""From segments to token ids and labels."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

from transformers import PreTrainedTokenizerBase

from llava_recipes.templates import IMAGE, Segment

IMAGE_ID = -200
IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """Token ids, `IMAGE_ID` where an image goes, and labels, `IGNORED` where nothing is learned."""

    input_ids: list[int]
    labels: list[int]


def encode(segments: Sequence[Segment], tokenizer: PreTrainedTokenizerBase, *, begin: bool = True) -> Encoded:
    """Token ids and labels of a prompt; both lists have the same length.

    Text between images is tokenised as one piece, so that the ids are those of the joined text. A token is
    learned when its first character stands in a segment that is learned. The tokenizer must be a fast one:
    the mask comes from its character offsets. With `begin` the ids start as the tokenizer starts a text.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed")
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
