"""A folder with everything that the program reads: recipes, data, models, finished runs, exports."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers

from llava_recipes.use.batches import AnswersFile
from tests.damage.readers import GENERATE
from tests.data.parquet_files import records, with_paths, with_structs, write_parquet
from tests.sealed import as_of_old
from tests.tiny import FIXTURES, write_recipe
from tests.use.finished import conversations, finish, run_values

_CHAT_TEMPLATE = """\
{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""


def build(folder: Path) -> None:
    """Fill `folder`; paths in its files are absolute."""
    folder.mkdir(parents=True, exist_ok=True)
    _models(folder)
    _data(folder)
    _recipes(folder)
    _runs(folder)
    _exports(folder)
    _scripts(folder)
    _answers(folder)


def _models(folder: Path) -> None:
    llm, clip, binary = folder / "llm", folder / "clip", folder / "binary"
    shutil.copytree(FIXTURES / "tiny_vicuna", llm)
    shutil.copytree(FIXTURES / "tiny_clip", clip)
    shutil.copytree(FIXTURES / "tiny_vicuna", binary)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (llm / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    weights = load_file(binary / "model.safetensors")
    (binary / "model.safetensors").unlink()
    torch.save(weights, binary / "pytorch_model.bin")
    (binary / "tokenizer.json").unlink()
    (binary / "added_tokens.json").write_text("{}")
    sharded = folder / "sharded"
    shutil.copytree(llm, sharded)
    (sharded / "model.safetensors").unlink()
    _byte_level(folder)
    names = sorted(weights)
    half = len(names) // 2
    shards = {
        "model-00001-of-00002.safetensors": names[:half],
        "model-00002-of-00002.safetensors": names[half:],
    }
    for file, inside in shards.items():
        save_file({name: weights[name] for name in inside}, sharded / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, inside in shards.items() for name in inside}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))


def _byte_level(folder: Path) -> None:
    """A model whose tokenizer is vocab.json and merges.txt."""
    bpe = folder / "bpe"
    shutil.copytree(folder / "llm", bpe)
    for name in ("tokenizer.json", "tokenizer.model", "special_tokens_map.json", "chat_template.jinja"):
        (bpe / name).unlink()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|endoftext|>", *letters, "th", "he", "the"]
    (bpe / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (bpe / "merges.txt").write_text("#version: 0.2\nt h\nh e\nth e\n")
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 2048,
    }
    (bpe / "tokenizer_config.json").write_text(json.dumps(settings))


def _data(folder: Path) -> None:
    data = folder / "data"
    data.mkdir()
    images = data / "images"
    shutil.copytree(FIXTURES / "images", images)
    for path in data.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    few = records("stage1.json")[:4]
    (data / "few.json").write_text(json.dumps(few))
    (data / "few.jsonl").write_text("".join(json.dumps(record) + "\n" for record in few))
    write_parquet([with_structs(record) for record in few], data / "few.parquet", group_rows=2)
    write_parquet([with_paths(record) for record in few], data / "paths.parquet", group_rows=2)
    questions = [{"id": str(n), "image": few[n]["image"], "question": "What is it?"} for n in range(2)]
    (data / "questions.json").write_text(json.dumps(questions))
    (data / "questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))


def _values(folder: Path, output: str, llm: str, **stage: Any) -> dict[str, Any]:
    values = run_values(folder / "out" / output, **stage)
    values["model"]["language_model"] = str(folder / llm)
    values["model"]["vision_tower"]["source"] = str(folder / "clip")
    del values["model"]["projector"]["init_from"]
    return values


def _source(folder: Path, name: str = "few.json") -> dict[str, Any]:
    source = {"annotations": str(folder / "data" / name)}
    return source if name == "few.parquet" else {**source, "images": str(folder / "data/images")}


def _recipes(folder: Path) -> None:
    sources = {"template": "plain", "image_aspect_ratio": "square", "max_length": 2048}
    for name, llm, file in (
        ("json", "llm", "few.json"),
        ("jsonl", "binary", "few.jsonl"),
        ("parquet", "sharded", "few.parquet"),
        ("paths", "llm", "paths.parquet"),
        ("bpe", "bpe", "few.json"),
    ):
        data = {**sources, "sources": [_source(folder, file)]}
        write_recipe(_values(folder, name, llm, data=data), folder / f"{name}.yaml")
    anyres = {
        **sources,
        "sources": [_source(folder)],
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
    }
    write_recipe(_values(folder, "anyres", "llm", data=anyres), folder / "anyres.yaml")
    chat = {"chat_template": "tokenizer", "sources": [_source(folder)], "max_length": 2048}
    write_recipe(_values(folder, "chat", "llm", data=chat), folder / "chat.yaml")
    (folder / "child.yaml").write_text(
        "extends: json.yaml\nname: child\nstages:\n- name: pretrain\n  output_dir: out/child\n"
    )
    ds = {
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": 2},
        "gradient_clipping": 1.0,
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
    }
    (folder / "ds.json").write_text(json.dumps(ds))
    data = {**sources, "sources": [_source(folder)]}
    write_recipe(
        _values(folder, "ds", "llm", data=data, deepspeed=str(folder / "ds.json")), folder / "ds.yaml"
    )


def anyres_data() -> dict[str, Any]:
    return {
        "template": "v1",
        "max_length": 2048,
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
    }


def _runs(folder: Path) -> None:
    few = {**conversations(), "sources": [_source(folder)]}
    plain = {
        "template": "plain",
        "sources": [_source(folder)],
        "image_aspect_ratio": "square",
        "max_length": 2048,
    }
    values = _values(folder, "x", "llm", data=plain)
    values["stages"][0]["output_dir"] = str(folder / "runs/projector")
    lora = _values(folder, "x", "llm", name="lora", init_from="pretrain", lora={"r": 4, "alpha": 8}, data=few)
    lora["stages"][0]["output_dir"] = str(folder / "runs/lora")
    full = _values(folder, "x", "llm", name="full", init_from="pretrain", freeze=["vision_tower"], data=few)
    full["stages"][0]["output_dir"] = str(folder / "runs/full")
    del full["stages"][0]["trainable"]
    for stage in (*lora["stages"], *full["stages"]):
        stage["data"] = few
    values["stages"] += [*lora["stages"], *full["stages"]]
    finish(values, folder / "pipeline.yaml")
    for name, run in (("starts", "runs/full"), ("adapters", "runs/lora"), ("over", "runs/projector")):
        second = _values(folder, name, "llm", init_from=str(folder / run), data=few)
        write_recipe(second, folder / f"{name}.yaml")
    third = _values(folder, "projector", "llm", data=plain)
    third["model"]["projector"]["init_from"] = str(folder / "runs/projector/mm_projector.bin")
    write_recipe(third, folder / "projector.yaml")
    spread = _values(folder, "x", "llm", name="anyres", data={**anyres_data(), "sources": [_source(folder)]})
    spread["stages"][0]["output_dir"] = str(folder / "runs/anyres")
    finish(spread, folder / "spread.yaml")
    # With its list of files each damage would be found before the file is read.
    for done in folder.rglob("DONE"):
        as_of_old(done.parent)
    _unfinished_run(folder, plain)
    original = folder / "original"
    original.mkdir()
    for name in (
        "config.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "non_lora_trainables.bin",
    ):
        shutil.copy(folder / "runs/lora" / name, original / name)
    alone = folder / "alone"
    alone.mkdir()
    for name in ("config.json", "mm_projector.bin"):
        shutil.copy(folder / "runs/projector" / name, alone / name)


def _unfinished_run(folder: Path, data: dict[str, Any]) -> None:
    """A run with two checkpoints that was cut short, and its recipe."""
    values = _values(folder, "x", "llm", data=data)
    values["stages"][0]["output_dir"] = str(folder / "started")
    values["stages"][0]["train"] |= {"save_strategy": "steps", "save_steps": 1}
    finish(values, folder / "started.yaml")
    (folder / "started/DONE").unlink()


def command(folder: Path, *words: str) -> None:
    """Run a command that must succeed."""
    from llava_recipes.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    assert code == 0, f"{words}: {out.getvalue()}{err.getvalue()}"


def _exports(folder: Path) -> None:
    command(folder, "export", "runs/full", "--to", "hf", "-o", "hf")
    command(folder, "export", "runs/full", "--to", "llava", "-o", "llava", "--with-tower")
    command(folder, "export", "runs/anyres", "--to", "hf", "-o", "next")
    llava = _values(folder, "fromllava", "llava", data={**conversations(), "sources": [_source(folder)]})
    write_recipe(llava, folder / "fromllava.yaml")
    hf = _values(
        folder, "fromhf", "hf", data={"template": "v1", "sources": [_source(folder)], "max_length": 2048}
    )
    hf["model"]["vision_tower"]["source"] = str(folder / "hf")
    write_recipe(hf, folder / "fromhf.yaml")


def _scripts(folder: Path) -> None:
    here = Path(__file__).parents[1] / "migrate"
    inputs = folder / "inputs"
    inputs.mkdir()
    for kind in ("scripts", "configs"):
        for file in sorted((here / kind).rglob("*")):
            if file.is_file():
                target = inputs / str(file.relative_to(here)).removesuffix(".txt")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
                target.chmod(0o644)
    (inputs / "zero2.json").write_text((folder / "ds.json").read_text())
    script = (here / "scripts/next/finetune.sh").read_text()
    (inputs / "mixed.sh").write_text(
        script.replace("llava_1_6.json", "mix.yaml").replace("scripts/zero3.json", "zero2.json")
    )
    sets = [{"json_path": "a.json", "sampling_strategy": "all"}, {"json_path": "b.jsonl"}]
    (inputs / "mix.yaml").write_text(yaml.safe_dump({"datasets": sets}))
    shutil.copy(here / "scripts/v1_5/finetune.sh", inputs / "finetune.sh")


def _answers(folder: Path) -> None:
    """Answers that a call has left unfinished."""
    for name in ("out", "partial"):
        (folder / name).mkdir(exist_ok=True)
    with patch.object(AnswersFile, "finish", lambda answers: None):
        command(folder, *GENERATE)
