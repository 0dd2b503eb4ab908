"""Images of any size through the model, against transformers' own LLaVA-NeXT on the same weights."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import JsonValue
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration

from llava_recipes.anyres import NEWLINE, MergeType, Size, usual_pinpoints
from llava_recipes.data.crops import ImageLayout, PreparedImage, prepare_image
from llava_recipes.data.dataset import Sample
from llava_recipes.data.prompts import IGNORED, IMAGE_ID
from llava_recipes.errors import RecipeError
from llava_recipes.export.to_hf import next_config, next_image_processor
from llava_recipes.model.assemble import Assembled, assemble
from llava_recipes.model.forward import crop_features, embed_prompt, image_features, stock_forward
from llava_recipes.model.generate import Answerer, embed_with_images
from llava_recipes.model.learned_rows import ImageNewline, load_newline
from llava_recipes.model.lora import freeze_model
from llava_recipes.model.weight_names import (
    canonical_name,
    canonical_parameters,
    original_name,
    transformers_name,
)
from llava_recipes.model.weights import load_trained, trainable_state, write_trained
from llava_recipes.plan.types import DataPlan, SourcePlan
from tests.lenient import LenientCollator
from tests.model.plans import INLINE_CLIP, plan_of

SIGLIP: dict[str, JsonValue] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    # 3 × 3 features a crop: an odd number of rows, as SigLIP's 27 are.
    "image_size": 24,
    "patch_size": 8,
    "vision_use_head": False,
}
TOWERS = {"clip": INLINE_CLIP, "siglip": SIGLIP}
SHAPES: tuple[Size, ...] = ((28, 28), (90, 30), (30, 97), (57, 56), (400, 9), (9, 400), (13, 11), (64, 48))


def data_plan(merge: MergeType = "spatial_unpad", pinpoints: tuple[Size, ...] | None = None) -> DataPlan:
    return DataPlan(
        template="plain",
        sources=(SourcePlan(annotations="a.json", images="i", num_samples=None),),
        num_samples=None,
        image_aspect_ratio="anyres",
        image_grid_pinpoints=pinpoints,
        mm_patch_merge_type=merge,
        max_length=2048,
        shuffle=False,
        group_by="none",
        on_bad_image="error",
        lazy_preprocess=True,
    )


@cache
def assembled_of(tower: str, select_feature: Literal["patch", "cls_patch"] = "patch") -> Assembled:
    plan = plan_of(tower_config=TOWERS[tower], select_feature=select_feature)
    return assemble(plan.model_copy(update={"image_newline": True}), dtype=torch.float32)


def drawn(size: Size, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def prepared(assembled: Assembled, size: Size, data: DataPlan, seed: int = 0) -> PreparedImage:
    return prepare_image(drawn(size, seed), assembled.image_processor, data)


def sample(index: int, images: tuple[PreparedImage, ...]) -> Sample:
    ids = [1, *(token for number in range(len(images)) for token in (IMAGE_ID, 20 + number)), 300, 301, 2]
    labels = [IGNORED] * (len(ids) - 3) + ids[-3:]
    return Sample(index, f"id{index}", torch.tensor(ids), torch.tensor(labels), images)


def batch_of(
    samples: list[Sample],
    layout: ImageLayout,
    max_length: int = 2048,
    side: Literal["left", "right"] = "right",
) -> dict[str, Tensor]:
    return LenientCollator(layout=layout, max_length=max_length, pad_token_id=0, padding_side=side)(samples)


def hugging_face(assembled: Assembled, data: DataPlan) -> LlavaNextForConditionalGeneration:
    """transformers' model of the same weights."""
    spread = assembled.image_layout(data).spread
    assert spread is not None
    config = next_config(assembled.model.config, spread)
    # An id that no prompt here contains: training never looks ours up.
    config.image_token_index = 999
    model = LlavaNextForConditionalGeneration(config)
    theirs = {
        name.replace("projector.0.", "projector.linear_1.")
        .replace("projector.2.", "projector.linear_2.")
        .replace("image_newline.weight", "image_newline"): tensor
        for name, tensor in assembled.model.state_dict().items()
    }
    model.load_state_dict(theirs, strict=True)
    return model.eval()


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("pinpoints", [None, ((2, 2), (1, 1), (4, 1), (3, 2))])
def test_logits_are_those_of_transformers(tower: str, pinpoints: tuple[Size, ...] | None) -> None:
    """Every shape of image, two in one sample, and a sample without any, in one batch."""
    assembled = assembled_of(tower)
    px = int(str(TOWERS[tower]["image_size"]))
    data = data_plan(pinpoints=pinpoints and tuple((x * px, y * px) for x, y in pinpoints))
    layout = assembled.image_layout(data)
    assert layout.spread is not None
    images = [drawn(size, seed) for seed, size in enumerate(SHAPES)]
    shown = [prepare_image(image, assembled.image_processor, data) for image in images]
    samples = [sample(0, (shown[0],)), sample(1, tuple(shown[1:3])), sample(2, ())]
    samples += [sample(index + 3, (each,)) for index, each in enumerate(shown[3:])]
    batch = batch_of(samples, layout)
    theirs = next_image_processor(assembled.image_processor, layout.spread)(images, return_tensors="pt")
    with torch.no_grad():
        ours = assembled.model(**{**batch, "labels": None}).logits
        model = hugging_face(assembled, data)
        expected = model(
            input_ids=batch["input_ids"].masked_fill(batch["is_image"], model.config.image_token_index),
            attention_mask=batch["attention_mask"].long(),
            pixel_values=theirs["pixel_values"],
            image_sizes=theirs["image_sizes"],
        ).logits
    real = batch["attention_mask"]
    assert real.sum() > 100
    torch.testing.assert_close(ours[real], expected[real], rtol=0, atol=1e-5)


def test_a_image_alone_has_the_features_that_it_has_in_a_batch() -> None:
    assembled, data = assembled_of("clip"), data_plan()
    layout = assembled.image_layout(data)
    images = [prepared(assembled, size, data, seed) for seed, size in enumerate(SHAPES[:4])]
    with torch.no_grad():
        together = image_features(assembled.model, images, layout)
        assert [len(each) for each in together] == [layout.num_tokens(each) for each in images]
        for each, features in zip(images, together, strict=True):
            (alone,) = image_features(assembled.model, [each], layout)
            torch.testing.assert_close(alone, features, rtol=0, atol=1e-6)
        assert image_features(assembled.model, [], layout) == []


def test_rows_end_with_the_newline_and_the_whole_comes_first() -> None:
    assembled, data = assembled_of("clip"), data_plan()
    layout = assembled.image_layout(data)
    wide = prepared(assembled, (56, 28), data)
    with torch.no_grad():
        (features,) = image_features(assembled.model, [wide], layout)
        crops = crop_features(assembled.model, wide.crops)
    newline = canonical_parameters(assembled.model)["image_newline"].detach()
    # 2 × 2 features a crop: the whole, then two rows across the two crops.
    rows = [crops[0], crops[1, :2], crops[2, :2], newline[None], crops[1, 2:], crops[2, 2:], newline[None]]
    assert torch.equal(features, torch.cat(rows))


@pytest.mark.parametrize("merge", ["flat", "spatial"])
def test_without_unpadding_every_feature_is_there_once(merge: MergeType) -> None:
    assembled, data = assembled_of("clip"), data_plan(merge)
    layout = assembled.image_layout(data)
    wide = prepared(assembled, (90, 30), data)
    with torch.no_grad():
        (features,) = image_features(assembled.model, [wide], layout)
        crops = crop_features(assembled.model, wide.crops).flatten(0, 1)
    assert sorted(features.tolist()) == sorted(crops.tolist())
    assert torch.equal(features, crops) == (merge == "flat")


def test_class_tokens_stay_in_flat_crops() -> None:
    assembled, data = assembled_of("clip", "cls_patch"), data_plan("flat")
    layout = assembled.image_layout(data)
    each = prepared(assembled, (30, 97), data)
    assert layout.num_tokens(each) == len(each.crops) * 5 == 4 * 5


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_keeps_the_first_tokens_of_each_image(side: Literal["left", "right"]) -> None:
    assembled, data = assembled_of("clip"), data_plan()
    layout = assembled.image_layout(data)
    images = tuple(prepared(assembled, size, data, seed) for seed, size in enumerate(SHAPES[:3]))
    samples = [sample(0, images[:2]), sample(1, images[2:])]
    whole = batch_of(samples, layout, side=side)
    longest = whole["input_ids"].shape[1]
    model = assembled.model

    def embedded(batch: dict[str, Tensor]) -> list[Tensor]:
        embeds = embed_prompt(
            model, batch["input_ids"], batch["is_image"], batch["pixel_values"], batch["feature_places"]
        )
        return [row[mask] for row, mask in zip(embeds, batch["attention_mask"], strict=True)]

    with torch.no_grad():
        expected = embedded(whole)
        for max_length in range(1, longest + 1):
            cut = embedded(batch_of(samples, layout, max_length=max_length, side=side))
            for row, full in zip(cut, expected, strict=True):
                torch.testing.assert_close(row, full[:max_length], rtol=0, atol=1e-6)


def test_gradients_reach_newline_projector_and_tower_as_in_transformers() -> None:
    assembled, data = assembled_of("clip"), data_plan()
    layout = assembled.image_layout(data)
    assert layout.spread is not None
    images = [drawn(size, seed) for seed, size in enumerate(SHAPES[:3])]
    shown = [prepare_image(image, assembled.image_processor, data) for image in images]
    batch = batch_of([sample(index, (each,)) for index, each in enumerate(shown)], layout)
    freeze_model(assembled.model, freeze="none", trainable=())
    model = hugging_face(assembled, data)
    theirs = next_image_processor(assembled.image_processor, layout.spread)(images, return_tensors="pt")
    assembled.model(**batch).loss.backward()
    model(
        input_ids=batch["input_ids"].masked_fill(batch["is_image"], model.config.image_token_index),
        attention_mask=batch["attention_mask"].long(),
        labels=batch["labels"],
        **theirs,
    ).loss.backward()
    ours = canonical_parameters(assembled.model)
    wanted, layer = dict(model.named_parameters()), "encoder.layers.0.mlp.fc1.weight"
    for name, other in (
        ("image_newline", "model.image_newline"),
        ("projector.0.weight", "model.multi_modal_projector.linear_1.weight"),
        ("projector.2.bias", "model.multi_modal_projector.linear_2.bias"),
        (f"vision_tower.{layer}", f"model.vision_tower.{layer}"),
    ):
        grad, expected = ours[name].grad, wanted[other].grad
        assert grad is not None and expected is not None and expected.any()
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)
    assembled.model.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    "trainable", [("image_newline",), ("projector",), ("image_newline", "language_model")]
)
def test_text_alone_reaches_the_newline_with_zeros(trainable: tuple[str, ...]) -> None:
    assembled = assembled_of("siglip")
    freeze_model(assembled.model, freeze="all", trainable=trainable)
    batch = batch_of([sample(0, ()), sample(1, ())], assembled.image_layout(data_plan()))
    assert "pixel_values" not in batch
    assembled.model(**batch).loss.backward()
    for name, parameter in canonical_parameters(assembled.model).items():
        if name.split(".")[0] in {"image_newline", "projector"} & set(trainable):
            assert parameter.grad is not None and not parameter.grad.any(), name
    assembled.model.zero_grad(set_to_none=True)


def test_a_square_stage_of_the_same_model_leaves_the_newline_alone() -> None:
    assembled = assembled_of("clip")
    square = data_plan().model_copy(update={"image_aspect_ratio": "square", "mm_patch_merge_type": "flat"})
    layout = assembled.image_layout(square)
    freeze_model(assembled.model, freeze="all", trainable=("image_newline", "projector"))
    batch = batch_of([sample(0, (prepared(assembled, (90, 30), square),))], layout)
    assert batch["feature_places"].tolist() == list(range(4))
    assembled.model(**batch).loss.backward()
    grads = {name: parameter.grad for name, parameter in canonical_parameters(assembled.model).items()}
    assert grads["image_newline"] is not None and not grads["image_newline"].any()
    assert grads["projector.0.weight"] is not None and grads["projector.0.weight"].any()
    assembled.model.zero_grad(set_to_none=True)


def test_the_newline_is_drawn_from_its_seed_alone() -> None:
    first, again, other = (ImageNewline(4096, seed=seed).weight.detach() for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.std().item() == pytest.approx(1 / 64, rel=0.05)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    ImageNewline(8, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_names_of_the_newline() -> None:
    assert "image_newline" in canonical_parameters(assembled_of("clip").model)
    assert canonical_name("model.image_newline.weight") == "image_newline"
    assert transformers_name("image_newline") == "model.image_newline.weight"
    assert original_name("image_newline") == "model.image_newline"


def test_a_trained_newline_is_written_and_laid_over_again(tmp_path: Path) -> None:
    model = assembled_of("clip").model
    freeze_model(model, freeze="all", trainable=("image_newline", "projector"))
    state = {name: tensor + 1 for name, tensor in trainable_state(model).items()}
    assert "image_newline" in state
    plan = plan_of(tower_config=INLINE_CLIP)
    fresh = assemble(plan.model_copy(update={"image_newline": True}), dtype=torch.float32).model
    load_trained(fresh, write_trained(state, tmp_path).parent)
    assert torch.equal(canonical_parameters(fresh)["image_newline"], state["image_newline"])
    without = assemble(plan, dtype=torch.float32).model
    assert not any("newline" in name for name, _ in without.named_parameters())
    with pytest.raises(RecipeError, match="it has no image_newline") as caught:
        load_trained(without, tmp_path)
    assert caught.value.problems[0].hint == "write `mm_patch_merge_type: spatial_unpad` under `data:`"


@pytest.mark.parametrize("name", ["model.image_newline", "image_newline"])
def test_a_whole_checkpoint_brings_its_newline(tmp_path: Path, name: str) -> None:
    plan = plan_of(tower_config=INLINE_CLIP).model_copy(update={"image_newline": True})
    model = assemble(plan, dtype=torch.float32).model
    values = torch.arange(32.0)
    save_file({name: values}, tmp_path / "model.safetensors")
    load_newline(model, tmp_path)
    assert torch.equal(canonical_parameters(model)["image_newline"], values)
    save_file({name: values[:5].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(RecipeError, match=r"newline of a checkpoint does not fit"):
        load_newline(model, tmp_path)


def test_generation_goes_by_transformers_own_forward() -> None:
    assembled, data = assembled_of("clip"), data_plan()
    layout = assembled.image_layout(data)
    batch = batch_of([sample(0, (prepared(assembled, (64, 48), data),))], layout)
    with torch.no_grad():
        embeds = embed_prompt(
            assembled.model,
            batch["input_ids"],
            batch["is_image"],
            batch["pixel_values"],
            batch["feature_places"],
        )
        with stock_forward(assembled.model):
            stock = assembled.model(inputs_embeds=embeds).logits
        ours = assembled.model(**{**batch, "labels": None}).logits
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-5)


def test_pinpoints_that_no_recipe_names_are_the_towers_five() -> None:
    layout = assembled_of("clip").image_layout(data_plan())
    assert layout.spread is not None and layout.spread.pinpoints == usual_pinpoints(28)
    places = layout.places(PreparedImage(torch.zeros(3, 3, 28, 28), (28, 56)))
    assert places.tolist()[-1] == NEWLINE
    assert dataclasses.replace(layout.spread, merge="flat").order((28, 56)) == tuple(range(12))


def test_questions_see_a_image_as_training_did() -> None:
    """Embeddings of a prompt with its image, by the answerer and by the collator's batch."""
    assembled, data = assembled_of("clip"), data_plan()
    answerer = Answerer(assembled, data, start_end=False)
    shown = answerer.prepare(drawn((64, 48)))
    prompt = (1, IMAGE_ID, 20)
    (seen,) = answerer.look([shown])
    assert shown.num_tokens == len(seen) == 4 + 4 * 5
    assert answerer.least_image_tokens == 4
    ids = torch.tensor(prompt)
    row = Sample(0, "", ids, ids.masked_fill(ids == IMAGE_ID, IGNORED), (shown.prepared,))
    batch = batch_of([row], assembled.image_layout(data))
    with torch.no_grad():
        embedded = embed_with_images(assembled.model, prompt, [seen])
        trained = embed_prompt(
            assembled.model,
            batch["input_ids"],
            batch["is_image"],
            batch["pixel_values"],
            batch["feature_places"],
        )
    torch.testing.assert_close(embedded, trained[0], rtol=0, atol=1e-6)
