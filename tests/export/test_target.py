"""A new folder is complete or absent."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava_recipes.errors import RecipeError
from llava_recipes.export.target import new_folder, piece_of, write_shards
from llava_recipes.files import replacing, write_text


def test_weights_that_cannot_be_written_are_the_users_to_mend(tmp_path: Path) -> None:
    """As on a full disk: safetensors has an error of its own for it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with (
            pytest.raises(RecipeError, match="cannot be written"),
            new_folder(tmp_path / "model", num_bytes=1) as folder,
        ):
            save_file({"weight": torch.zeros(1000)}, folder / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o027, 0o077], ids=oct)
def test_a_new_folder_has_the_modes_that_the_umask_leaves(umask: int, tmp_path: Path) -> None:
    """safetensors makes its files for their owner alone, whatever the umask."""
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "model", num_bytes=1) as folder:
            save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
            (folder / "deep" / "er").mkdir(parents=True, mode=0o700)
            (folder / "deep" / "er" / "config.json").write_text("{}")
            (folder / "deep" / "er" / "config.json").chmod(0o600)
        with replacing(tmp_path / "trained.safetensors") as temporary:
            save_file({"weight": torch.zeros(1)}, temporary)
        write_text(tmp_path / "plan.json", "{}")
    finally:
        os.umask(before)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert len(found) == 7
    for path, mode in found.items():
        assert mode == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_a_new_folder_in_a_shared_one_is_shared(tmp_path: Path) -> None:
    """Folders in one with the setgid bit have it too, and with it the group, as those of a plain mkdir."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2775)
    (shared / "plain" / "deep").mkdir(parents=True)
    with new_folder(shared / "model", num_bytes=1) as folder:
        (folder / "deep").mkdir()
        (folder / "config.json").write_text("{}")
    modes = [stat.S_IMODE((shared / name).stat().st_mode) for name in ("plain", "plain/deep")]
    assert modes[0] & stat.S_ISGID, "this file system hands no setgid bit down"
    assert [stat.S_IMODE((shared / name).stat().st_mode) for name in ("model", "model/deep")] == modes
    assert not (shared / "model" / "config.json").stat().st_mode & stat.S_ISGID


def test_a_weight_that_overflows_in_the_dtype_is_not_written(tmp_path: Path) -> None:
    pieces = [piece_of("large", torch.tensor([1.0, 1e5]))]
    write_shards(pieces, tmp_path, dtype=torch.bfloat16, max_bytes=100)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match="large does not fit into float16"):
        write_shards(pieces, tmp_path, dtype=torch.float16, max_bytes=100)
    assert not (tmp_path / "model.safetensors").exists()
