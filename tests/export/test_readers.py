"""What others read of an export is in it: said again here, so that it's missed without the engine.

llama.cpp's reading is in `llama_cpp.py`. vLLM's is its model_executor/models/llava.py and llava_next.py
(0.32), which read transformers' config classes and the processor.
"""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionModel

from llava_recipes.data.prompts import Prompts
from llava_recipes.demo.vocabulary import write_tokenizer
from llava_recipes.errors import RecipeError
from llava_recipes.export.export import export_run, merge_run, write_export
from llava_recipes.model.forward import num_layers_run
from llava_recipes.plan.exports import Target
from llava_recipes.templates import Turn
from llava_recipes.use.opened import OpenedRun, open_run
from tests.export import llama_cpp
from tests.tiny import FIXTURES

CPU = torch.device("cpu")
QUESTION = "What is in this image?"


def opened(folder: Path, **options: Any) -> OpenedRun:
    return open_run(folder, dtype=torch.float32, device=CPU, **options)


@pytest.fixture(scope="module")
def gguf(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("gguf") / "out"
    export_run(pipeline / "lora", target, to="gguf-ready", dtype=None, max_bytes=10**9)
    return target


def prompt_of(run: OpenedRun, text: str) -> str:
    """What training wrote up to where the answer begins."""
    prompts = Prompts(run.data, run.assembled.tokenizer, start_end=run.plan.image_tokens.start_end)
    segments = prompts._spell([Turn("human", text)], has_image=True, open_answer=True)
    return "".join(segment.text for segment in segments)


@pytest.mark.parametrize("mark", [llama_cpp.MARK, llama_cpp.SERVERS_MARK])
def test_llama_cpp_writes_the_runs_prompt(mark: str, gguf: Path, pipeline: Path) -> None:
    """The printed command: its question, with the mark that llama-mtmd-cli puts before it."""
    assert f'-p "{QUESTION}"' in (gguf / "README.md").read_text()
    text = llama_cpp.chat_template(gguf / "language_model")
    assert text is not None
    asked = [{"role": "user", "content": mark + QUESTION}]
    ours = prompt_of(opened(pipeline / "lora"), f"<image>\n{QUESTION}")
    assert llama_cpp.render(text, asked, open_answer=True) == ours.replace("<image>", mark)
    assert "<image>" in ours and QUESTION in ours


@pytest.mark.parametrize("layer", [-2, -1, 0, 1])
def test_llama_cpp_runs_as_many_layers_as_training(layer: int, pipeline: Path, tmp_path: Path) -> None:
    run = opened(pipeline / "full")
    run.assembled.model.config.vision_feature_layer = layer
    wanted = num_layers_run(run.assembled.model.config)
    write_export(run, tmp_path / "out", to="gguf-ready", max_bytes=10**9)
    vision = json.loads((tmp_path / "out" / "vit" / "config.json").read_text())
    assert llama_cpp.num_tower_layers(vision) == (wanted, wanted)
    assert vision.keys() >= llama_cpp.VISION_KEYS
    without = {key: value for key, value in vision.items() if key != "mm_vision_select_layer"}
    # Which is why the key is there.
    assert llama_cpp.num_tower_layers(without) == (2, 1)


def test_the_readme_says_how_llama_cpp_treats_images(gguf: Path) -> None:
    """tools/mtmd/mtmd-image.cpp, img_tool::resize: with PAD_CEIL, LLaVA's, it pads what it has resized."""
    text = (gguf / "README.md").read_text()
    assert "llama.cpp resizes images and then pads them to a square" in text
    assert "as this model was trained" not in text


def test_llama_cpps_converter_finds_the_weights(gguf: Path) -> None:
    vision = gguf / "vit"
    projector = torch.load(vision / "llava.projector", weights_only=True)
    assert {name.replace("model.mm_projector", "mm") for name in projector} == {
        *("mm.0.weight", "mm.0.bias", "mm.2.weight", "mm.2.bias")
    }
    assert type(CLIPVisionModel.from_pretrained(vision)).__name__ == "CLIPVisionModel"
    assert llama_cpp.vocabulary_file(gguf / "language_model") == "tokenizer.model"
    config = json.loads((gguf / "language_model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert {"num_attention_heads", "rms_norm_eps", "vocab_size", "rope_parameters"} <= config.keys()


def test_the_runs_template_goes_before_the_tokenizers_own(pipeline: Path, tmp_path: Path) -> None:
    """llama.cpp prefers the one in tokenizer_config.json, transformers the file beside it."""
    base = tmp_path / "tiny_vicuna"
    shutil.copytree(FIXTURES / "tiny_vicuna", base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "another"}))
    run = opened(pipeline / "lora", base=str(base))
    write_export(run, tmp_path / "out", to="gguf-ready", max_bytes=10**9)
    text = llama_cpp.chat_template(tmp_path / "out" / "language_model")
    assert text is not None and "another" not in text
    assert "USER: " in llama_cpp.render(text, [{"role": "user", "content": "Hm?"}], open_answer=True)


def test_a_tokenizer_that_llama_cpp_cannot_convert_is_refused(pipeline: Path, tmp_path: Path) -> None:
    """The demo's: a word is a token. Said by the export, not by the converter."""
    write_tokenizer(tmp_path / "words")
    assert llama_cpp.vocabulary_file(tmp_path / "words") is None
    run = opened(pipeline / "full")
    language = run.plan.language_model.model_copy(update={"tokenizer": str(tmp_path / "words")})
    object.__setattr__(run, "plan", run.plan.model_copy(update={"language_model": language}))
    with pytest.raises(RecipeError) as caught:
        write_export(run, tmp_path / "out", to="gguf-ready", max_bytes=10**9)
    (problem,) = caught.value.problems
    assert problem.message == "llama.cpp's converter cannot read this kind of tokenizer"
    assert "WordLevel" in str(problem.found) and problem.hint == "export with `--to hf` or `--to llava`"
    assert not (tmp_path / "out").exists()


def test_vllm_finds_what_it_reads(pipeline: Path, tmp_path: Path) -> None:
    export_run(pipeline / "lora", tmp_path / "out", to="hf", dtype=None, max_bytes=10**9)
    read = {
        file: json.loads((tmp_path / "out" / file).read_text())
        for file in (
            "config.json",
            "processor_config.json",
            "preprocessor_config.json",
            "tokenizer_config.json",
        )
    }
    config = read["config.json"]
    assert config["architectures"] == ["LlavaForConditionalGeneration"] and config["model_type"] == "llava"
    assert config["text_config"]["model_type"] == "llama"
    assert config["text_config"]["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is False
    assert config["vision_config"]["model_type"] == "clip_vision_model"
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (-2, "default")
    assert (config["projector_hidden_act"], config["multimodal_projector_bias"]) == ("gelu", True)
    assert config["image_token_index"] < config["text_config"]["vocab_size"]
    vision = {"image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads"}
    assert vision <= config["vision_config"].keys()
    processor = read["processor_config.json"]
    assert processor["patch_size"] == config["vision_config"]["patch_size"]
    assert processor["num_additional_image_tokens"] == 1
    assert processor["vision_feature_select_strategy"] == "default"
    assert {"image_mean", "image_std", "size", "image_processor_type"} <= read[
        "preprocessor_config.json"
    ].keys()
    assert read["tokenizer_config.json"]["tokenizer_class"] == "PreTrainedTokenizerFast"
    text = (tmp_path / "out" / "chat_template.jinja").read_text()
    asked = [{"role": "user", "content": f"<image>\n{QUESTION}"}]
    ours = prompt_of(opened(pipeline / "lora"), f"<image>\n{QUESTION}")
    # vLLM's Jinja is jinja2; Transformers.js and others have smaller ones, much as llama.cpp.
    rendered = llama_cpp.render(text, asked, open_answer=True)
    assert rendered.replace("<image> ", "<image>") == ours


def test_the_card_says_who_writes_the_first_token(pipeline: Path, tmp_path: Path) -> None:
    export_run(pipeline / "full", tmp_path / "out", to="hf", dtype=None, max_bytes=10**9)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "leaves the beginning-of-text token to the tokenizer" in card
    assert "<s>" not in (tmp_path / "out" / "chat_template.jinja").read_text()


def test_vllm_finds_the_language_models_class_over_a_llava_checkpoint(pipeline: Path, tmp_path: Path) -> None:
    """Such a base's config.json names LLaVA's own class, which vLLM doesn't know."""
    run = opened(pipeline / "full")
    run.assembled.model.config.text_config.architectures = ["LlavaLlamaForCausalLM"]
    write_export(run, tmp_path / "out", to="hf", max_bytes=10**9)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], ids=oct)
@pytest.mark.parametrize("layout", ["hf", "llava", "gguf-ready", "merge"])
def test_files_have_the_mode_that_the_umask_leaves(
    layout: str, umask: int, pipeline: Path, tmp_path: Path, with_umask: Any
) -> None:
    with with_umask(umask):
        options: dict[str, Any] = {"dtype": None, "max_bytes": 100_000}
        if layout == "merge":
            merge_run(pipeline / "lora", tmp_path / "new" / "out", base=None, **options)
        else:
            to: Target = layout  # type: ignore[assignment]
            export_run(pipeline / "lora", tmp_path / "new" / "out", to=to, **options)
    found = {
        path.relative_to(tmp_path).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.rglob("*")
    }
    assert sum(name.endswith(".safetensors") for name in found) > 1
    for name, mode in found.items():
        assert mode == (0o777 if (tmp_path / name).is_dir() else 0o666) & ~umask, name


@pytest.mark.parametrize("layout", ["hf", "llava", "gguf-ready"])
def test_no_path_of_the_machine_is_published(layout: Target, pipeline: Path, tmp_path: Path) -> None:
    base = tmp_path / "tiny_vicuna"
    shutil.copytree(FIXTURES / "tiny_vicuna", base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    # As older tokenizers say it.
    settings |= {"name_or_path": str(base), "special_tokens_map_file": str(base / "special_tokens_map.json")}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    run = opened(pipeline / "lora", base=str(base))
    write_export(run, tmp_path / "out", to=layout, max_bytes=10**9)
    texts = [file for file in (tmp_path / "out").rglob("*") if file.suffix in (".md", ".json", ".jinja")]
    assert len(texts) > 4
    # Hub ids and local folders look alike in it; the original's loader has no other way to the tower.
    needed = f'"mm_vision_tower": "{FIXTURES / "tiny_clip"}"'
    for file in texts:
        text = file.read_text().replace(needed, "")
        for folder in (FIXTURES, pipeline, tmp_path, Path.home()):
            assert str(folder) not in text, file
    card = (tmp_path / "out" / "README.md").read_text()
    for said in ("tiny_vicuna, a local folder", "`stage2_clean.json`", "annotations: stage1.json"):
        assert said in card, said
