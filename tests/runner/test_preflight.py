"""A tokenizer that does not go with a stage's template is reported before anything is loaded."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from llava_recipes.cli.main import main
from llava_recipes.data.prompts import IGNORED
from llava_recipes.errors import RecipeError
from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.runner.preflight import check_before_loading
from tests.chat_tokenizers import CHAT_TEMPLATES, open_tokenizer, save_tokenizer
from tests.tiny import FIXTURES, stage1_values, write_recipe

LANGUAGE = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1024}


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chatml") / "tokenizer"
    return save_tokenizer("qwen", folder, chat_template=CHAT_TEMPLATES["qwen"])


def recipe(folder: Path, *, tokenizer: Path | None = None, **data: Any) -> Path:
    values = stage1_values(folder / "out", max_steps=2, num_train_epochs=None)
    if tokenizer is not None:
        values["model"]["language_model"] = {"config": {**LANGUAGE, **HEADS}, "tokenizer": str(tokenizer)}
    stage = values["stages"][0]
    del stage["data"]["template"], stage["train"]["num_train_epochs"]
    stage["data"] |= data
    return write_recipe(values, folder / "recipe.yaml")


def check(file: Path) -> None:
    loaded = load_recipe(str(file))
    check_before_loading(loaded, plan_recipe(loaded, world_size=1), [0])


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        ({"template": "qwen"}, "template: qwen", "template `qwen` needs the token <|im_start|>"),
        ({"chat_template": "tokenizer"}, "chat_template: tokenizer", "the tokenizer has no chat template"),
    ],
)
def test_before_loading(tmp_path: Path, data: dict[str, Any], line: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check(recipe(tmp_path, **data))
    (problem,) = caught.value.problems
    assert problem.message.startswith(message)
    assert problem.mark is not None and problem.mark.text is not None and line in problem.mark.text


@pytest.mark.parametrize(
    ("name", "package"), [("stable_adamw", "torch-optimi"), ("galore_adamw", "galore-torch")]
)
def test_an_optimizer_without_its_package(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    missing = ("optimi", "galore_torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda each: None if each in missing else find(each))
    values = stage1_values(tmp_path / "out", optim=name, extra={"optim_target_modules": "all-linear"})
    with pytest.raises(RecipeError) as caught:
        check(write_recipe(values, tmp_path / "recipe.yaml"))
    (problem,) = caught.value.problems
    assert problem.message == f"`optim: {name}` needs {package}, which is not installed"
    assert problem.hint == f"pip install {package}, or write `optim: adamw_torch`"


def test_preview_and_deep_look_tell_it_at_its_line_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe(tmp_path, template="qwen")
    for words in (("preview", str(file)), ("validate", "--deep", str(file))):
        assert main(list(words)) == 1
        printed = capsys.readouterr().err
        assert f"{file}:" in printed.splitlines()[0]
        assert "template `qwen` needs the token <|im_start|>, which this tokenizer doesn't have" in printed


@pytest.mark.parametrize("data", [{"template": "qwen"}, {"chat_template": "tokenizer"}])
def test_what_fits_is_shown(
    tmp_path: Path, chatml: Path, data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe(tmp_path, tokenizer=chatml, system_prompt="Be brief.", **data)
    check(file)
    assert main(["preview", str(file), "--samples", "0", "--format", "jsonl"]) == 0
    sample = json.loads(capsys.readouterr().out)
    tokenizer = open_tokenizer(chatml)
    text = tokenizer.decode([id for id in sample["input_ids"] if id >= 0])
    record = json.loads((FIXTURES / "stage1.json").read_text())[0]
    answer = record["conversations"][1]["value"]
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert text.endswith(f"<|im_start|>assistant\n{answer}<|im_end|>\n")
    assert tokenizer.decode([id for id in sample["labels"] if id != IGNORED]) == f"{answer}<|im_end|>"


def test_a_deep_look_tries_a_chat_template_on_every_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = CHAT_TEMPLATES["qwen"].replace("message['content']", "message['content'][:40]")
    tokenizer = save_tokenizer("qwen", tmp_path / "tokenizer", chat_template=cut)
    records = json.loads((FIXTURES / "stage1.json").read_text())[:3]
    records[1]["conversations"][1]["value"] = "A long answer " * 9
    (tmp_path / "data.json").write_text(json.dumps(records))
    sources = [{"annotations": str(tmp_path / "data.json"), "images": str(FIXTURES / "images")}]
    file = recipe(tmp_path, tokenizer=tokenizer, chat_template="tokenizer", sources=sources)
    assert main(["validate", "--deep", str(file)]) == 1
    printed = capsys.readouterr().err
    assert "the tokenizer's chat template changes the turns' text" in printed
    assert "of 3 records; this is the first" in printed


@pytest.mark.parametrize("template", ["plain", "v1", "qwen"])
def test_a_folder_without_tokenizer_is_reported_before_loading(tmp_path: Path, template: str) -> None:
    """Whatever the template needs, the run needs a tokenizer; a template of ours has nothing to say of it."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_bytes((FIXTURES / "tiny_vicuna" / name).read_bytes())
    with pytest.raises(RecipeError) as caught:
        check(recipe(tmp_path, tokenizer=folder, template=template))
    (problem,) = caught.value.problems
    assert problem.message == f'the folder "{folder}" contains no tokenizer'
    assert problem.found == f"neither tokenizer.json nor tokenizer.model in {folder}"
    assert problem.mark is not None and problem.mark.text is not None
    assert "language_model:" in problem.mark.text
    # What the message asks for is enough.
    (folder / "tokenizer.json").write_bytes((FIXTURES / "tiny_vicuna" / "tokenizer.json").read_bytes())
    if template != "qwen":
        check(recipe(tmp_path, tokenizer=folder, template=template))
