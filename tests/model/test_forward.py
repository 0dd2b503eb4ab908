"""Training's forward: the original's embeddings and losses, and the stock forward's numbers."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import JsonValue
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from llava_recipes.data.crops import ImageLayout
from llava_recipes.data.dataset import StageDataset
from llava_recipes.errors import RecipeError
from llava_recipes.model.assemble import Assembled, assemble
from llava_recipes.model.forward import embed_prompt, stock_forward, training_forward
from llava_recipes.model.lora import freeze_model
from llava_recipes.plan.types import DataPlan, SourcePlan
from llava_recipes.versions import recompute_activations
from tests.lenient import LenientCollator
from tests.model.plans import GOLDEN, INLINE_CLIP, plan_of

FOLDER = GOLDEN / "03_splice"
FIXTURES = GOLDEN / "fixtures"
CASES = {case["case"]: case for case in json.loads((FOLDER / "splice.json").read_text())["cases"]}
WHOLE = (
    "right_padded",
    "right_padded_2",
    "all_text",
    "all_image",
    "single_image",
    "single_text",
    "left_padded",
)
CUT = ("truncated_40", "truncated_60", "truncated_5_before_image", "left_padded_truncated_60")

LLAMA: dict[str, JsonValue] = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
SLIDING: dict[str, JsonValue] = {**LLAMA, "model_type": "mistral", "sliding_window": 8}
QWEN: dict[str, JsonValue] = {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True}


@cache
def _golden() -> tuple[Assembled, StageDataset]:
    assembled = assemble(plan_of(init_from=FOLDER / "mm_projector.safetensors"), dtype=torch.float32)
    source = SourcePlan(
        annotations=str(FIXTURES / "stage2_clean.json"), images=str(FIXTURES / "images"), num_samples=None
    )
    data = DataPlan(
        template="v1",
        sources=(source,),
        num_samples=None,
        image_aspect_ratio="pad",
        max_length=2048,
        shuffle=False,
        group_by="none",
        on_bad_image="error",
        lazy_preprocess=True,
    )
    dataset = StageDataset(data, assembled.tokenizer, assembled.image_processor, start_end=False)
    return assembled, dataset


def _golden_batch(case: dict[str, Any]) -> dict[str, Tensor]:
    assembled, dataset = _golden()
    changes = case["config_changes"]
    side: Literal["left", "right"] = changes.get("tokenizer_padding_side", "right")
    return LenientCollator(
        layout=ImageLayout(assembled.num_image_tokens),
        max_length=changes.get("tokenizer_model_max_length", 2048),
        pad_token_id=0,
        padding_side=side,
    )([dataset[index] for index in case["indices"]])


@pytest.mark.parametrize("name", WHOLE + CUT)
def test_spliced_embeddings_equal_the_original(name: str) -> None:
    assembled, _ = _golden()
    batch = _golden_batch(CASES[name])
    with torch.no_grad():
        embeds = embed_prompt(
            assembled.model,
            batch["input_ids"],
            batch["is_image"],
            batch.get("pixel_values"),
            batch.get("feature_places"),
        )
    expected = torch.from_numpy(np.load(FOLDER / f"{name}.npy"))
    real = torch.tensor(CASES[name]["attention_mask"], dtype=torch.bool)
    assert torch.equal(batch["attention_mask"], real)
    assert batch["labels"].tolist() == CASES[name]["labels"]
    assert embeds.shape == expected.shape
    torch.testing.assert_close(embeds[real], expected[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", WHOLE)
def test_loss_equals_the_original(name: str) -> None:
    with torch.no_grad():
        output = _golden()[0].model(**_golden_batch(CASES[name]))
    assert output.loss.item() == pytest.approx(CASES[name]["loss"], rel=1e-5)
    assert output.logits is None
    assert output.num_label_tokens.item() == sum(
        label != -100 for row in CASES[name]["labels"] for label in row[1:]
    )


@pytest.mark.parametrize("name", ("truncated_40", "left_padded_truncated_60"))
def test_a_batch_that_teaches_nothing_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="no label tokens"):
        _golden()[0].model(**_golden_batch(CASES[name]))


def _small(language: dict[str, JsonValue], **kwargs: Any) -> LlavaForConditionalGeneration:
    plan = plan_of(language_config=language, tower_config=INLINE_CLIP, projector="linear", **kwargs)
    return assemble(plan, dtype=torch.float32).model


def _small_batch(*, padding: Literal["left", "right"] = "right", images: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    num_rows, width, lengths = 3, 20, (20, 13, 9)
    ids = torch.randint(3, 1000, (num_rows, width), generator=generator)
    position = torch.arange(width).expand(num_rows, width)
    mask = position < torch.tensor(lengths)[:, None]
    is_image = (position >= 1) & (position < 5) if images else torch.zeros_like(mask)
    labels = ids.masked_fill(~mask | (position < 7), -100)
    batch = {
        "input_ids": ids.masked_fill(is_image | ~mask, 0),
        "is_image": is_image,
        "labels": labels,
        "attention_mask": mask,
        "position_ids": position * mask,
    }
    if padding == "left":
        shifts = [width - length for length in lengths]
        batch = {
            name: torch.stack([row.roll(shift) for row, shift in zip(rows, shifts, strict=True)])
            for name, rows in batch.items()
        }
    if images:
        batch["pixel_values"] = torch.randn(num_rows, 3, 28, 28, generator=generator)
        batch["feature_places"] = torch.arange(4 * num_rows)
    return batch


def _stock_loss(model: LlavaForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    """The loss by transformers' language model with mask and position ids, all logits, all positions."""
    embeds = embed_prompt(
        model, batch["input_ids"], batch["is_image"], batch.get("pixel_values"), batch.get("feature_places")
    )
    with stock_forward(model):
        logits = model(
            inputs_embeds=embeds,
            attention_mask=batch["attention_mask"].long(),
            position_ids=batch["position_ids"],
        ).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("language", [LLAMA, SLIDING, QWEN], ids=["llama", "sliding", "tied"])
def test_loss_and_gradients_equal_the_stock_forward(
    language: dict[str, JsonValue], padding: Literal["left", "right"]
) -> None:
    model = _small(language)
    freeze_model(model, freeze="all", trainable=("projector",))
    batch = _small_batch(padding=padding)
    weight = model.model.multi_modal_projector.weight
    ours, stock = model(**batch).loss, _stock_loss(model, batch)
    (our_grad,) = torch.autograd.grad(ours, weight)
    (stock_grad,) = torch.autograd.grad(stock, weight)
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(our_grad, stock_grad, rtol=1e-4, atol=1e-6)


def test_right_padding_runs_without_a_mask_and_left_padding_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _small(LLAMA)
    seen: list[Tensor | None] = []
    body = model.model.language_model
    body.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    model(**_small_batch(padding="right"))
    model(**_small_batch(padding="left"))
    assert seen[0] is None and seen[1] is not None


def test_token_normalisation_divides_the_sum() -> None:
    model = _small(LLAMA)
    batch = _small_batch()
    output = model(**batch)
    total = output.loss * output.num_label_tokens
    torch.testing.assert_close(model(**batch, num_items_in_batch=50).loss, total / 50)
    torch.testing.assert_close(model(**batch, num_items_in_batch=torch.tensor(50)).loss, total / 50)


def test_without_labels_it_gives_all_logits() -> None:
    batch = _small_batch()
    del batch["labels"]
    output = _small(LLAMA)(**batch)
    assert output.loss is None and output.logits.shape == (3, 20, 1000)


def test_unknown_arguments_raise() -> None:
    with pytest.raises(TypeError, match="pixel_value"):
        _small(LLAMA)(**_small_batch(), pixel_value=None)


@pytest.mark.parametrize("trainable", [("projector",), ("vision_tower.encoder.layers.0",)])
def test_text_alone_reaches_what_trains_with_zeros(trainable: tuple[str, ...]) -> None:
    model = _small(LLAMA)
    decision = freeze_model(model, freeze="all", trainable=trainable)
    batch = _small_batch(images=False)
    loss = model(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss, _stock_loss(model, batch))
    grads = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert len(grads) == len(decision.trainable)
    assert all(grad is not None and not grad.any() for grad in grads)


def test_text_alone_leaves_the_tower_alone_when_the_language_model_trains() -> None:
    model = _small(LLAMA)
    freeze_model(model, freeze="all", trainable=("language_model",))
    ran: list[object] = []
    model.model.vision_tower.embeddings.register_forward_hook(lambda *_: ran.append(1))
    model(**_small_batch(images=False)).loss.backward()
    assert not ran


def test_a_frozen_tower_builds_no_graph_and_stops_at_its_layer() -> None:
    model = _small(LLAMA)
    freeze_model(model, freeze="all", trainable=("projector",))
    graphs: list[bool] = []
    layers = model.model.vision_tower.encoder.layers
    for layer in layers:
        layer.register_forward_hook(lambda _, __, output: graphs.append(output.requires_grad))
    model(**_small_batch())
    assert graphs == [False] * (len(layers) - 1)


def test_gradient_checkpointing_changes_no_number() -> None:
    grads = []
    for checkpointing in (False, True):
        model = _small(LLAMA)
        freeze_model(model, freeze="all", trainable=("projector",))
        model.train()
        if checkpointing:
            recompute_activations(model)
        model(**_small_batch()).loss.backward()
        grads.append(model.model.multi_modal_projector.weight.grad)
    assert torch.equal(*grads)


def test_autocast_and_bfloat16_weights() -> None:
    plan = plan_of(language_config=LLAMA, tower_config=INLINE_CLIP, projector="linear")
    exact = assemble(plan, dtype=torch.float32).model(**_small_batch()).loss
    model = assemble(plan, dtype=torch.bfloat16).model
    freeze_model(model, freeze="all", trainable=("projector",))
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.model.multi_modal_projector.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**_small_batch()).loss
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=2e-2, atol=0)
    torch.testing.assert_close(model(**_small_batch()).loss, exact, rtol=2e-2, atol=0)


def test_a_image_cut_in_the_middle_keeps_its_first_tokens() -> None:
    model = _small(LLAMA)
    batch = _small_batch()
    kept = torch.tensor([4, 2, 0])
    batch["is_image"] = batch["is_image"] & (torch.arange(20) < (kept + 1)[:, None])
    places = torch.tensor([0, 1, 2, 3, 4, 5])
    text = model.get_input_embeddings()(batch["input_ids"])
    embeds = embed_prompt(model, batch["input_ids"], batch["is_image"], batch["pixel_values"], places)
    features = model.model.multi_modal_projector(
        model.model.vision_tower(batch["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    )
    assert torch.equal(embeds[0, 1:5], features[0]) and torch.equal(embeds[1, 1:3], features[1, :2])
    assert torch.equal(embeds[2], text[2]) and torch.equal(embeds[1, 3:], text[1, 3:])


def test_placeholders_and_images_that_differ_in_number_raise() -> None:
    batch = _small_batch()
    batch["feature_places"] = torch.arange(11)
    with pytest.raises(ValueError, match="12 image placeholders, but 11 image tokens"):
        _small(LLAMA)(**batch)


def test_the_stock_forward_comes_back_after_a_copy() -> None:
    model = copy.deepcopy(_small(LLAMA))
    assert model.forward.__func__ is training_forward
    with stock_forward(model):
        assert model.forward.__func__ is LlavaForConditionalGeneration.forward
    assert model.forward.__func__ is training_forward and model.forward.__self__ is model
