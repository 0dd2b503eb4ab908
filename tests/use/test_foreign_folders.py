"""What the original leaves is opened: a whole model, a projector with its base, adapters with theirs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_recipes.errors import RecipeError
from llava_recipes.model.assemble import assemble
from llava_recipes.model.weight_names import canonical_parameters
from llava_recipes.use.opened import OpenedRun, open_run
from tests.golden_runs import ours_for, run_folder
from tests.model.plans import plan_of
from tests.tiny import FIXTURES, GOLDEN
from tests.use.finished import logits_of

CPU = torch.device("cpu")
VICUNA, CLIP = FIXTURES / "tiny_vicuna", FIXTURES / "tiny_clip"


def opened(folder: Path, base: Path | str | None = None) -> OpenedRun:
    return open_run(folder, dtype=torch.float32, device=CPU, base=None if base is None else str(base))


def refused(folder: Path, base: Path | str | None = None) -> str:
    with pytest.raises(RecipeError) as error:
        opened(folder, base)
    problem = error.value.problems[0]
    assert problem.mark is not None and problem.mark.file == str(folder)
    return f"{problem.message}\n{problem.found}\n{problem.hint}"


def copied(folder: Path, files: dict[str, Path], **changes: object) -> Path:
    """A checkpoint's files in a folder, its config.json with the tower's place and other changes."""
    folder.mkdir()
    for name, file in files.items():
        shutil.copy(file, folder / name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mm_vision_tower": str(CLIP), **changes}))
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    run = run_folder("full")
    files = {name: run / name for name in ("config.json", "model.safetensors")}
    return copied(tmp_path / "whole", files | {file.name: file for file in VICUNA.glob("*token*")})


@pytest.fixture
def projector(tmp_path: Path) -> Path:
    run = GOLDEN / "06_stage1" / "base"
    return copied(tmp_path / "projector", {name: run / name for name in ("config.json", "mm_projector.bin")})


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    run = run_folder("lora")
    names = ("config.json", "adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin")
    return copied(tmp_path / "lora", {name: run / name for name in names})


def test_every_weight_of_a_whole_model_is_its_own_the_tower_too(whole: Path) -> None:
    stored = load_file(whole / "model.safetensors")
    theirs = {ours_for(name): tensor for name, tensor in stored.items()}
    theirs["vision_tower.embeddings.class_embedding"].add_(1.0)
    save_file(stored, whole / "model.safetensors", metadata={"format": "pt"})
    run = opened(whole)
    parameters = canonical_parameters(run.assembled.model)
    assert parameters.keys() == theirs.keys()
    for name, parameter in parameters.items():
        assert torch.equal(parameter, theirs[name].float()), name
    assert run.kind == "llava"
    assert (run.data.template, run.data.image_aspect_ratio, run.data.max_length) == ("v1", "pad", 512)


def test_a_tower_that_is_not_inside_is_the_one_that_is_named(whole: Path) -> None:
    stored = load_file(whole / "model.safetensors")
    without = {name: tensor for name, tensor in stored.items() if "vision_tower" not in name}
    save_file(without, whole / "model.safetensors", metadata={"format": "pt"})
    parameters = canonical_parameters(opened(whole).assembled.model)
    tower = load_file(CLIP / "model.safetensors")
    assert torch.equal(
        parameters["vision_tower.embeddings.class_embedding"],
        tower["vision_model.embeddings.class_embedding"],
    )


def test_a_projector_needs_its_base(projector: Path) -> None:
    assert "a projector alone needs its language model" in refused(projector)
    run = opened(projector, VICUNA)
    given = torch.load(projector / "mm_projector.bin", weights_only=True)
    parameters = canonical_parameters(run.assembled.model)
    assert torch.equal(parameters["projector.2.bias"], given["model.mm_projector.2.bias"])
    base = canonical_parameters(assemble(plan_of(), dtype=torch.float32).model)
    assert torch.equal(parameters["lm_head.weight"], base["lm_head.weight"])


# peft reads a model's property by a name that transformers is about to drop.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_are_merged_as_peft_merges_them(adapters: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = opened(adapters, VICUNA)
    theirs = AutoModelForCausalLM.from_pretrained(VICUNA, dtype=torch.float32)
    merged = PeftModel.from_pretrained(theirs, adapters).merge_and_unload()
    parameters = canonical_parameters(run.assembled.model)
    for name, tensor in merged.state_dict().items():
        assert (parameters[ours_for(name)] - tensor).abs().max() <= 1e-6, name
    rest = torch.load(adapters / "non_lora_trainables.bin", weights_only=True)
    for name, tensor in rest.items():
        assert torch.equal(parameters[ours_for(name)], tensor), name
    base = logits_of(assemble(plan_of(), dtype=torch.float32))
    assert (logits_of(run.assembled) - base).abs().max() > 1e-3


def test_adapters_for_another_base_are_refused(adapters: Path, tmp_path: Path) -> None:
    assert "for another language model" in refused(adapters, FIXTURES / "tiny_vicuna_legacy")
    # Of the right name, and of another size.
    other = tmp_path / "tiny_vicuna"
    shutil.copytree(VICUNA, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    tensors = load_file(other / "model.safetensors")
    for name, tensor in tensors.items():
        if "mlp." in name:
            tensors[name] = (tensor[:, :48] if "down_proj" in name else tensor[:48]).contiguous()
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert "do not fit this model" in refused(adapters, other)


def test_the_base_is_the_one_that_the_adapters_name(adapters: Path) -> None:
    file = adapters / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(VICUNA)}))
    assert torch.equal(logits_of(opened(adapters).assembled), logits_of(opened(adapters, VICUNA).assembled))


def test_files_cut_short_or_missing_are_refused(whole: Path, adapters: Path, projector: Path) -> None:
    weights = whole / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "cannot read weights" in refused(whole)
    weights.unlink()
    assert "no weights" in refused(whole)
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (whole / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "are missing" in refused(whole)
    (adapters / "non_lora_trainables.bin").unlink()
    assert "non_lora_trainables.bin is missing" in refused(adapters, VICUNA)
    (projector / "mm_projector.bin").write_bytes(b"PK\x03\x04")
    assert "cannot read weights" in refused(projector, VICUNA)


def test_adapters_cut_short_are_refused(adapters: Path) -> None:
    tensors = load_file(adapters / "adapter_model.safetensors")
    first = next(name for name in tensors if "lora_B" in name)
    del tensors[first]
    save_file(tensors, adapters / "adapter_model.safetensors", metadata={"format": "pt"})
    assert "no lora_B" in refused(adapters, VICUNA)


def test_a_language_model_is_no_llava(tmp_path: Path) -> None:
    assert "isn't a LLaVA model" in refused(VICUNA)
    (tmp_path / "config.json").write_text("[]")
    assert "must contain a mapping" in refused(tmp_path)
