"""Answers: prompts left open, what ends them, several at once, and streamed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from llava_recipes.data.dataset import StageDataset
from llava_recipes.data.prompts import IGNORED
from llava_recipes.model.assemble import Assembled, assemble
from llava_recipes.model.forward import crop_features, embed_prompt, stock_forward
from llava_recipes.model.generate import (
    Answerer,
    Decoding,
    Prompt,
    continue_prompts,
    embed_with_images,
    evaluating,
)
from llava_recipes.plan.types import DataPlan, SourcePlan
from llava_recipes.templates import Turn
from tests.images import read_image
from tests.model.plans import GOLDEN, plan_of

IMAGES = GOLDEN / "fixtures" / "images"
GREEDY = Decoding(max_new_tokens=12)
QUESTIONS = ("What is this?", "<image>\nWhat is this?", "<image>\n<image>\nWhich of the two is red, and why?")


def data_plan(template: Literal["plain", "v1"]) -> DataPlan:
    source = SourcePlan(
        annotations=str(GOLDEN / "fixtures" / "stage1.json"), images=str(IMAGES), num_samples=None
    )
    return DataPlan(
        template=template,
        sources=(source,),
        num_samples=None,
        image_aspect_ratio="pad",
        max_length=2048,
        shuffle=True,
        group_by="none",
        on_bad_image="error",
        lazy_preprocess=True,
    )


@pytest.fixture(scope="module")
def assembled() -> Assembled:
    return assemble(
        plan_of(init_from=GOLDEN / "06_stage1" / "base" / "mm_projector.bin"), dtype=torch.float32
    )


def prompt(answerer: Answerer, text: str, images: tuple[str, ...] = ("rgb_0.jpg", "rgb_wide.jpg")) -> Prompt:
    shown = images[: text.count("<image>")]
    prepared = answerer.look([answerer.prepare(read_image(str(IMAGES), name)) for name in shown])
    return Prompt(answerer.prompt_ids([Turn("human", text)]), tuple(prepared))


@pytest.mark.parametrize("template", ["plain", "v1"])
def test_a_prompt_is_what_training_put_before_the_answer(
    assembled: Assembled, template: Literal["plain", "v1"]
) -> None:
    data = data_plan(template)
    answerer = Answerer(assembled, data, start_end=False)
    dataset = StageDataset(data, assembled.tokenizer, assembled.image_processor, start_end=False)
    num_compared = 0
    for index in range(len(dataset)):
        record = dataset.records[index]
        if len(record.turns) != 2:
            continue
        sample = dataset.read(index)
        before = sample.input_ids[sample.labels == IGNORED].tolist()
        assert list(answerer.prompt_ids(record.turns[:1])) == before
        num_compared += 1
    assert num_compared > 5


def test_what_ends_an_answer(assembled: Assembled) -> None:
    assert Answerer(assembled, data_plan("plain"), start_end=False).stops == ("\n",)
    assert Answerer(assembled, data_plan("v1"), start_end=False).stops == ("</s>",)


def test_answers_in_a_batch_are_those_of_one_by_one(assembled: Assembled) -> None:
    answerer = Answerer(assembled, data_plan("v1"), start_end=False)
    prompts = [prompt(answerer, question) for question in QUESTIONS]
    alone = [answerer.answer([each], GREEDY)[0] for each in prompts]
    assert answerer.answer(prompts, GREEDY) == alone
    assert len(set(alone)) > 1


def test_an_answer_aloud_is_the_answer(assembled: Assembled) -> None:
    answerer = Answerer(assembled, data_plan("v1"), start_end=False)
    for question in QUESTIONS:
        pieces: list[str] = []
        said = answerer.answer([prompt(answerer, question)], GREEDY, listen=pieces.append)
        assert said == ["".join(pieces)] and len(pieces) > 1


def test_an_answer_ends_before_a_stop(assembled: Assembled) -> None:
    answerer = Answerer(assembled, data_plan("v1"), start_end=False)
    asked = [prompt(answerer, question) for question in QUESTIONS[:2]]
    whole = answerer.answer(asked, GREEDY)
    stop = whole[0][4:7]
    answerer.stops = (stop,)
    pieces: list[str] = []
    answerer.answer(asked[:1], GREEDY, listen=pieces.append)
    cut = answerer.answer(asked, GREEDY)
    assert cut == [text.partition(stop)[0].strip() for text in whole]
    assert "".join(pieces) == cut[0]


def test_nothing_is_drawn_and_no_mode_changes_with_temperature_0(assembled: Assembled) -> None:
    answerer = Answerer(assembled, data_plan("v1"), start_end=False)
    assembled.model.train()
    assembled.model.model.vision_tower.eval()
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    answerer.answer([prompt(answerer, QUESTIONS[1])], GREEDY)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), str(np.random.get_state()))
    assert assembled.model.training and not assembled.model.model.vision_tower.training
    assembled.model.eval()


def test_what_is_drawn_follows_seed_and_top_p(assembled: Assembled) -> None:
    answerer = Answerer(assembled, data_plan("v1"), start_end=False)
    asked = [prompt(answerer, QUESTIONS[1])]

    def drawn(seed: int, top_p: float) -> list[str]:
        torch.manual_seed(seed)
        return answerer.answer(asked, Decoding(12, temperature=2.0, top_p=top_p))

    assert drawn(1, 1.0) == drawn(1, 1.0) != drawn(2, 1.0)
    # Only the most likely token is left to draw from.
    assert drawn(1, 1e-6) == answerer.answer(asked, GREEDY)


@pytest.mark.parametrize(
    ("num_tokens", "images", "message"),
    [
        (2048 - 12, (16,), None),
        (2048 - 11, (16,), "the prompt leaves too little room for the answer"),
        (2048, (16,), "the prompt is too long for the model's context"),
        (3000, (1024, 1024), "too many images for the model's context"),
    ],
)
def test_what_fits_into_the_context(
    assembled: Assembled, num_tokens: int, images: tuple[int, ...], message: str | None
) -> None:
    answerer = Answerer(assembled, data_plan("v1"), start_end=False)
    assert answerer.max_positions == 2048
    problem = answerer.does_not_fit(num_tokens, images, Decoding(12))
    assert (problem and problem.message) == message


def test_an_answer_may_end_with_the_context(assembled: Assembled, monkeypatch: pytest.MonkeyPatch) -> None:
    answerer = Answerer(assembled, data_plan("v1"), start_end=False)
    asked = [prompt(answerer, question) for question in QUESTIONS[:2]]
    long = Decoding(12, must_fit=False)
    whole = answerer.answer(asked, long)
    lengths = [answerer.num_tokens(each.input_ids, [len(image) for image in each.images]) for each in asked]
    monkeypatch.setattr(Answerer, "max_positions", max(lengths) + 3)
    assert answerer.does_not_fit(max(lengths), [], Decoding(12)) is not None
    assert answerer.does_not_fit(max(lengths), [], long) is None
    cut = answerer.answer(asked, long)
    assert cut == [answerer.answer([each], long)[0] for each in asked]
    longest = lengths.index(max(lengths))
    assert whole[longest].startswith(cut[longest]) and len(cut[longest]) < len(whole[longest])


PLAN = plan_of(init_from=GOLDEN / "06_stage1" / "base" / "mm_projector.bin")


def caption(
    assembled: Assembled, images: Sequence[Tensor], prompts: Sequence[Sequence[int]], *, max_new_tokens: int
) -> list[str]:
    """What is said after each prompt, one image of each that has a place for one."""
    model, seen = assembled.model, iter(images)
    with evaluating(model):
        embedded = [embed_with_images(model, ids, [next(seen)] if -200 in ids else []) for ids in prompts]
    return continue_prompts(model, assembled.tokenizer, embedded, decoding=Decoding(max_new_tokens), stops=())


def test_captions_are_the_most_likely_tokens_one_by_one() -> None:
    assembled = assemble(PLAN, dtype=torch.float32)
    model, tokenizer = assembled.model, assembled.tokenizer
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    prompts = [[1, -200], [1, 300, 301, -200, 302]]
    model.train()
    model.model.vision_tower.eval()
    with torch.no_grad():
        images = list(crop_features(model, pixels))
    said = caption(assembled, images, prompts, max_new_tokens=6)
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


def test_prompts_without_images() -> None:
    assembled = assemble(PLAN, dtype=torch.float32)
    said = caption(assembled, [], [[1, 300, 301], [1]], max_new_tokens=3)
    assert len(said) == 2


def test_generate_is_called_as_ever() -> None:
    model = assemble(PLAN, dtype=torch.float32).model
    forward = model.forward
    new = model.generate(input_ids=torch.tensor([[1, 300]]), max_new_tokens=3, do_sample=False)
    assert new.shape[0] == 1 and new.shape[1] <= 5
    assert model.forward == forward
