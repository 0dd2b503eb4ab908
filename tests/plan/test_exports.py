"""What exports refuse is one rule: reported before the training, and only where it's true."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava_recipes.errors import Problem
from llava_recipes.plan.compile import Facts, compile_recipe
from llava_recipes.plan.exports import (
    TARGETS,
    ExportFacts,
    Target,
    besides_the_head,
    refusals,
    unread_by_original,
    way_out,
)
from llava_recipes.recipe.load import load_source
from llava_recipes.recipe.schema import Recipe
from llava_recipes.recipe.writer import write_resolved
from llava_recipes.runner.facts import compile_loaded
from tests.plan.recipes import stage_values

ROOT = Path(__file__).parents[2]
GALLERY = [file for file in sorted((ROOT / "recipes").rglob("*.yaml")) if file.parent.name != "base"]

LLAVA_15 = ExportFacts(
    language_type="llama",
    head="",
    tokenizer="sentencepiece",
    tower_type="clip_vision_model",
    tower_activation="quick_gelu",
    select_feature="patch",
    projector="mlp2x_gelu",
    image_aspect_ratio="pad",
    merge_type="flat",
    base_has_projector=False,
)
"""LLaVA-1.5, which every export takes."""

REFUSED: tuple[tuple[dict[str, Any], set[Target]], ...] = (
    ({"projector": "linear"}, {"hf", "gguf-ready"}),
    ({"projector": "identity"}, {"hf", "gguf-ready"}),
    ({"projector": "mlp3x_gelu"}, {"hf", "gguf-ready"}),
    ({"head": "soft cap 30.0", "language_type": "gemma2"}, {"hf"}),
    ({"tower_type": "siglip_vision_model", "tower_activation": "gelu_pytorch_tanh"}, {"gguf-ready"}),
    ({"tower_activation": "gelu_pytorch_tanh"}, {"gguf-ready"}),
    ({"tower_activation": "gelu"}, set()),
    ({"select_feature": "cls_patch"}, {"gguf-ready"}),
    ({"image_aspect_ratio": "anyres"}, {"hf", "gguf-ready"}),
    ({"image_aspect_ratio": "anyres", "merge_type": "spatial"}, {"hf", "gguf-ready"}),
    ({"image_aspect_ratio": "anyres", "merge_type": "spatial_unpad"}, set()),
    ({"tokenizer": "WordLevel"}, {"gguf-ready"}),
    ({"tokenizer": "Unigram"}, {"gguf-ready"}),
    ({"tokenizer": "BPE"}, set()),
    ({"tokenizer": "BPE", "language_type": "gemma2"}, {"gguf-ready"}),
    (dict.fromkeys(("language_type", "head", "tokenizer", "tower_type", "tower_activation")), set()),
)


@pytest.mark.parametrize(("change", "refused"), REFUSED)
def test_each_target_refuses_what_it_cannot_hold(change: dict[str, Any], refused: set[Target]) -> None:
    facts = replace(LLAVA_15, **change)
    assert {target for target in TARGETS if refusals(facts, target)} == refused
    for target in refused:
        assert all(refusal.found for refusal in refusals(facts, target))
    # An advice names the layouts that take the model, and none of those that refuse it.
    ways = {"hf", "llava"} - refused
    if len(ways) > 1 and unread_by_original(facts):
        # It takes the model, and the original doesn't read it.
        ways.remove("llava")
    assert {target for target in TARGETS if f"`--to {target}`" in way_out(facts)} == ways


def test_what_the_original_has_no_class_for() -> None:
    assert unread_by_original(LLAVA_15) == ()
    qwen = replace(LLAVA_15, language_type="qwen3", tower_type="siglip_vision_model")
    assert [reason.split()[-1] for reason in unread_by_original(qwen)] == ["qwen3", "siglip_vision_model"]


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"model_type": "llama"}, ""),
        ({"model_type": "gemma2"}, "soft cap 30.0"),
        ({"model_type": "gemma2", "final_logit_softcapping": None}, ""),
        ({"model_type": "cohere"}, "scale 0.0625"),
        ({"model_type": "granite", "logits_scaling": 8.0}, "scale 8.0"),
        ({"model_type": "granite"}, ""),
        ({"model_type": "phi"}, "bias"),
    ],
    ids=str,
)
def test_a_config_says_what_stands_besides_the_head(config: dict[str, Any], found: str) -> None:
    assert besides_the_head(config) == found


@pytest.mark.parametrize(
    "kind",
    [
        *("llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gemma", "gemma2", "cohere", "cohere2"),
        *("granite", "gptj", "codegen", "nanochat", "vaultgemma", "minicpm3", "gemma3_text", "olmo2"),
    ],
)
def test_heads_are_those_that_transformers_builds(kind: str) -> None:
    from transformers import AutoConfig

    from llava_recipes.errors import RecipeError
    from llava_recipes.model.head import causal_skeleton

    try:
        config = AutoConfig.for_model(kind, num_hidden_layers=1, vocab_size=40, pad_token_id=0)
        causal = causal_skeleton(config)
    except (ValueError, RecipeError):
        pytest.skip(f"this transformers has no {kind}")
    said = besides_the_head({"model_type": kind})
    assert said == besides_the_head(config.to_dict())
    assert (getattr(causal.get_output_embeddings(), "bias", None) is not None) == ("bias" in said)
    cap = getattr(config, "final_logit_softcapping", None)
    assert (cap is not None) == ("soft cap" in said)
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    assert (scale != 1.0) == ("scale" in said)


def warnings_of(
    values: dict[str, Any], *, language: dict[str, Any] | None = None, tokenizer: str | None = None
) -> list[Problem]:
    recipe = Recipe.model_validate_json(json.dumps(values))
    compiled = compile_recipe(
        recipe, world_size=1, facts=Facts(language_config=language, tokenizer=tokenizer)
    )
    found = [problem for problem in compiled.warnings if "export" in problem.message + str(problem.hint)]
    assert {problem.message for problem in found} <= set(compiled.plan.notes), "the plan says it too"
    for problem in found:
        assert problem.severity == "warning" and problem.hint and "\n" not in problem.message
    # The place is one that the recipe has.
    loaded = load_source(write_resolved(recipe), "recipe.yaml")
    assert all(problem.mark for problem in loaded.fail(*found).problems)
    return found


def recipe_of(**changes: Any) -> dict[str, Any]:
    values = stage_values(**changes)
    values["model"] = {
        "language_model": "lmsys/vicuna-7b-v1.5",
        "vision_tower": {"source": "openai/clip-vit-large-patch14-336"},
    }
    values["stages"][0]["data"]["max_length"] = 2048
    return values


def test_a_model_that_every_export_takes_has_no_warning() -> None:
    assert warnings_of(recipe_of(), tokenizer="sentencepiece") == []
    assert warnings_of(recipe_of()) == []


def test_a_warning_has_one_line_for_each_target_and_its_reasons() -> None:
    values = recipe_of()
    values["model"]["projector"] = {"type": "linear"}
    values["model"]["vision_tower"]["select_feature"] = "cls_patch"
    hf, gguf = warnings_of(values)
    assert hf.path == gguf.path == ("model", "projector", "type")
    assert hf.message.startswith("this model cannot be exported to `hf`: transformers' LLaVA has no place")
    assert gguf.message.startswith("this model cannot be exported to `gguf-ready`: ")
    assert "class token" in gguf.message and "class token" not in hf.message


def test_what_a_folder_holds_is_asked_too() -> None:
    """Gemma 2, whose sizes aren't counted here; its config is."""
    values = recipe_of()
    values["model"]["language_model"] = "./gemma"
    gemma = {"model_type": "gemma2"}
    (hf,) = warnings_of(values, language=gemma, tokenizer="sentencepiece")
    assert "`hf`" in hf.message and "plain linear head" in hf.message
    assert hf.path == ("model", "language_model")
    assert len(warnings_of(values, language=gemma, tokenizer="BPE")) == 2
    (gguf,) = warnings_of(recipe_of(), tokenizer="WordLevel")
    assert "this kind of tokenizer" in gguf.message


def lora_recipe(**changes: Any) -> dict[str, Any]:
    return recipe_of(**{"trainable": ["projector"], "lora": {"r": 8}, **changes})


@pytest.mark.parametrize(
    ("changes", "key", "reason"),
    [
        ({"lora": {"use_dora": True}}, "use_dora", "DoRA"),
        ({"lora": {"modules": ["language_model", "vision_tower"]}}, "modules", "vision tower"),
        ({"trainable": ["projector", "vision_tower"]}, "trainable", "vision tower"),
        ({"trainable": ["lm_head"]}, "trainable", "leaves a projector random"),
        (
            {"trainable": [], "lora": {"r": 8, "modules": ["projector", "language_model"]}},
            "trainable",
            "leaves a projector random",
        ),
    ],
    ids=str,
)
def test_adapters_that_the_original_cannot_read(changes: dict[str, Any], key: str, reason: str) -> None:
    (problem,) = warnings_of(lora_recipe(**changes))
    assert problem.path is not None and problem.path[-1] == key
    assert problem.message.startswith("the original LLaVA cannot read the adapters of stage")
    assert reason in problem.message


def test_adapters_that_the_original_reads_have_no_warning() -> None:
    assert warnings_of(lora_recipe()) == []
    # peft 0.8.2 knows it.
    assert warnings_of(lora_recipe(lora={"use_rslora": True})) == []


@pytest.mark.parametrize("file", GALLERY, ids=lambda file: file.stem)
def test_shipped_recipes_warn_of_two_targets_at_most(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from llava_recipes.recipe.load import load_recipe

    compiled = compile_loaded(load_recipe(str(file)), world_size=1)
    reported = {message.split("`")[1] for message in compiled.plan.notes if "cannot be exported" in message}
    model = compiled.plan.model
    if model.projector.type != "mlp2x_gelu":
        assert reported == {"hf", "gguf-ready"}
    elif "siglip" in str(model.vision_tower.source):
        assert reported == {"gguf-ready"}
    else:
        assert reported == set()
