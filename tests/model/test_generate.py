"""Captions by greedy generation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llava_recipes.model.assemble import Assembled, assemble
from llava_recipes.model.forward import crop_features, embed_prompt, stock_forward
from llava_recipes.model.generate import Decoding, continue_prompts, embed_with_pictures, evaluating
from tests.model.plans import GOLDEN, plan_of

PLAN = plan_of(init_from=GOLDEN / "06_stage1" / "base" / "mm_projector.bin")


def caption(
    assembled: Assembled, pictures: Sequence[Tensor], prompts: Sequence[Sequence[int]], *, max_new_tokens: int
) -> list[str]:
    """What is said after each prompt, one picture of each that has a place for one."""
    model, seen = assembled.model, iter(pictures)
    with evaluating(model):
        embedded = [embed_with_pictures(model, ids, [next(seen)] if -200 in ids else []) for ids in prompts]
    return continue_prompts(model, assembled.tokenizer, embedded, decoding=Decoding(max_new_tokens), stops=())


def test_captions_are_the_most_likely_tokens_one_by_one() -> None:
    assembled = assemble(PLAN, dtype=torch.float32)
    model, tokenizer = assembled.model, assembled.tokenizer
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    prompts = [[1, -200], [1, 300, 301, -200, 302]]
    model.train()
    model.model.vision_tower.eval()
    with torch.no_grad():
        pictures = list(crop_features(model, pixels))
    said = caption(assembled, pictures, prompts, max_new_tokens=6)
    assert model.training and not model.model.vision_tower.training
    model.eval()
    for text, pixel, prompt in zip(said, pixels, prompts, strict=True):
        flat = [token for id in prompt for token in ([-200] * assembled.num_image_tokens if id < 0 else [id])]
        ids = torch.tensor([flat])
        is_image = ids == -200
        with torch.no_grad():
            embeds = embed_prompt(model, ids.masked_fill(is_image, 0), is_image, pixel[None], None)
            new: list[int] = []
            for _ in range(6):
                with stock_forward(model):
                    choice = int(model(inputs_embeds=embeds).logits[0, -1].argmax())
                if choice == tokenizer.eos_token_id:
                    break
                new.append(choice)
                embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([[choice]]))], dim=1)
        assert text == tokenizer.decode(new, skip_special_tokens=True).strip()


def test_prompts_without_pictures() -> None:
    assembled = assemble(PLAN, dtype=torch.float32)
    said = caption(assembled, [], [[1, 300, 301], [1]], max_new_tokens=3)
    assert len(said) == 2


def test_generate_is_called_as_ever() -> None:
    model = assemble(PLAN, dtype=torch.float32).model
    forward = model.forward
    new = model.generate(input_ids=torch.tensor([[1, 300]]), max_new_tokens=3, do_sample=False)
    assert new.shape[0] == 1 and new.shape[1] <= 5
    assert model.forward == forward
