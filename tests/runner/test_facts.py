"""What kind a folder's tokenizer is, and that nothing in it stops a plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_recipes.demo.vocabulary import write_tokenizer
from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner.facts import compile_loaded, tokenizer_kind
from tests.tiny import FIXTURES, stage1_values, write_recipe


def test_a_sentencepiece_file_goes_before_tokenizer_json(tmp_path: Path) -> None:
    assert tokenizer_kind(FIXTURES / "tiny_vicuna") == "sentencepiece"
    write_tokenizer(tmp_path / "words")
    assert tokenizer_kind(tmp_path / "words") == "WordLevel"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 3}', '{"model": []}', "{", "[" * 9999])
def test_a_damaged_file_is_of_no_known_kind(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    assert tokenizer_kind(tmp_path) is None


def test_nothing_there_is_of_no_known_kind(tmp_path: Path) -> None:
    assert tokenizer_kind(tmp_path) is None
    assert tokenizer_kind(tmp_path / "nowhere") is None


def test_validate_looks_at_the_tokenizer_on_disk(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "words")
    values = stage1_values(tmp_path / "run")
    language = json.loads((FIXTURES / "tiny_vicuna" / "config.json").read_text())
    kept = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    values["model"]["language_model"] = {
        "config": {key: language[key] for key in (*kept, "vocab_size")},
        "tokenizer": str(tmp_path / "words"),
    }
    loaded = load_recipe(str(write_recipe(values, tmp_path / "recipe.yaml")))
    warnings = compile_loaded(loaded, world_size=1).warnings
    (found,) = [problem for problem in warnings if "exported" in problem.message]
    assert found.path == ("model", "language_model", "tokenizer")
    assert "`gguf-ready`: llama.cpp's converter cannot read this kind of tokenizer" in found.message
