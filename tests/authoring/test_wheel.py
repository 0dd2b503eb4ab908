"""An installed package has gallery, schemas and templates with it, far from any checkout."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from llava_recipes.authoring.gallery import gallery
from tests.processes import ROOT, run_process

NEEDED = (
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "llava_recipes",
    "recipes",
    "schemas",
)


def _run(*words: str, folder: Path, installed: Path | None = None) -> str:
    environment = {"PYTHONPATH": str(installed or "")}
    done = run_process([sys.executable, *words], cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as pip installs it from a wheel, built from a copy: a build writes beside its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('../dist'))"
    (folder / "dist").mkdir()
    wheel = folder / "dist" / _run("-c", build, folder=source).split()[-1]
    target = folder / "installed"
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    _run(*pip, folder=folder)
    return target


def test_the_gallery_comes_along(installed: Path, tmp_path: Path) -> None:
    where = "import llava_recipes; print(llava_recipes.__file__)"
    assert _run("-c", where, folder=tmp_path, installed=installed).startswith(str(installed))
    listed = _run("-m", "llava_recipes", "list", folder=tmp_path, installed=installed)
    names = [entry.name for entry in gallery()]
    assert all(f"\n  {name} " in listed for name in names)
    copy_each = (
        "import sys; from llava_recipes.cli.main import main\n"
        "for name in sys.argv[1:]:\n"
        "    assert main(['copy', name, '-o', 'x.yaml', '--force']) == 0\n"
        "    assert main(['validate', 'x.yaml']) == 0\n"
    )
    _run("-c", copy_each, *names, folder=tmp_path, installed=installed)


def test_so_do_templates_and_schemas(installed: Path, tmp_path: Path) -> None:
    _run("-m", "llava_recipes", "new", "pretrain", "--yes", folder=tmp_path, installed=installed)
    modeline = (tmp_path / "pretrain.yaml").read_text(encoding="utf-8").splitlines()[0]
    schema = Path(modeline.partition("$schema=")[2])
    assert schema.is_relative_to(installed)
    assert schema.read_bytes() == (ROOT / "schemas" / "recipe.schema.json").read_bytes()
    assert (installed / "llava_recipes" / "py.typed").is_file()
    page = _run("-m", "llava_recipes", "explain", "train.bf16", folder=tmp_path, installed=installed)
    assert page.startswith("stages[].train.bf16\n")
    script = _run("-m", "llava_recipes", "completion", "bash", folder=tmp_path, installed=installed)
    assert "llava-recipe" in script
