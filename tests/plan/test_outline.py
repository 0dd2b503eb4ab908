from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_recipes.plan.families import LANGUAGE_DEFAULTS, LANGUAGE_MODELS, VISION_DEFAULTS, VISION_TOWERS
from llava_recipes.plan.outline import ConfigValueError, model_sizes, outline_model
from llava_recipes.versions import unnamed_config_keys

TINY: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 30,
    "patch_size": 14,
}
CLIP = {"model_type": "clip_vision_model", **TOWER}
SIGLIP = {"model_type": "siglip_vision_model", **TOWER}
LANGUAGES = [
    {"model_type": "llama", **TINY},
    {"model_type": "llama", **TINY, "attention_bias": True, "mlp_bias": True, "head_dim": 8},
    {"model_type": "llama", **TINY, "tie_word_embeddings": True, "num_key_value_heads": None},
    {"model_type": "mistral", **TINY},
    {"model_type": "mistral", **TINY, "head_dim": 24},
    {"model_type": "qwen2", **TINY},
    {"model_type": "qwen2", **TINY, "tie_word_embeddings": True},
    {"model_type": "qwen3", **TINY},
    {"model_type": "qwen3", **TINY, "head_dim": 8, "attention_bias": True, "tie_word_embeddings": True},
]
TOWERS = [CLIP, {**CLIP, "num_channels": 1}, SIGLIP, {**SIGLIP, "vision_use_head": False}]


def parameter_shapes(**configs: Any) -> dict[str, tuple[int, ...]] | None:
    outline = outline_model(**configs)
    return None if outline is None else outline.shapes


def build_shapes(language: dict[str, Any], vision: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the model that transformers builds, without its projector, by canonical name."""
    language, vision = dict(language), dict(vision)
    config = LlavaConfig(
        text_config=AutoConfig.for_model(language.pop("model_type"), **language),
        vision_config=AutoConfig.for_model(vision.pop("model_type"), **vision),
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    shapes = {name.removeprefix("model."): tuple(value.shape) for name, value in model.named_parameters()}
    shapes = {
        name.replace("vision_tower.vision_model.", "vision_tower."): shape for name, shape in shapes.items()
    }
    return {name: shape for name, shape in shapes.items() if not name.startswith("multi_modal_projector.")}


def without_projector(shapes: dict[str, tuple[int, ...]] | None) -> dict[str, tuple[int, ...]]:
    assert shapes is not None
    return {name: shape for name, shape in shapes.items() if not name.startswith("projector.")}


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda config: "-".join(map(str, config.values())))
def test_language_models_are_those_that_transformers_builds(language: dict[str, Any]) -> None:
    counted = parameter_shapes(language=language, vision=CLIP, projector_type="mlp2x_gelu")
    assert without_projector(counted) == build_shapes(language, CLIP)


@pytest.mark.parametrize("vision", TOWERS, ids=lambda config: "-".join(map(str, config.values())))
def test_vision_towers_are_those_that_transformers_builds(vision: dict[str, Any]) -> None:
    counted = parameter_shapes(language=LANGUAGES[0], vision=vision, projector_type="mlp2x_gelu")
    assert without_projector(counted) == build_shapes(LANGUAGES[0], vision)


@pytest.mark.parametrize("vision", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_a_nested_vision_config_is_found(vision: dict[str, Any]) -> None:
    pair = {"model_type": vision["model_type"].split("_")[0], "vision_config": {**vision}, "text_config": {}}
    del pair["vision_config"]["model_type"]
    assert parameter_shapes(language=LANGUAGES[0], vision=pair, projector_type="linear") == parameter_shapes(
        language=LANGUAGES[0], vision=vision, projector_type="linear"
    )


@pytest.mark.parametrize("model_type", [*LANGUAGE_DEFAULTS, *VISION_DEFAULTS])
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    defaults = (LANGUAGE_DEFAULTS | VISION_DEFAULTS)[model_type]  # type: ignore[operator]
    config = AutoConfig.for_model(model_type)
    for key, value in defaults.items():
        if key in unnamed_config_keys(model_type) and not hasattr(config, key):
            continue
        theirs = getattr(config, key)
        if value is None:
            # transformers fills these in from other keys; so do we.
            value = {"num_key_value_heads": 32, "head_dim": theirs}[key]
        assert theirs == value, key


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_the_catalog_builds_whole_models(name: str) -> None:
    vision = VISION_TOWERS["openai/clip-vit-large-patch14-336"]
    counted = parameter_shapes(language=LANGUAGE_MODELS[name], vision=vision, projector_type="mlp2x_gelu")
    assert without_projector(counted) == build_shapes(dict(LANGUAGE_MODELS[name]), dict(vision))


@pytest.mark.parametrize(
    ("name", "total"),
    [
        # As published: 6.74 B, 13.0 B, 7.24 B, 7.62 B, 8.03 B, 1.24 B, 3.21 B, 0.6 B and 1.7 B parameters.
        ("lmsys/vicuna-7b-v1.5", 6_738_415_616),
        ("lmsys/vicuna-13b-v1.5", 13_015_864_320),
        ("mistralai/Mistral-7B-Instruct-v0.2", 7_241_732_096),
        ("Qwen/Qwen2-7B-Instruct", 7_615_616_512),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
    ],
)
def test_catalog_language_models_have_their_published_sizes(name: str, total: int) -> None:
    shapes = parameter_shapes(language=LANGUAGE_MODELS[name], vision=CLIP, projector_type="identity")
    assert shapes is not None
    roots = ("language_model.", "lm_head.")
    assert sum(math.prod(shape) for part, shape in shapes.items() if part.startswith(roots)) == total


@pytest.mark.parametrize(
    ("name", "total", "num_tokens"),
    [
        ("openai/clip-vit-large-patch14-336", 303_507_456, 576),
        ("openai/clip-vit-large-patch14", 303_179_776, 256),
        ("google/siglip-so400m-patch14-384", 428_225_600, 729),
        ("google/siglip2-so400m-patch14-384", 428_225_600, 729),
    ],
)
def test_catalog_towers_have_their_published_sizes(name: str, total: int, num_tokens: int) -> None:
    outline = outline_model(language=LANGUAGES[0], vision=VISION_TOWERS[name], projector_type="identity")
    assert outline is not None
    sizes = model_sizes(outline, select_feature="patch")
    assert sizes.modules[0].num_parameters == total
    assert sizes.num_image_tokens == num_tokens


@pytest.mark.parametrize(
    ("size", "projector", "total"), [("13b", 31_467_520, 13_350_839_296), ("7b", 20_979_712, 7_062_902_784)]
)
def test_llava_v15_sizes(size: str, projector: int, total: int) -> None:
    outline = outline_model(
        language=LANGUAGE_MODELS[f"lmsys/vicuna-{size}-v1.5"],
        vision=VISION_TOWERS["openai/clip-vit-large-patch14-336"],
        projector_type="mlp2x_gelu",
    )
    assert outline is not None
    sizes = model_sizes(outline, select_feature="patch")
    assert {part.name: part.num_parameters for part in sizes.modules}["projector"] == projector
    assert sizes.num_parameters == total
    assert model_sizes(outline, select_feature="cls_patch").num_image_tokens == 577


@pytest.mark.parametrize(
    ("projector_type", "expected"),
    [
        ("identity", {}),
        ("linear", {"projector.weight": (64, 32), "projector.bias": (64,)}),
        ("mlp1x_gelu", {"projector.0.weight": (64, 32), "projector.0.bias": (64,)}),
        (
            "mlp3x_gelu",
            {
                "projector.0.weight": (64, 32),
                "projector.0.bias": (64,),
                "projector.2.weight": (64, 64),
                "projector.2.bias": (64,),
                "projector.4.weight": (64, 64),
                "projector.4.bias": (64,),
            },
        ),
    ],
)
def test_projectors_are_numbered_as_in_the_original(projector_type: str, expected: object) -> None:
    shapes = parameter_shapes(language=LANGUAGES[0], vision=CLIP, projector_type=projector_type)
    assert shapes is not None
    assert {name: shape for name, shape in shapes.items() if name.startswith("projector.")} == expected


def test_unknown_types_are_not_guessed() -> None:
    assert parameter_shapes(language={"model_type": "gpt_neox"}, vision=CLIP, projector_type="linear") is None
    assert (
        parameter_shapes(language=LANGUAGES[0], vision={"model_type": "vit"}, projector_type="linear") is None
    )


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("hidden_size", "64", "language_model"),
        ("hidden_size", 0, "language_model"),
        ("num_hidden_layers", 2.5, "language_model"),
        ("num_attention_heads", 5, "language_model"),
        ("num_key_value_heads", 3, "language_model"),
        ("tie_word_embeddings", "yes", "language_model"),
        ("image_size", [30, 30], "vision_tower"),
        ("patch_size", True, "vision_tower"),
    ],
)
def test_values_that_build_no_model_are_named(key: str, value: Any, part: str) -> None:
    language = LANGUAGES[0] | ({key: value} if part == "language_model" else {})
    vision = CLIP | ({key: value} if part == "vision_tower" else {})
    with pytest.raises(ConfigValueError, match=key) as caught:
        parameter_shapes(language=language, vision=vision, projector_type="linear")
    assert (caught.value.key, caught.value.found, caught.value.part) == (key, value, part)
