"""The tokenizer of a language model, which spells text as the original's slow one, and its new tokens."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from tokenizers import normalizers, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, LlamaTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from llava_recipes.data.hub import check_available
from llava_recipes.errors import KeyPath, RecipeError
from llava_recipes.files import expanded
from llava_recipes.layouts import IMAGE, IMAGE_END, IMAGE_PATCH, IMAGE_START
from llava_recipes.plan.families import is_original_llava, language_type
from llava_recipes.plan.types import LanguageModelPlan, ModelPlan
from llava_recipes.recipe.foreign import check_model_folder, check_settings, read_by_library
from llava_recipes.recipe.schema import ImageTokens

_PATH: Final[KeyPath] = ("model", "language_model")
_FILES = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json"),
    *("vocab.json", "config.json", "tokenizer.model", "merges.txt", "chat_template.jinja"),
)
"""What transformers makes a tokenizer from."""
_VOCABULARIES = ("tokenizer*.json", "*.model", "vocab*", "*.vocab", "*.tiktoken", "tekken.json")
"""Files of a tokenizer's tokens, by any library's name; `tokenizer_config.json` matches but has none."""
_TEXT = "A text, to see whether it can be spelled."


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, and the ids that are new to the language model: from `first_new` up to `end_new`."""

    tokenizer: PreTrainedTokenizerBase
    first_new: int
    end_new: int

    def vocab_size(self, config: PreTrainedConfig) -> int:
        """Rows that the embeddings need: the config's, or more where the new tokens do not fit."""
        size: int = config.vocab_size
        return max(size, self.end_new) if self.end_new > self.first_new else size

    def image_token_id(self) -> int:
        """The id that means an image in configs: that of `<image>`, of unknown, or of padding."""
        known = self.tokenizer.get_vocab().get(IMAGE)
        for candidate in (known, self.tokenizer.unk_token_id, self.tokenizer.pad_token_id):
            if isinstance(candidate, int):
                return candidate
        return 0


def plan_vocabulary(plan: ModelPlan) -> Vocabulary:
    """The plan's tokenizer with its image tokens."""
    tokenizer = load_tokenizer(plan.language_model, plan.image_tokens)
    if not (plan.image_tokens.start_end or plan.image_tokens.patch):
        return Vocabulary(tokenizer, len(tokenizer), len(tokenizer))
    without = load_tokenizer(plan.language_model, ImageTokens.model_construct(start_end=False, patch=False))
    return Vocabulary(tokenizer, len(without), len(tokenizer))


def with_new_rows(rows: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Embedding rows (or head biases) with each new token's row set to the mean of the rows before it.

    rows  float[V, ...], V the size before the new tokens; returns float[max(V, end_new), ...]
    """
    if vocabulary.first_new == vocabulary.end_new:
        return rows
    known = rows[: vocabulary.first_new]
    mean = known.to(torch.float32).mean(dim=0).to(rows.dtype)
    num_new = vocabulary.end_new - vocabulary.first_new
    return torch.cat([known, mean.expand(num_new, *rows.shape[1:]), rows[vocabulary.end_new :]])


def with_mean_rows(rows: Tensor, num_rows: int) -> Tensor:
    """Embedding or head rows, filled up to `num_rows` with their mean.

    The logit of a mean row is the mean of the logits, so no such token is ever the likeliest.
    """
    if rows.shape[0] >= num_rows:
        return rows
    mean = rows.detach().to(torch.float32).mean(dim=0).to(rows.dtype)
    return torch.cat([rows, mean.expand(num_rows - rows.shape[0], *rows.shape[1:])])


def load_tokenizer(plan: LanguageModelPlan, image_tokens: ImageTokens) -> PreTrainedTokenizerBase:
    """The tokenizer with a padding token and the image tokens that the recipe asks for.

    Tokenizers of the Llama family return the ids of the slow tokenizer that the original uses. A tokenizer
    without a padding token pads with its unknown token, else with its end token. Raises RecipeError when it
    cannot be loaded, has no character offsets, or has none of the three tokens.
    """
    revision = plan.revision if plan.tokenizer == plan.source else None
    check_model_folder(Path(plan.tokenizer), _PATH)
    _check_vocabulary(Path(plan.tokenizer), _PATH)
    check_available(
        plan.tokenizer,
        revision,
        files=[name for name in _FILES if name != "config.json"],
        message=_refusal(plan),
        code="tokenizer-not-usable",
        path=_PATH,
    )
    with _read(plan):
        settings = get_tokenizer_config(plan.tokenizer, revision=revision)
        check_settings(settings, _PATH, file=f"tokenizer_config.json of {plan.tokenizer}")
        tokenizer = AutoTokenizer.from_pretrained(
            plan.tokenizer,
            revision=revision,
            trust_remote_code=False,
            **_language_config(plan.tokenizer, revision),
        )
        # A damaged vocabulary fails only when it is used.
        _try_out(tokenizer)
    if isinstance(tokenizer, LlamaTokenizer):
        _match_slow_llama(tokenizer, legacy=settings.get("legacy") is not False)
    if tokenizer.pad_token is None:
        _pad_with_another(tokenizer, plan)
    added = [IMAGE_PATCH] * image_tokens.patch + [IMAGE_START, IMAGE_END] * image_tokens.start_end
    if added:
        tokenizer.add_tokens(added, special_tokens=True)
    return tokenizer


def _check_vocabulary(folder: Path, path: KeyPath) -> None:
    """Raise RecipeError when a folder contains no tokenizer; the library would report missing packages."""
    if not folder.is_dir():
        return
    found = {file.name for pattern in _VOCABULARIES for file in folder.glob(pattern)}
    if found - {"tokenizer_config.json"}:
        return
    raise RecipeError.of(
        f'the folder "{folder}" contains no tokenizer',
        code="tokenizer-not-usable",
        path=path,
        found=f"neither tokenizer.json nor tokenizer.model in {folder}",
        hint="copy the tokenizer's files there, or write the hub id or folder that has them: "
        "`language_model: {source: …, tokenizer: …}`",
    )


def _language_config(source: str, revision: str | None) -> dict[str, PreTrainedConfig]:
    """The config that chooses the tokenizer's class, where the one next to it is a LLaVA checkpoint's."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    except OSError:
        return {}
    check_settings(config, _PATH, file=f"config.json of {source}")
    kind = language_type(config) if is_original_llava(config) else None
    return {} if kind is None else {"config": AutoConfig.for_model(kind)}


def _refusal(plan: LanguageModelPlan) -> str:
    return f'tokenizer "{plan.tokenizer}" cannot be loaded'


def _read(plan: LanguageModelPlan) -> AbstractContextManager[None]:
    """Turn what libraries raise in the block into a problem of the plan's tokenizer."""
    folder = expanded(plan.tokenizer)
    return read_by_library(
        _refusal(plan),
        code="tokenizer-not-usable",
        files=[folder / name for name in _FILES if (folder / name).exists()],
        place="" if folder.is_dir() else plan.tokenizer,
        path=_PATH,
        hint="write a hub id, or a folder that contains a tokenizer",
    )


def _try_out(tokenizer: object) -> None:
    """Spell a text and read it back.

    Raises what the libraries raise, TypeError without character offsets, ValueError without a vocabulary.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
        raise TypeError(f"{type(tokenizer).__name__} has no character offsets")
    if tokenizer.vocab_size <= len(tokenizer.all_special_tokens):
        # What transformers makes when the file of the vocabulary is missing.
        raise ValueError("its vocabulary is empty: is tokenizer.json or tokenizer.model missing?")
    tokenizer.decode(tokenizer(_TEXT, return_offsets_mapping=True).input_ids)


def _match_slow_llama(tokenizer: LlamaTokenizer, *, legacy: bool) -> None:
    """Put the leading `▁` where the slow Llama tokenizer puts it.

    The fast one leaves it out when a text starts with a space of its own. With `legacy` (the slow tokenizer's
    default) it is put before every stretch of text between special tokens, without it only at the start.
    """
    backend = tokenizer.backend_tokenizer
    tokenizer.legacy = legacy
    # The saved tokenizer says it too.
    tokenizer.init_kwargs["legacy"] = legacy
    spaces = normalizers.Replace(" ", "▁")
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        backend.pre_tokenizer = None
        return
    backend.normalizer = spaces
    # No space is left here, so the first step always adds one at the start, and the second spells it.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False),
        ]
    )


def _pad_with_another(tokenizer: PreTrainedTokenizerBase, plan: LanguageModelPlan) -> None:
    """Pad with the unknown token as the original does, else with the end of text."""
    tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise RecipeError.of(
            f'tokenizer "{plan.tokenizer}" has neither a padding, an unknown nor an end token',
            code="tokenizer-not-usable",
            path=_PATH,
            hint="set `pad_token` in its tokenizer_config.json",
        )
