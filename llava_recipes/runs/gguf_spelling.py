"""What makes llama.cpp spell a prompt around its special tokens as the run's tokenizer did.

llama.cpp (src/llama-vocab.cpp, llama_vocab::impl::tokenize) reads each text between images by itself, takes
the special tokens out of it and, for sentencepiece vocabularies, puts a space before each piece that is left.
Tokenizers with `legacy: false` write one only where such a text begins. With `add_prefix_space: false` in
tokenizer_config.json llama.cpp puts none, and the chat template writes those that are wanted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import cast

from transformers import PreTrainedTokenizerBase

from llava_recipes.data.prompts import Prompts
from llava_recipes.data.tokens import IMAGE_ID
from llava_recipes.runs.checking import QUESTION
from llava_recipes.runs.opened import OpenedRun
from llava_recipes.templates import IMAGE, Turn


@dataclass(frozen=True)
class Spelling:
    """What the export sets for llama.cpp."""

    adds_spaces: bool
    """Whether llama.cpp puts a space before each piece of text, as it does if it isn't told otherwise."""
    before_all: str
    """What the chat template writes first."""
    after_image: str
    """What it writes behind an image that has no tokens around it."""
    is_exact: bool = True
    """Whether llama.cpp then gives the ids of the run's prompts."""


USUAL = Spelling(adds_spaces=True, before_all="", after_image="")
_OTHERS = (
    Spelling(adds_spaces=False, before_all=" ", after_image=" "),
    # For prompts that begin with a special token.
    Spelling(adds_spaces=False, before_all="", after_image=" "),
)


def spelling_for(run: OpenedRun) -> Spelling:
    """The first spelling with which llama.cpp gives the run's ids; else the usual one, not exact."""
    tokens, tokenizer = run.plan.image_tokens, run.assembled.tokenizer
    prompts = Prompts(run.data, tokenizer, start_end=tokens.start_end)
    asked = [Turn("human", f"{IMAGE}\n{QUESTION}")]
    text = "".join(segment.text for segment in prompts.spell_prompt(asked, has_image=True))
    ours = [id for id in prompts.encode_prompt(asked, has_image=True) if id != IMAGE_ID]
    begin = [tokenizer.bos_token_id] if ours[:1] == [tokenizer.bos_token_id] else []
    # llama.cpp writes the token that begins a text once, whether or not the chat template does.
    text = text.removeprefix(str(tokenizer.bos_token)) if begin else text
    for each in (USUAL, *_OTHERS):
        after_image = "" if tokens.start_end else each.after_image
        there = each.before_all + text.replace(IMAGE, IMAGE + after_image)
        if begin + _ids_there(there, tokenizer, adds_spaces=each.adds_spaces) == ours:
            return each
    return replace(USUAL, is_exact=False)


def _ids_there(text: str, tokenizer: PreTrainedTokenizerBase, *, adds_spaces: bool) -> list[int]:
    """The ids of a prompt in llama.cpp, without those of images."""
    special = sorted((str(token) for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    pieces = re.compile(f"({'|'.join(map(re.escape, special))})")
    # Behind a token, tokenizers without `legacy` add nothing.
    token = str(tokenizer.eos_token)
    ids: list[int] = []
    for part in text.split(IMAGE):
        for piece in filter(None, pieces.split(part)):
            if adds_spaces or piece in special:
                ids += _ids(piece, tokenizer)
            else:
                ids += _ids(token + piece, tokenizer)[1:]
    return ids


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return cast(list[int], tokenizer(text, add_special_tokens=False).input_ids)
