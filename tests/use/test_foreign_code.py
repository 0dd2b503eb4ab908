"""Code that comes with a model isn't run by any command, whatever stands on standard input."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from llava_recipes.cli.main import main
from tests.sealed import seal_again
from tests.tiny import FIXTURES, stage1_values, write_recipe

QUESTIONS, IMAGES = str(FIXTURES / "stage1.json"), str(FIXTURES / "images")
IMAGE = f"{IMAGES}/rgb_wide.jpg"
REFUSED = "names code to run; this program never runs code that comes with a model"
CODE = """\
open({mark!r}, "w").close()
from transformers import CLIPImageProcessor as Processor, LlamaConfig, LlamaTokenizer as Tokenizer
class Config(LlamaConfig):
    model_type = "foreign"
def generate(*args, **kwargs):
    raise RuntimeError
"""
MAPS: dict[str, dict[str, Any]] = {
    "config.json": {"model_type": "foreign", "auto_map": {"AutoConfig": "foreign.Config"}},
    "tokenizer_config.json": {
        "tokenizer_class": "Tokenizer",
        "auto_map": {"AutoTokenizer": ["foreign.Tokenizer", None]},
    },
    "preprocessor_config.json": {
        "image_processor_type": "Processor",
        "auto_map": {"AutoImageProcessor": "foreign.Processor"},
    },
    "generation_config.json": {"custom_generate": "custom_generate", "auto_map": {}},
}


@pytest.fixture(autouse=True)
def consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))


def _with_code(folder: Path, of: Path, file: str) -> Path:
    """A copy of a model's folder, one file of which asks for code that leaves a mark when it is run."""
    shutil.copytree(of, folder)
    old = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    (folder / file).write_text(json.dumps({**old, **MAPS[file]}))
    (folder / "custom_generate").mkdir()
    for each in (folder / "foreign.py", folder / "custom_generate" / "generate.py"):
        each.write_text(CODE.format(mark=str(folder / "RUN")))
    return folder


def _refuses(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1, words
    printed = capsys.readouterr().err
    assert REFUSED in printed and str(folder) in printed, printed
    assert not list(folder.rglob("RUN"))
    # Nobody has asked.
    assert sys.stdin.tell() == 0


@pytest.mark.parametrize("file", MAPS)
@pytest.mark.parametrize(
    "command", [["validate"], ["validate", "--deep"], ["preview"], ["run"]], ids=" ".join
)
def test_a_recipe_whose_model_brings_code(
    command: list[str], file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = stage1_values(tmp_path / "out")
    if file == "preprocessor_config.json":
        folder = _with_code(tmp_path / "tower", FIXTURES / "tiny_clip", file)
        values["model"]["vision_tower"]["source"] = str(folder)
    else:
        folder = _with_code(tmp_path / "language", FIXTURES / "tiny_vicuna", file)
        values["model"]["language_model"] = str(folder)
    recipe = write_recipe(values, tmp_path / "recipe.yaml")
    _refuses([*command, str(recipe)], folder, capsys)
    assert not (tmp_path / "out").exists()


ON_FOLDERS = (
    ("chat", "{run}", "what?", "--image", IMAGE),
    ("generate", "{run}", "--input", QUESTIONS, "--images", IMAGES, "-o", "{out}"),
    ("eval", "{run}", "--data", QUESTIONS, "--images", IMAGES, "-o", "{out}"),
    ("import", "{run}", "-o", "{out}"),
    ("export", "{run}", "--to", "hf", "-o", "{out}"),
    ("export", "{run}", "--to", "llava", "-o", "{out}"),
    ("export", "{run}", "--to", "gguf-ready", "-o", "{out}"),
)


def _words(words: tuple[str, ...], run: Path, tmp_path: Path) -> list[str]:
    return [word.format(run=run, out=tmp_path / "written") for word in words]


@pytest.mark.parametrize("words", ON_FOLDERS, ids=lambda words: " ".join(words[:1]))
def test_a_folder_that_brings_code(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _with_code(tmp_path / "model", FIXTURES / "tiny_vicuna", "config.json")
    _refuses(_words(words, folder, tmp_path), folder, capsys)
    assert not (tmp_path / "written").exists()


def test_a_run_whose_language_model_brings_code_by_now(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its plan names the folder; so does `--base`, and adapters have it in their settings."""
    folder = _with_code(tmp_path / "language", FIXTURES / "tiny_vicuna", "config.json")
    for name, command in (("projector", ["export", "--to", "hf"]), ("lora", ["merge"])):
        run = shutil.copytree(pipeline / name, tmp_path / name)
        given = [*command, str(run), "-o", str(tmp_path / "written")]
        _refuses([*given, "--base", str(folder)], folder, capsys)
        plan = json.loads((run / "plan.json").read_text())
        plan["model"]["language_model"] |= {"source": str(folder), "tokenizer": str(folder)}
        (run / "plan.json").write_text(json.dumps(plan))
        seal_again(run)
        _refuses(given, folder, capsys)


def test_a_stage_that_starts_from_adapters_with_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start"
    start.mkdir()
    (start / "adapter_config.json").write_text(json.dumps({"auto_map": {"AutoModel": "foreign.Model"}}))
    values = stage1_values(tmp_path / "out")
    values["stages"][0]["init_from"] = str(start)
    recipe = write_recipe(values, tmp_path / "recipe.yaml")
    _refuses(["validate", "--deep", str(recipe)], start, capsys)


def test_an_export_hands_no_code_on(pipeline: Path, tmp_path: Path) -> None:
    """Though it is next to the tokenizer's files, under a name like theirs."""
    base = shutil.copytree(FIXTURES / "tiny_vicuna", tmp_path / "language")
    (base / "tokenizer_foreign.py").write_text(CODE.format(mark=str(tmp_path / "RUN")))
    written = tmp_path / "written"
    words = ["export", str(pipeline / "projector"), "--to", "llava", "-o", str(written), "--base", str(base)]
    assert main(words) == 0
    assert (written / "tokenizer_config.json").is_file() and not list(written.rglob("*.py"))
