"""The forward pass: the tower's features, the loss and its gradients, and exact rotary angles."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlavaForConditionalGeneration,
    SiglipVisionModel,
)

from llava_recipes.data.crops import ImageLayout
from llava_recipes.data.dataset import StageDataset
from llava_recipes.errors import RecipeError
from llava_recipes.model.assemble import Assembled, assemble
from llava_recipes.model.forward import (
    embed_prompt,
    keep_angles_exact,
    stock_forward,
    tower_features,
    training_forward,
    trains_in_vain,
)
from llava_recipes.model.lora import freeze_model
from llava_recipes.plan.types import DataPlan, SourcePlan
from llava_recipes.versions import recompute_activations
from tests.lenient import LenientCollator
from tests.model.plans import CLIP, GOLDEN, INLINE_CLIP, plan_of

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


def test_token_normalization_divides_the_sum() -> None:
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


VISION = GOLDEN / "05_vision"
SAMPLES = json.loads((VISION / "vision.json").read_text())["samples"]
RECORDED = [sample for sample in SAMPLES if sample["tower_dtype"] == "float32" and "file" in sample]

INLINE_SIGLIP: dict[str, JsonValue] = {**INLINE_CLIP, "model_type": "siglip_vision_model"}


def test_there_are_figures_to_compare_with() -> None:
    assert len(RECORDED) == 12


@pytest.mark.parametrize("sample", RECORDED, ids=lambda sample: sample["file"])
def test_features_equal_the_original(sample: dict[str, JsonValue]) -> None:
    layer, feature = sample["mm_vision_select_layer"], sample["mm_vision_select_feature"]
    assert isinstance(layer, int) and feature in ("patch", "cls_patch")
    assembled = assemble(plan_of(select_layer=layer, select_feature=feature), dtype=torch.float32)  # type: ignore[arg-type]
    pixels = torch.from_numpy(np.load(VISION / "pixels.npy"))
    with torch.no_grad():
        features = tower_features(assembled.model.model.vision_tower, assembled.model.config, pixels)
    expected = torch.from_numpy(np.load(VISION / str(sample["file"])))
    assert features.shape[1] == assembled.num_image_tokens
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", [-4, -2, -1, 0, 3])
@pytest.mark.parametrize("config", [INLINE_CLIP, INLINE_SIGLIP], ids=["clip", "siglip"])
def test_features_equal_the_stock_hidden_states(config: dict[str, JsonValue], layer: int) -> None:
    model = assemble(
        plan_of(tower_config=config, select_layer=layer, projector="linear"), dtype=torch.float32
    ).model
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = tower_features(model.model.vision_tower, model.config, pixels)
        expected = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[layer]
    dropped = 1 if config is INLINE_CLIP else 0
    assert torch.equal(features, expected[:, dropped:])


@pytest.mark.parametrize("layer", [-5, 4])
def test_a_layer_the_tower_does_not_have_is_refused(layer: int) -> None:
    with pytest.raises(RecipeError) as caught:
        assemble(plan_of(select_layer=layer), dtype=torch.float32)
    assert caught.value.problems[0].path == ("model", "vision_tower", "select_layer")


def test_class_token_of_a_tower_without_one_is_refused() -> None:
    with pytest.raises(RecipeError, match="no class token"):
        assemble(plan_of(tower_config=INLINE_SIGLIP, select_feature="cls_patch"), dtype=torch.float32)


def test_the_vision_half_of_a_full_clip_checkpoint(tmp_path: object) -> None:
    import shutil
    from pathlib import Path

    folder = Path(str(tmp_path))
    text = CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50
    )
    vision = CLIPVisionConfig.from_pretrained(CLIP)
    from transformers import CLIPConfig

    full = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    full.save_pretrained(folder)
    shutil.copy(CLIP / "preprocessor_config.json", folder)
    tower = assemble(plan_of(tower=folder), dtype=torch.float32).model.model.vision_tower
    expected = full.vision_model.state_dict()
    state = tower.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_siglip_folder_as_tower(tmp_path: object) -> None:
    from pathlib import Path

    from transformers import SiglipImageProcessorPil, SiglipVisionConfig

    folder = Path(str(tmp_path))
    torch.manual_seed(0)
    values = {key: value for key, value in INLINE_SIGLIP.items() if key != "model_type"}
    tower = SiglipVisionModel(SiglipVisionConfig(**values))
    tower.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
    assembled = assemble(plan_of(tower=folder), dtype=torch.float32)
    assert assembled.num_image_tokens == 4
    state = assembled.model.model.vision_tower.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tower.state_dict().items())


def test_the_vision_half_of_a_siglip_2_folder(tmp_path: object) -> None:
    """google/siglip2-so400m-patch14-384 and its like: a whole pair, and no word of a second version in it."""
    from pathlib import Path

    from transformers import SiglipConfig, SiglipModel

    folder = Path(str(tmp_path))
    torch.manual_seed(0)
    vision = {key: value for key, value in INLINE_SIGLIP.items() if key != "model_type"}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    pair = SiglipModel(SiglipConfig(text_config={**text, "vocab_size": 50}, vision_config=vision))
    pair.save_pretrained(folder)
    size = {"height": 28, "width": 28}
    processor = {"image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor"}
    settings = {**processor, "size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert json.loads((folder / "config.json").read_text())["model_type"] == "siglip"
    assembled = assemble(plan_of(tower=folder), dtype=torch.float32)
    assert assembled.num_image_tokens == 4
    state, expected = assembled.model.model.vision_tower.state_dict(), pair.vision_model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    image = np.full((40, 60, 3), 255, dtype=np.uint8)
    pixels = assembled.image_processor(image, input_data_format="channels_last", return_tensors="np")
    assert pixels["pixel_values"][0].shape == (3, 28, 28)
    np.testing.assert_allclose(pixels["pixel_values"][0], 1.0)


def test_a_tower_of_any_size_is_not_taken_for_one_of_a_fixed_size(tmp_path: object) -> None:
    from pathlib import Path

    from transformers import Siglip2Config

    Siglip2Config().save_pretrained(str(tmp_path))
    with pytest.raises(RecipeError, match="a vision tower must be a CLIP or SigLIP model") as caught:
        assemble(plan_of(tower=Path(str(tmp_path))), dtype=torch.float32)
    assert caught.value.problems[0].hint == (
        "siglip2 takes images of any size; one of a fixed size is google/siglip2-so400m-patch14-384"
    )


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("projector", False),
        ("vision_tower.encoder.layers.0", False),
        ("vision_tower", True),
        ("vision_tower.post_layernorm", True),
    ],
)
def test_what_trains_behind_the_selected_layer_is_found(trainable: str, expected: bool) -> None:
    model = assemble(plan_of(), dtype=torch.float32).model
    freeze_model(model, freeze="all", trainable=(trainable,))
    assert trains_in_vain(model) is expected
    last = assemble(plan_of(select_layer=-1), dtype=torch.float32).model
    freeze_model(last, freeze="all", trainable=("vision_tower.encoder",))
    assert not trains_in_vain(last)


MATMUL = torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def usual_precision() -> Iterator[None]:
    yield
    torch.backends.fp32_precision = "none"  # type: ignore[attr-defined]
    MATMUL.fp32_precision = "none"


class Angles(nn.Module):
    """Writes down what float32 matrix products may do meanwhile."""

    inv_freq: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", torch.ones(2))
        self.seen: list[str] = []

    def forward(self, fail: bool = False) -> None:
        self.seen.append(MATMUL.fp32_precision)
        if fail:
            raise ValueError("fails")


@pytest.mark.parametrize(("general", "own"), [("tf32", None), ("none", "tf32"), ("tf32", "ieee")])
def test_tf32_is_off_for_the_time_of_the_angles(general: str, own: str | None) -> None:
    torch.backends.fp32_precision = general  # type: ignore[attr-defined]
    if own is not None:
        MATMUL.fp32_precision = own
    angles = Angles()
    keep_angles_exact(nn.Sequential(angles))
    before = MATMUL.fp32_precision
    angles()
    with pytest.raises(ValueError, match="fails"):
        angles(fail=True)
    assert angles.seen == ["ieee", "ieee"]
    assert MATMUL.fp32_precision == before
    if own is None:
        # What was inherited still is.
        torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
        assert MATMUL.fp32_precision == "ieee"


def test_an_assembled_model_does_so() -> None:
    plan = plan_of(init_from=GOLDEN / "03_splice" / "mm_projector.safetensors", start_end=True)
    model = assemble(plan, dtype=torch.float32).model
    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    seen = []
    rotary = model.model.language_model.rotary_emb
    rotary.register_forward_pre_hook(lambda *_: seen.append(MATMUL.fp32_precision))
    model.model.language_model(input_ids=torch.tensor([[5, 6, 7]]))
    assert seen == ["ieee"]
    assert MATMUL.fp32_precision == "tf32"
