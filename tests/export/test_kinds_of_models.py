"""Models of other kinds go the same ways: other towers, tokens of their own, checkpoints that others made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AddedToken,
    AutoConfig,
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from llava_recipes.data.prompts import IMAGE_ID, Prompts
from llava_recipes.errors import RecipeError
from llava_recipes.export.checking import QUESTION, expected_of, largest_difference
from llava_recipes.export.export import export_run, import_checkpoint
from llava_recipes.plan.exports import Target
from llava_recipes.templates import Turn
from llava_recipes.use.opened import OpenedRun, open_run
from tests.export import llama_cpp
from tests.golden_runs import run_folder
from tests.model.plans import INLINE_CLIP
from tests.tiny import FIXTURES
from tests.use.finished import conversations, finish, run_values

CPU = torch.device("cpu")
CLIP = FIXTURES / "tiny_clip"
SIGLIP = {**INLINE_CLIP, "model_type": "siglip_vision_model"}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
}


def opened(folder: Path, **options: Any) -> OpenedRun:
    return open_run(folder, **{"dtype": torch.float32, "device": CPU, **options})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP tower and a tied Llama with scaled positions, both drawn; an old tokenizer's spelling."""
    folder = tmp_path_factory.mktemp("drawn")
    values = run_values(folder / "run", data=conversations())
    values["model"] = {
        "language_model": {"config": LLAMA, "tokenizer": str(FIXTURES / "tiny_vicuna_legacy")},
        "vision_tower": {"config": SIGLIP},
    }
    finish(values, folder / "recipe.yaml")
    return folder / "run"


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All trains, the tower too, with tokens around every image."""
    folder = tmp_path_factory.mktemp("everything")
    values = run_values(folder / "run", data=conversations(), freeze="none")
    del values["stages"][0]["trainable"]
    values["model"]["image_tokens"] = {"start_end": True}
    finish(values, folder / "recipe.yaml")
    return folder / "run"


@pytest.mark.parametrize("layout", ["hf", "llava"])
@pytest.mark.parametrize("name", ["drawn", "everything"])
def test_a_round_trip_keeps_the_logits(
    name: str, layout: Target, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run = request.getfixturevalue(name)
    export_run(run, tmp_path / "out", to=layout, dtype=torch.bfloat16, max_bytes=10**9)
    import_checkpoint(tmp_path / "out", tmp_path / "back", dtype=None, max_bytes=10**9, base=None)
    rounded = expected_of(open_run(run, dtype=torch.bfloat16, device=CPU))
    back = expected_of(open_run(tmp_path / "back", device=CPU))
    assert back.input_ids.tolist() == rounded.input_ids.tolist()
    assert largest_difference(rounded, back.logits) <= 1e-5


def test_a_trained_tower_goes_with_the_model(everything: Path, tmp_path: Path) -> None:
    export_run(everything, tmp_path / "out", to="llava", dtype=None, max_bytes=10**9)
    written = load_file(tmp_path / "out" / "model.safetensors")
    name = "encoder.layers.0.mlp.fc1.weight"
    before = load_file(CLIP / "model.safetensors")[f"vision_model.{name}"]
    assert not torch.equal(written[f"model.vision_tower.vision_tower.vision_model.{name}"], before)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["mm_vision_tower"] == str(CLIP) and config["unfreeze_mm_vision_tower"] is True
    assert config["mm_use_im_start_end"] is True
    assert json.loads((tmp_path / "out" / "added_tokens.json").read_text()) == {
        "<im_start>": 1000,
        "<im_end>": 1001,
    }
    # Where transformers 4.37, the original's, looks for special tokens: others get a `▁` before them there.
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["additional_special_tokens"] == ["<im_start>", "<im_end>"]
    with pytest.raises(RecipeError, match="computes other logits than the run"):
        export_run(everything, tmp_path / "no", to="llava", dtype=None, max_bytes=10**9, with_tower=False)
    assert not (tmp_path / "no").exists()


def test_llama_cpp_spells_the_question_behind_the_tokens_as_in_training(
    everything: Path, tmp_path: Path
) -> None:
    export_run(everything, tmp_path / "out", to="gguf-ready", dtype=None, max_bytes=10**9)
    folder = tmp_path / "out" / "language_model"
    text = llama_cpp.chat_template(folder)
    assert text is not None
    asked = [{"role": "user", "content": f"{llama_cpp.MARK}{QUESTION}"}]
    there = llama_cpp.prompt_ids(folder, llama_cpp.render(text, asked, open_answer=True))
    run = opened(everything)
    prompts = Prompts(run.data, run.assembled.tokenizer, start_end=True)
    ours = prompts.encode_prompt([Turn("human", f"<image>\n{QUESTION}")], has_image=True)
    assert there == [id for id in ours if id != IMAGE_ID]
    assert {1000, 1001} <= set(there)


def test_a_tower_that_nothing_names_is_kept_inside(drawn: Path, tmp_path: Path) -> None:
    done = export_run(drawn, tmp_path / "out", to="llava", dtype=None, max_bytes=10**9)
    (note,) = done.notes
    assert "original LLaVA can't read this model" in note and "siglip_vision_model" in note
    (tmp_path / "out").rename(tmp_path / "moved")
    assert not any("vision_tower" in name for name in load_file(tmp_path / "moved" / "model.safetensors"))
    moved, run = (expected_of(opened(folder)) for folder in (tmp_path / "moved", drawn))
    assert largest_difference(run, moved.logits) <= 1e-5
    with pytest.raises(RecipeError, match="takes every vision tower for CLIP"):
        export_run(drawn, tmp_path / "no", to="gguf-ready", dtype=None, max_bytes=10**9)


def test_what_the_original_trained_is_read_back(tmp_path: Path) -> None:
    """Its recorded full run; the tower inside is the frozen one in half precision."""
    whole = tmp_path / "whole"
    shutil.copytree(FIXTURES / "tiny_vicuna", whole)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(run_folder("full") / name, whole / name)
    config = json.loads((whole / "config.json").read_text()) | {"mm_vision_tower": str(CLIP)}
    (whole / "config.json").write_text(json.dumps(config))
    done, tower = import_checkpoint(whole, tmp_path / "back", dtype=None, max_bytes=10**9, base=None)
    assert done.difference <= 1e-5 and tower == str(CLIP)
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path / "back"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name].float()) for name, tensor in ours.items())


@pytest.fixture
def made_by_transformers(tmp_path: Path) -> Path:
    """A model that transformers itself drew and saved, in a folder as its own `save_pretrained` leaves it."""
    tokenizer = AutoTokenizer.from_pretrained(FIXTURES / "tiny_vicuna")
    tokenizer.add_tokens(AddedToken("<image>", special=True, normalized=False), special_tokens=True)
    text = AutoConfig.from_pretrained(FIXTURES / "tiny_vicuna")
    text.vocab_size = 1024
    config = LlavaConfig(
        text_config=text,
        vision_config=AutoConfig.from_pretrained(CLIP),
        image_token_index=1000,
        image_seq_length=16,
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "theirs")
    LlavaProcessor(
        CLIPImageProcessorPil.from_pretrained(CLIP),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(tmp_path / "theirs")
    assert not (tmp_path / "theirs" / "preprocessor_config.json").exists()
    return tmp_path / "theirs"


def test_what_transformers_saved_is_read_back(made_by_transformers: Path, tmp_path: Path) -> None:
    run = opened(made_by_transformers)
    expected = expected_of(run)
    assert (run.kind, run.data.template, run.data.image_aspect_ratio) == ("hf", "v1", "square")
    theirs = LlavaForConditionalGeneration.from_pretrained(made_by_transformers).eval()
    ids = expected.input_ids.masked_fill(expected.input_ids == IMAGE_ID, 1000)
    with torch.no_grad():
        logits = theirs(input_ids=ids[None], pixel_values=expected.pixel_values).logits[0]
    assert largest_difference(expected, logits) <= 1e-5
    done, _ = import_checkpoint(
        made_by_transformers, tmp_path / "back", dtype=None, max_bytes=10**9, base=None
    )
    assert done.difference <= 1e-5


def test_another_llava_of_transformers_is_refused(made_by_transformers: Path) -> None:
    def refused() -> str:
        with pytest.raises(RecipeError) as error:
            opened(made_by_transformers)
        return str(error.value)

    file = made_by_transformers / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1000])
    assert "cannot read weights" in refused()
    file.write_bytes(whole)
    config = json.loads((made_by_transformers / "config.json").read_text())
    for change, reason in (
        ({"projector_hidden_act": "relu"}, "projector is of an unknown kind"),
        ({"vision_feature_layer": [-2, -1]}, "projector is of an unknown kind"),
        ({"model_type": "llava_onevision"}, "isn't a LLaVA model"),
    ):
        (made_by_transformers / "config.json").write_text(json.dumps(config | change))
        assert reason in refused()


def test_weights_of_few_bits_are_computed_with_in_float32(everything: Path) -> None:
    run = open_run(everything, dtype=torch.bfloat16, device=CPU)
    expected = expected_of(run)
    assert {parameter.dtype for parameter in run.assembled.model.parameters()} == {torch.bfloat16}
    for parameter in run.assembled.model.parameters():
        parameter.data = parameter.data.float()
    assert torch.equal(expected_of(run).logits, expected.logits)


@pytest.fixture(scope="module")
def any_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images spread over grids, their rows ended by a newline that trains."""
    folder = tmp_path_factory.mktemp("any_size")
    grids: dict[str, Any] = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
    grids["image_grid_pinpoints"] = [[56, 112], [112, 56], [112, 112]]
    values = run_values(
        folder / "run", data=conversations() | grids, trainable=["projector", "image_newline"]
    )
    finish(values, folder / "recipe.yaml")
    return folder / "run"


def test_llama_cpp_gets_grids_and_newline(any_size: Path, tmp_path: Path) -> None:
    done = export_run(any_size, tmp_path / "out", to="gguf-ready", dtype=None, max_bytes=10**9)
    assert done.difference <= 1e-5
    vision = json.loads((tmp_path / "out" / "vit" / "config.json").read_text())
    assert vision["image_grid_pinpoints"] == [[56, 112], [112, 56], [112, 112]]
    assert (vision["image_aspect_ratio"], vision["mm_patch_merge_type"]) == ("anyres", "spatial_unpad")
    written = torch.load(tmp_path / "out" / "vit" / "llava.projector", weights_only=True)
    trained = load_file(any_size / "trained.safetensors")
    assert torch.equal(written["model.image_newline"], trained["image_newline"])
    assert "no newline" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("layout", ["hf", "llava"])
def test_images_of_any_size_go_out_and_come_back(layout: Target, any_size: Path, tmp_path: Path) -> None:
    done = export_run(any_size, tmp_path / "out", to=layout, dtype=None, max_bytes=10**9)
    assert done.difference <= 1e-5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    if layout == "hf":
        assert config["architectures"] == ["LlavaNextForConditionalGeneration"]
        # Height before width there.
        assert config["image_grid_pinpoints"] == [[112, 56], [56, 112], [112, 112]]
    # Without our own note, the layout's config says how images are given.
    (tmp_path / "out" / "llava_recipe.json").unlink()
    import_checkpoint(tmp_path / "out", tmp_path / "back", dtype=None, max_bytes=10**9, base=None)
    run, back = expected_of(opened(any_size)), expected_of(opened(tmp_path / "back"))
    assert len(run.pixel_values) == 5 and torch.equal(run.pixel_values, back.pixel_values)
    assert largest_difference(run, back.logits) <= 1e-5
    written = load_file(tmp_path / "back" / "model.safetensors")["model.image_newline"]
    assert torch.equal(written, load_file(any_size / "trained.safetensors")["image_newline"])


def test_a_tokenizers_own_chat_template_goes_along(tmp_path: Path) -> None:
    """The layout's takes images; what training wrote comes back as it was."""
    base = tmp_path / "base"
    shutil.copytree(FIXTURES / "tiny_vicuna", base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings["chat_template"] = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} "
        "{% else %}ASSISTANT: {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    values = run_values(
        tmp_path / "run", data={**conversations(), "template": None, "chat_template": "tokenizer"}
    )
    values["model"]["language_model"] = str(base)
    finish(values, tmp_path / "recipe.yaml")
    export_run(tmp_path / "run", tmp_path / "out", to="hf", dtype=None, max_bytes=10**9)
    # It writes <s> itself, and vLLM must not write another.
    assert "The chat template writes the beginning" in (tmp_path / "out" / "README.md").read_text()
    import_checkpoint(tmp_path / "out", tmp_path / "back", dtype=None, max_bytes=10**9, base=None)
    run, back = (expected_of(opened(tmp_path / name)) for name in ("run", "back"))
    assert run.input_ids.tolist() == back.input_ids.tolist()
    assert largest_difference(run, back.logits) <= 1e-5
