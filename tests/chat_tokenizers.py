"""Tiny tokenizers with the special tokens and chat templates of real language models.

The chat templates are those that the models' `tokenizer_config.json` holds, without their parts for tools.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llava_recipes.data.tokenizer import load_tokenizer
from llava_recipes.plan.types import LanguageModelPlan
from llava_recipes.recipe.schema import ImageTokens
from tests.tiny import FIXTURES

Family = Literal["llama_3", "qwen", "gemma", "phi3"]

TEXTS = (
    "A chat between a curious user and an artificial intelligence assistant. You are a helpful assistant.",
    "system user assistant model What is in the image? It is a red square and a blue circle.",
    "You are able to understand the visual content that the user provides, using natural language.",
)

CHAT_TEMPLATES: Final[dict[str, str]] = {
    # meta-llama/Meta-Llama-3-8B-Instruct
    "llama_3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        "+ message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    # Qwen/Qwen2-7B-Instruct
    "qwen": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # Qwen/Qwen2.5-7B-Instruct
    "qwen2.5": (
        "{%- if messages[0]['role'] == 'system' %}"
        "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}{%- else %}"
        "{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\\n' }}{%- endif %}{%- for message in messages %}"
        "{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) or "
        "(message.role == 'assistant' and not message.tool_calls) %}"
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    ),
    # google/gemma-2-9b-it
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
        "{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
        "{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
    ),
    # microsoft/Phi-3-mini-4k-instruct
    "phi3": (
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
        "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
        "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
}


def save_tokenizer(family: Family, folder: Path, *, chat_template: str | None = None) -> Path:
    """A tokenizer with the special tokens of a family; the folder that it lies in."""
    tokenizer = _llama_with_phi_tokens() if family == "phi3" else _byte_level(family)
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder


def open_tokenizer(folder: Path, *, start_end: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer as a run loads it."""
    source = str(folder)
    plan = LanguageModelPlan(source=source, revision=None, config=None, tokenizer=source, seed=0)
    return load_tokenizer(plan, ImageTokens.model_validate({"start_end": start_end}))


def _byte_level(family: Family) -> PreTrainedTokenizerFast:
    special = {
        "llama_3": [
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ],
        "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "gemma": ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
    }[family]
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    words.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    bos = {"llama_3": "<|begin_of_text|>", "gemma": "<bos>"}.get(family)
    if bos is not None:
        words.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, words.token_to_id(bos))]
        )
    eos = {"llama_3": "<|eot_id|>", "qwen": "<|im_end|>", "gemma": "<eos>"}[family]
    pad = {"llama_3": None, "qwen": "<|endoftext|>", "gemma": "<pad>"}[family]
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token=bos, eos_token=eos, pad_token=pad)


def _llama_with_phi_tokens() -> PreTrainedTokenizerBase:
    """Phi-3's tokenizer is Llama's, with tokens that swallow the line end after them."""
    tokenizer = AutoTokenizer.from_pretrained(FIXTURES / "tiny_vicuna", add_bos_token=False)
    names = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    tokenizer.add_tokens([AddedToken(name, rstrip=True, normalized=False, special=True) for name in names])
    tokenizer.eos_token = "<|endoftext|>"
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer
