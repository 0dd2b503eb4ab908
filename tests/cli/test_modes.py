"""Files that a command writes have the mode that the umask leaves, as those of any other program."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from llava_recipes.cli.main import main

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes" / "pretrain_v15_7b.yaml")
DATA = str(ROOT / "tests" / "golden" / "fixtures" / "stage1.json")
SCRIPT = str(ROOT / "tests" / "migrate" / "scripts" / "v1_5" / "pretrain.sh")


@pytest.mark.parametrize("umask", [0o022, 0o027], ids=oct)
@pytest.mark.parametrize(
    "words",
    [
        ("copy", "demo", "-o", "out.yaml"),
        ("new", "pretrain", "--yes", "-o", "out.yaml", "--data", DATA),
        ("migrate", SCRIPT, "-o", "out.yaml"),
        ("export-script", RECIPE, "-o", "out.sh", "--world-size", "8"),
        ("plan", RECIPE, "--world-size", "8", "--html", "out.html"),
        ("slurm", RECIPE, "--gpus-per-node", "8", "-o", "out.sbatch"),
    ],
    ids=lambda words: words[0],
)
def test_files_have_the_umasks_mode(
    words: tuple[str, ...], umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = os.umask(umask)
    try:
        assert main(list(words)) == 0
    finally:
        os.umask(before)
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
