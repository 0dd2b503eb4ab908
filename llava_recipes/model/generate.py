"""Captions: greedy generation from prompts with pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from llava_recipes.model.assemble import Assembled
from llava_recipes.model.forward import embed_prompt

IMAGE_PLACEHOLDER = -200


def caption(
    assembled: Assembled,
    pixel_values: Tensor | None,
    prompt_ids: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> list[str]:
    """What the model says after each prompt, without special tokens.

    pixel_values  float[N, C, H, W], pictures in reading order; None for prompts without any
    prompt_ids    token ids with one -200 per picture
    """
    model, tokenizer = assembled.model, assembled.tokenizer
    device = next(model.parameters()).device
    input_ids, is_image, attention_mask = _pad_left(prompt_ids, assembled.num_image_tokens, device)
    pixel_values = None if pixel_values is None else pixel_values.to(device)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with _evaluating(model):
        embeds_BTD = embed_prompt(model, input_ids, is_image, pixel_values, None)
        generate: Callable[..., Tensor] = model.generate
        new_ids = generate(
            inputs_embeds=embeds_BTD, attention_mask=attention_mask, generation_config=settings
        )
    texts: list[str] = tokenizer.batch_decode(new_ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


def _pad_left(
    prompts: Sequence[Sequence[int]], num_image_tokens: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """int64[B, T] ids (0 on pictures and padding), bool[B, T] on pictures, int64[B, T] attention mask."""
    rows = [
        [token for id in prompt for token in ([IMAGE_PLACEHOLDER] * num_image_tokens if id < 0 else [id])]
        for prompt in prompts
    ]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    is_image = ids == IMAGE_PLACEHOLDER
    return ids.masked_fill(is_image, 0), is_image, mask


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
