"""Nothing that a file of torch.save names is run, whoever reads it."""

from __future__ import annotations

import os
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_recipes.model.checkpoint import BadPickle, ContainsCode, load_plain, only_plain
from tests.laws import examples
from tests.model.poison import poisoned

FORMATS = ("zip", "legacy", "pickle", "newest pickle", "tar", "torchscript", "module")


@pytest.mark.parametrize("kind", FORMATS)
def test_code_is_refused_and_not_run(kind: str, tmp_path: Path) -> None:
    made, file = tmp_path / "PWNED", tmp_path / "optimizer.pt"
    file.write_bytes(poisoned(made)[kind])
    with pytest.raises(ContainsCode, match="run code"):
        load_plain(file)
    with only_plain(), warnings.catch_warnings(), pytest.raises((pickle.UnpicklingError, RuntimeError)):
        warnings.simplefilter("ignore")
        torch.load(file, weights_only=False)
    assert not made.exists()


def test_the_files_would_run_code(tmp_path: Path) -> None:
    made, file = tmp_path / "PWNED", tmp_path / "optimizer.pt"
    for kind in ("zip", "legacy"):
        file.write_bytes(poisoned(made)[kind])
        torch.load(file, weights_only=False)
        made.unlink()


@pytest.mark.parametrize("new_format", [True, False])
def test_tensors_and_plain_values_are_read(tmp_path: Path, new_format: bool) -> None:
    saved = {
        "state": OrderedDict(a=torch.arange(3)),
        "groups": [{"lr": 0.1, "betas": (0.9, 0.95), "x": None}],
    }
    torch.save(saved, tmp_path / "s.pt", _use_new_zipfile_serialization=new_format)
    read = load_plain(tmp_path / "s.pt")
    assert isinstance(read, dict)
    assert read["groups"] == saved["groups"] and torch.equal(read["state"]["a"], torch.arange(3))


@examples(100)
@given(content=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("bytes") / "x.pt"
    file.write_bytes(content)
    with pytest.raises(BadPickle):
        load_plain(file)


def test_the_switch_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    before = dict(os.environ)
    with only_plain():
        assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
    assert dict(os.environ) == before
