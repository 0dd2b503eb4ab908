"""What an export refuses, the notes on what it writes, and how llama.cpp tokenizes its prompts."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from transformers import PreTrainedTokenizerBase

from llava_recipes.data.prompts import IMAGE_ID, Prompts
from llava_recipes.errors import Problem, RecipeError
from llava_recipes.export.checking import QUESTION
from llava_recipes.layouts import IMAGE
from llava_recipes.model.configs import language_half, vision_half
from llava_recipes.model.head import Head
from llava_recipes.model.pretrained import pretrained_folder
from llava_recipes.plan.exports import (
    ExportFacts,
    Target,
    facts_of,
    refusals,
    unread_adapters,
    unread_by_original,
    way_out,
)
from llava_recipes.runner.facts import tokenizer_kind
from llava_recipes.templates import Turn
from llava_recipes.use.opened import OpenedRun
from llava_recipes.use.trained_run import read_run

_OF_LLAMA_CPP = (
    "README.md in the folder has the commands for llama.cpp; until its issue 25814 is fixed, it reads CLIP's "
    "class token wrongly and answers differ"
)


def check_allowed(run: OpenedRun, target: Target) -> None:
    """Raise RecipeError with every reason why the run cannot be exported to a target."""
    facts = export_facts(run)
    problems = [
        Problem(
            refusal.reason, code="export-refused", found=refusal.found, hint=refusal.hint or way_out(facts)
        )
        for refusal in refusals(facts, target)
    ]
    if problems:
        raise RecipeError(*problems)


def export_facts(run: OpenedRun) -> ExportFacts:
    """What the exports need to know of the opened model."""
    config = run.assembled.model.config
    facts = facts_of(
        run.plan,
        run.data,
        language=language_half(config).to_dict(),
        vision=vision_half(config).to_dict(),
        tokenizer=tokenizer_kind(tokenizer_folder(run)),
    )
    if not isinstance(run.assembled.model.lm_head, Head):
        return replace(facts, head="")
    return facts if facts.head else replace(facts, head="more than a matrix")


def notes_of(run: OpenedRun, target: Target) -> tuple[str, ...]:
    """What a user should know about the programs that read the export."""
    if target == "gguf-ready":
        if spelling_for(run).is_exact:
            return (_OF_LLAMA_CPP,)
        return (_OF_LLAMA_CPP, "llama.cpp tokenizes this model's prompts differently from the training")
    if target != "llava":
        return ()
    facts = export_facts(run)
    reasons = unread_by_original(facts)
    if reasons:
        return (f"the original LLaVA can't read this model: {'; '.join(reasons)}",)
    if run.kind != "run":
        return ()
    unread = unread_adapters(read_run(run.path).stages[0], facts)
    if not unread:
        return ()
    why = "; ".join(reason for _, reason in unread)
    return (f"the original LLaVA can read this model, but not the adapters in {run.path}: {why}",)


def tokenizer_folder(run: OpenedRun) -> Path:
    """The folder that the tokenizer was read from."""
    language = run.plan.language_model
    revision = language.revision if language.tokenizer == language.source else None
    return pretrained_folder(language.tokenizer, revision, parts=("tokenizer",), path=())


@dataclass(frozen=True)
class Spelling:
    """What makes llama.cpp tokenize a prompt around its special tokens as the run's tokenizer did.

    llama.cpp (src/llama-vocab.cpp, llama_vocab::impl::tokenize) reads each text between images separately,
    takes the special tokens out of it and, for sentencepiece vocabularies, puts a space before each piece
    that is left. Tokenizers with `legacy: false` put one only at the beginning of such a text. With
    `add_prefix_space: false` in tokenizer_config.json llama.cpp puts none, and the chat template writes those
    that are needed.
    """

    adds_spaces: bool
    """Whether llama.cpp puts a space before each piece of text, which is its default."""
    before_all: str
    """What the chat template writes first."""
    after_image: str
    """What it writes after an image without tokens around it."""
    is_exact: bool = True
    """Whether llama.cpp then computes the ids of the run's prompts."""


USUAL = Spelling(adds_spaces=True, before_all="", after_image="")
_OTHERS = (
    Spelling(adds_spaces=False, before_all=" ", after_image=" "),
    # For prompts that begin with a special token.
    Spelling(adds_spaces=False, before_all="", after_image=" "),
)


def spelling_for(run: OpenedRun) -> Spelling:
    """The first spelling with which llama.cpp computes the run's ids; else the usual one, not exact."""
    tokens, tokenizer = run.plan.image_tokens, run.assembled.tokenizer
    prompts = Prompts(run.data, tokenizer, start_end=tokens.start_end)
    asked = [Turn("human", f"{IMAGE}\n{QUESTION}")]
    text = "".join(segment.text for segment in prompts.spell_prompt(asked, has_image=True))
    ours = [id for id in prompts.encode_prompt(asked, has_image=True) if id != IMAGE_ID]
    begin = [tokenizer.bos_token_id] if ours[:1] == [tokenizer.bos_token_id] else []
    # llama.cpp writes the first token once, whether or not the chat template does.
    text = text.removeprefix(str(tokenizer.bos_token)) if begin else text
    for each in (USUAL, *_OTHERS):
        after_image = "" if tokens.start_end else each.after_image
        there = each.before_all + text.replace(IMAGE, IMAGE + after_image)
        if begin + _ids_there(there, tokenizer, adds_spaces=each.adds_spaces) == ours:
            return each
    return replace(USUAL, is_exact=False)


def _ids_there(text: str, tokenizer: PreTrainedTokenizerBase, *, adds_spaces: bool) -> list[int]:
    """The ids of a prompt in llama.cpp, without images."""
    special = sorted((str(token) for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    pieces = re.compile(f"({'|'.join(map(re.escape, special))})")
    # After a token, tokenizers without `legacy` add no space.
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
