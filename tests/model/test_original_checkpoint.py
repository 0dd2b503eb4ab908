"""A LLaVA checkpoint in the original's layout, given as the language model: its projector comes with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_recipes.data.tokenizer import load_tokenizer
from llava_recipes.errors import RecipeError
from llava_recipes.model.assemble import assemble
from llava_recipes.model.weight_names import canonical_parameters
from llava_recipes.plan.families import is_original_llava, language_part
from llava_recipes.plan.model import plan_model
from llava_recipes.plan.types import LanguageModelPlan
from llava_recipes.recipe.schema import ImageTokens, Model
from tests.golden_runs import ours_for, run_folder
from tests.model.plans import CLIP, GOLDEN, VICUNA, plan_of

CHECKPOINT = run_folder("full")


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    """The recorded run's result as a folder, with the tokenizer of its language model."""
    folder = tmp_path / "llava"
    folder.mkdir()
    for file in VICUNA.glob("*token*"):
        shutil.copy(file, folder / file.name)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(CHECKPOINT / name, folder / name)
    return folder


def test_every_weight_is_the_checkpoints(llava: Path) -> None:
    plan = plan_of(language=llava)
    assembled = assemble(plan, dtype=torch.float32)
    theirs = {ours_for(name): tensor for name, tensor in load_file(CHECKPOINT / "model.safetensors").items()}
    tower = load_file(CLIP / "model.safetensors")
    for name, parameter in canonical_parameters(assembled.model).items():
        if name.startswith("vision_tower."):
            rest = name.removeprefix("vision_tower.")
            assert torch.equal(parameter, tower[f"vision_model.{rest}"]), name
        else:
            assert torch.equal(parameter, theirs[name]), name
    assert assembled.language_config["model_type"] == "llama"
    assert assembled.model.config.text_config.model_type == "llama"
    assert not hasattr(assembled.model.config.text_config, "mm_projector_type")


@pytest.mark.parametrize("model_type", ["llava", "llava_llama"])
def test_the_class_tells_the_language_model(model_type: str, llava: Path) -> None:
    """Older checkpoints have the model_type that transformers now gives to its own LLaVA."""
    config = json.loads((llava / "config.json").read_text()) | {"model_type": model_type}
    (llava / "config.json").write_text(json.dumps(config))
    assert is_original_llava(config)
    assert language_part(config)["model_type"] == "llama"
    assemble(plan_of(language=llava), dtype=torch.float32)


def test_its_tokenizer_and_sizes_are_read_from_it(llava: Path) -> None:
    source = str(llava)
    plan = LanguageModelPlan(source=source, revision=None, config=None, tokenizer=source, seed=0)
    tokens = ImageTokens.model_validate({})
    own = load_tokenizer(plan, tokens)
    vicuna = load_tokenizer(plan.model_copy(update={"tokenizer": str(VICUNA)}), tokens)
    text = "An image of  two cats.</s> And more"
    assert own(text)["input_ids"] == vicuna(text)["input_ids"]
    model = Model.model_validate_json(
        json.dumps({"language_model": source, "vision_tower": {"source": str(CLIP)}})
    )
    config, tower = (json.loads((folder / "config.json").read_text()) for folder in (llava, CLIP))
    planned = plan_model(model, language_config=config, vision_config=tower)
    built = canonical_parameters(assemble(plan_of(language=llava), dtype=torch.float32).model)
    assert planned.shapes == {name: tuple(parameter.shape) for name, parameter in built.items()}


def test_given_projector_weights_win(llava: Path) -> None:
    file = GOLDEN / "06_stage1" / "base" / "init.safetensors"
    assembled = assemble(plan_of(language=llava, init_from=file), dtype=torch.float32)
    given = load_file(file)["model.mm_projector.0.weight"]
    assert torch.equal(canonical_parameters(assembled.model)["projector.0.weight"], given)


def test_another_projector_is_refused(llava: Path) -> None:
    with pytest.raises(RecipeError, match="do not fit the recipe's model"):
        assemble(plan_of(language=llava, projector="linear"), dtype=torch.float32)


def test_a_checkpoint_without_its_projector_is_refused(llava: Path) -> None:
    kept = {
        name: tensor
        for name, tensor in load_file(llava / "model.safetensors").items()
        if "mm_projector" not in name
    }
    save_file(kept, llava / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match="do not fit the recipe's model"):
        assemble(plan_of(language=llava), dtype=torch.float32)


def test_a_language_model_is_left_as_it_is() -> None:
    config = json.loads((VICUNA / "config.json").read_text())
    assert not is_original_llava(config)
    assert language_part(config) is config
