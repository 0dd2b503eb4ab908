"""An export computes what the run computes, in every layout and back, and replaces no files."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoProcessor, LlavaForConditionalGeneration

from llava_recipes.cli.main import main
from llava_recipes.data.prompts import IMAGE_ID, Prompts
from llava_recipes.errors import RecipeError
from llava_recipes.export import target
from llava_recipes.export.checking import drawn_image, expanded, expected_of, largest_difference
from llava_recipes.export.export import Exported, export_run, import_checkpoint, merge_run
from llava_recipes.plan.exports import Target
from llava_recipes.templates import Turn
from llava_recipes.use.opened import open_run
from tests.golden_runs import run_folder
from tests.use.finished import finish, logits_of, run_values

CPU = torch.device("cpu")
LAYOUTS: tuple[Target, ...] = ("hf", "llava", "gguf-ready")


def export(run: Path, target: Path, to: Target, **options: Any) -> Exported:
    return export_run(run, target, to=to, **{"dtype": None, "max_bytes": 10**9, **options})


def difference(one: Path, other: Path) -> float:
    """Of the logits of two folders, by our own forward."""
    runs = [open_run(path, dtype=torch.float32, device=CPU) for path in (one, other)]
    return largest_difference(expected_of(runs[0]), expected_of(runs[1]).logits)


@pytest.mark.parametrize("layout", ["hf", "llava"])
@pytest.mark.parametrize("name", ["projector", "full", "dora"])
def test_a_round_trip_keeps_the_logits(name: str, layout: Target, pipeline: Path, tmp_path: Path) -> None:
    done = export(pipeline / name, tmp_path / "out", layout)
    assert done.difference <= 1e-5
    done, tower = import_checkpoint(
        tmp_path / "out", tmp_path / "back", dtype=None, max_bytes=10**9, base=None
    )
    assert done.difference <= 1e-5
    assert difference(pipeline / name, tmp_path / "back") <= 1e-5
    assert Path(tower).is_dir()


def test_the_runs_differ(pipeline: Path) -> None:
    """So that no export can pass for another."""
    names = ("projector", "full", "lora", "dora")
    logits = [
        logits_of(open_run(pipeline / name, dtype=torch.float32, device=CPU).assembled) for name in names
    ]
    for one, other in combinations(logits, 2):
        assert (one - other).abs().max() > 1e-3


@pytest.fixture(scope="module")
def hf(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("hf") / "lora"
    export(pipeline / "lora", target, "hf")
    return target


def test_transformers_reads_llava_hfs_names_and_sizes(hf: Path) -> None:
    config = json.loads((hf / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    # Two tokens more than 1,000 rows hold: the next multiple of 64.
    assert (config["image_token_index"], config["text_config"]["vocab_size"]) == (1000, 1024)
    names = load_file(hf / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {
        "language_model",
        "multi_modal_projector",
        "vision_tower",
    }
    assert "language_model.model.embed_tokens.weight" in names and "language_model.lm_head.weight" in names
    assert "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight" in names
    assert "multi_modal_projector.linear_2.bias" in names
    processor = AutoProcessor.from_pretrained(hf)
    assert processor.tokenizer.pad_token == "<pad>" and processor.tokenizer.padding_side == "left"


def test_transformers_says_what_the_run_says(hf: Path, pipeline: Path) -> None:
    """A conversation of several turns, in a batch with a shorter one, generated greedily."""
    processor = AutoProcessor.from_pretrained(hf)
    model = LlavaForConditionalGeneration.from_pretrained(hf).eval()
    image = {"type": "image", "image": drawn_image()}
    long = [
        {"role": "user", "content": [image, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A red box."}]},
        {"role": "user", "content": [{"type": "text", "text": "And behind it?"}]},
    ]
    short = [{"role": "user", "content": [image, {"type": "text", "text": "Say."}]}]
    inputs = processor.apply_chat_template(
        [long, short],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    run = open_run(pipeline / "lora", dtype=torch.float32, device=CPU)
    turns = [
        Turn("human", "<image>\nWhat is this?"),
        Turn("gpt", "A red box."),
        Turn("human", "And behind it?"),
    ]
    prompts = Prompts(run.data, run.assembled.tokenizer, start_end=False)
    ours = expanded(prompts.encode_prompt(turns, has_image=True), run.assembled.num_image_tokens)
    assert inputs["input_ids"][0].tolist() == ours.masked_fill(ours == IMAGE_ID, 1000).tolist()
    said = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    alone = processor.apply_chat_template(
        [short], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    said_alone = model.generate(**alone, max_new_tokens=4, do_sample=False)[:, alone["input_ids"].shape[1] :]
    assert said[1].tolist() == said_alone[0].tolist()
    assert said.max() < 1000


def test_the_llava_layout_is_the_originals(pipeline: Path, tmp_path: Path) -> None:
    golden = run_folder("full")
    for name, options in (("with", {"with_tower": True}), ("without", {})):
        export(pipeline / "full", tmp_path / name, "llava", **options)
    theirs = load_file(golden / "model.safetensors").keys()
    assert load_file(tmp_path / "with" / "model.safetensors").keys() == theirs
    assert load_file(tmp_path / "without" / "model.safetensors").keys() == {
        name for name in theirs if "vision_tower" not in name
    }
    config = json.loads((tmp_path / "with" / "config.json").read_text())
    written = json.loads((golden / "config.json").read_text())
    # Ours leaves out what a trainer noted, and says whether the tower is inside.
    assert written.keys() - config.keys() <= {"transformers_version", "pad_token_id"}
    same = {
        "model_type",
        "hidden_size",
        "mm_projector_type",
        "mm_vision_select_layer",
        "vocab_size",
        "rope_theta",
    }
    assert {key: config[key] for key in same} == {key: written[key] for key in same}
    assert config["architectures"] == ["LlavaLlamaForCausalLM"]
    assert (tmp_path / "with" / "tokenizer.model").is_file()


def test_llama_cpp_gets_its_two_folders(pipeline: Path, tmp_path: Path) -> None:
    done = export(pipeline / "lora", tmp_path / "out", "gguf-ready", dtype=torch.bfloat16, max_bytes=100_000)
    assert done.difference <= 1e-5
    projector = torch.load(tmp_path / "out" / "vit" / "llava.projector", weights_only=True)
    assert set(projector) == {
        f"model.mm_projector.{at}.{kind}" for at in (0, 2) for kind in ("weight", "bias")
    }
    assert {tensor.dtype for tensor in projector.values()} == {torch.float32}
    language = tmp_path / "out" / "language_model"
    assert (language / "model.safetensors.index.json").is_file() and (language / "tokenizer.model").is_file()
    assert type(AutoModelForCausalLM.from_pretrained(language)).__name__ == "LlamaForCausalLM"
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "convert_hf_to_gguf.py" in readme and "--clip-model-is-vision" in readme


def test_a_card_lies_beside_it(hf: Path) -> None:
    _, head, text = (hf / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(head)
    assert front["pipeline_tag"] == "image-text-to-text" and front["library_name"] == "transformers"
    for said in ("tiny-pretrain: lora", "stage2_clean.json", "last loss", "torch 2", "lora:\n", "## License"):
        assert said in text, said


def test_what_the_original_cannot_read_is_said(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DoRA's own folder it refuses, the merged model it takes; a SigLIP tower it loads as CLIP."""
    assert main(["export", str(pipeline / "dora"), "--to", "llava", "-o", str(tmp_path / "dora")]) == 0
    said = capsys.readouterr().out
    folder = pipeline / "dora"
    assert f"note     the original LLaVA can read this model, but not the adapters in {folder}: " in said
    assert "its peft 0.8.2 does not know DoRA" in said
    for layout, name in (("llava", "lora"), ("hf", "dora")):
        words = ["export", str(pipeline / name), "--to", layout, "-o", str(tmp_path / f"{layout}-{name}")]
        assert main(words) == 0
        assert "note" not in capsys.readouterr().out


def test_nothing_is_written_over(pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for layout in LAYOUTS:
        with pytest.raises(RecipeError, match="is not empty"):
            export(pipeline / "full", tmp_path, layout)
    with pytest.raises(RecipeError, match="is not empty"):
        merge_run(pipeline / "lora", tmp_path, dtype=None, max_bytes=10**9, base=None)
    with pytest.raises(RecipeError, match="isn't a folder"):
        export(pipeline / "full", tmp_path / "thesis.txt", "hf")
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    export(pipeline / "full", tmp_path / "empty", "llava")
    assert (tmp_path / "empty" / "config.json").is_file()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_export_with_other_logits_is_removed(
    layout: Target, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = target._as_stored

    def spoilt(piece: target.Piece, dtype: torch.dtype) -> torch.Tensor:
        tensor = stored(piece, dtype)
        return tensor * 1.001 if piece.name.endswith("layers.1.mlp.up_proj.weight") else tensor

    monkeypatch.setattr(target, "_as_stored", spoilt)
    with pytest.raises(RecipeError, match="other logits than the run"):
        export(pipeline / "full", tmp_path / "out", layout)
    assert list(tmp_path.iterdir()) == []


def test_what_a_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    values = run_values(tmp_path / "run")
    values["model"]["projector"] = {"type": "linear"}
    finish(values, tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="transformers' LLaVA has no place"):
        export(tmp_path / "run", tmp_path / "out", "hf")
    with pytest.raises(RecipeError, match=r"llama\.cpp has no place"):
        export(tmp_path / "run", tmp_path / "out", "gguf-ready")
    export(tmp_path / "run", tmp_path / "out", "llava")
    assert difference(tmp_path / "run", tmp_path / "out") <= 1e-5


def test_shards_are_as_small_as_they_are_asked_to_be(pipeline: Path, tmp_path: Path) -> None:
    export(pipeline / "full", tmp_path / "out", "hf", dtype=torch.bfloat16, max_bytes=80_000)
    files = sorted((tmp_path / "out").glob("model-*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(files) > 2 and set(index["weight_map"].values()) == {file.name for file in files}
    tensors = [load_file(file) for file in files]
    assert all(sum(tensor.nbytes for tensor in each.values()) <= 80_000 for each in tensors)
    assert (
        sum(tensor.nbytes for each in tensors for tensor in each.values()) == index["metadata"]["total_size"]
    )
    assert {tensor.dtype for each in tensors for tensor in each.values()} == {torch.bfloat16}


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 MiB", 3 * 2**19), ("200kb", 200_000)])
def test_sizes_of_files_are_read(text: str, size: int) -> None:
    assert target.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 apples", "-1GB", "0.1"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="isn't a file size"):
        target.parse_size(text)


def test_the_commands(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merged, back = tmp_path / "merged", tmp_path / "back"
    assert main(["merge", str(pipeline / "lora"), "-o", str(merged)]) == 0
    assert difference(pipeline / "lora", merged) <= 1e-5
    assert main(["export", str(merged), "--to", "hf"]) == 0
    assert main(["import", str(merged / "export-hf"), "-o", str(back), "--dtype", "bf16"]) == 0
    said = capsys.readouterr().out
    assert said.count("opened again") == 3 and f"model.language_model: {back}" in said
    assert json.loads((back / "config.json").read_text())["torch_dtype"] == "bfloat16"
    refusals = (
        (["merge", str(pipeline / "full"), "-o", str(tmp_path / "no")], "no adapters to merge"),
        (["import", str(pipeline / "full"), "-o", str(tmp_path / "no")], "already a run of llava-recipes"),
        (["export", str(merged), "--to", "hf", "--with-tower"], "--with-tower has no effect with `--to hf`"),
        (["export", str(tmp_path / "nothing"), "--to", "hf"], "does not exist"),
        (["export", str(merged), "--to", "hf"], "is not empty"),
    )
    for words, reason in refusals:
        assert main(words) == 1
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
