"""Tower features are the original's, and those that transformers computes with all layers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pydantic import JsonValue
from transformers import CLIPModel, CLIPTextConfig, CLIPVisionConfig, SiglipVisionModel

from llava_recipes.errors import RecipeError
from llava_recipes.model.assemble import assemble
from llava_recipes.model.forward import tower_features, trains_in_vain
from llava_recipes.model.lora import freeze_model
from tests.model.plans import CLIP, GOLDEN, INLINE_CLIP, plan_of

FOLDER = GOLDEN / "05_vision"
SAMPLES = json.loads((FOLDER / "vision.json").read_text())["samples"]
RECORDED = [sample for sample in SAMPLES if sample["tower_dtype"] == "float32" and "file" in sample]

INLINE_SIGLIP: dict[str, JsonValue] = {**INLINE_CLIP, "model_type": "siglip_vision_model"}


def test_there_are_figures_to_compare_with() -> None:
    assert len(RECORDED) == 12


@pytest.mark.parametrize("sample", RECORDED, ids=lambda sample: sample["file"])
def test_features_equal_the_original(sample: dict[str, JsonValue]) -> None:
    layer, feature = sample["mm_vision_select_layer"], sample["mm_vision_select_feature"]
    assert isinstance(layer, int) and feature in ("patch", "cls_patch")
    assembled = assemble(plan_of(select_layer=layer, select_feature=feature), dtype=torch.float32)  # type: ignore[arg-type]
    pixels = torch.from_numpy(np.load(FOLDER / "pixels.npy"))
    with torch.no_grad():
        features = tower_features(assembled.model.model.vision_tower, assembled.model.config, pixels)
    expected = torch.from_numpy(np.load(FOLDER / str(sample["file"])))
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
