"""`llava-recipe explain`: a key at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_recipes.cli.main import main

ROOT = Path(__file__).parent.parent.parent

PAGE = """\
stages[].train.learning_rate

Peak learning rate.

type      number > 0
default   none; the key is required
source    Hugging Face `TrainingArguments.learning_rate`; in the original `--learning_rate`
example   stages:
            - train:
                learning_rate: 1e-3
"""


def test_a_key_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "train.learning_rate"]) == 0
    assert capsys.readouterr().out == PAGE


def test_a_mapping_shows_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "projector"]) == 0
    printed = capsys.readouterr().out
    assert "default   see its keys" in printed
    for key in ("type", "init_from", "seed"):
        assert f"\n  {key} " in printed


def test_without_a_key_the_top_level(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    printed = capsys.readouterr().out
    for key in ("version", "name", "vars", "model", "stages"):
        assert f"\n  {key} " in printed
    assert "learning_rate" not in printed


def test_several_keys_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "freeze", "trainable"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("stages[].freeze\n")
    assert "\nstages[].trainable\n" in printed


def test_a_misspelled_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "train.learnin_rate"]) == 1
    assert "did you mean `train.learning_rate`?" in capsys.readouterr().err
