"""Every version that pyproject.toml allows is one that was tried; any other is refused in one line."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import packaging
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from llava_recipes.cli.main import WITHOUT_TORCH
from tests.processes import ROOT, llava_recipe, run_process
from tests.tiny import stage1_values, write_recipe

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    found = (line.split("==") for line in lines if not line.startswith("#"))
    return {package.lower().replace("_", "-"): Version(pinned) for package, pinned in found}


def lowest(requirement: Requirement) -> Version:
    (bound,) = [each for each in requirement.specifier if each.operator == ">="]
    return Version(bound.version)


@pytest.mark.parametrize("requirement", NEEDED, ids=lambda each: each.name)
def test_the_oldest_set_has_the_lowest_versions_and_the_tested_set_allowed_ones(
    requirement: Requirement,
) -> None:
    assert pins("constraints-oldest.txt")[requirement.name] == lowest(requirement)
    assert requirement.specifier.contains(pins("constraints.txt")[requirement.name])


def test_a_quantized_run_too() -> None:
    (requirement,) = map(Requirement, EXTRAS["quantized"])
    assert pins("constraints-oldest.txt")["bitsandbytes"] == lowest(requirement)
    assert "quantized" in EXTRAS and str(requirement) in EXTRAS["dev"]


PRIVATE = (
    *("_get_train_sampler", "_load_from_checkpoint", "_prepare_for_training", "_run_epoch"),
    *("_save_checkpoint", "_load_rng_state", "_clip_grad_norm", "_get_grad_norm"),
    *("_maybe_log_save_evaluate", "_track_num_input_tokens", "_init_training_state"),
    "_inner_training_loop",
)
"""What the trainers of train/ override of transformers' Trainer that no promise of it covers."""


def test_what_is_leaned_on_in_private_is_there_and_bounded_from_above() -> None:
    from transformers import Trainer

    from llava_recipes.train.trainer import StageTrainer

    ours = [kind for kind in StageTrainer.__mro__ if kind.__module__.startswith("llava_recipes.")]
    names = {name for kind in ours for name in vars(kind)}
    private = {name for name in names if name.startswith("_") and not name.startswith("__")}
    assert private & set(vars(Trainer)) == set(PRIVATE)
    bounded = {each.name for each in NEEDED if any(spec.operator == "<" for spec in each.specifier)}
    assert bounded == {"accelerate", "deepspeed", "transformers"}


def test_a_version_above_the_bound_is_refused(tmp_path: Path) -> None:
    recipe = write_recipe(stage1_values(tmp_path / "run"), tmp_path / "recipe.yaml")
    done = llava_recipe("run", recipe, cwd=tmp_path, env=pretend(tmp_path, transformers="5.25.0"), fresh=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "transformers 5.25.0 is installed, <5.25,>=5.17 is required" in line


def pretend(folder: Path, **versions: str) -> dict[str, str]:
    """An environment whose metadata say that these versions are installed."""
    for name, said in versions.items():
        found = folder / f"{name}-{said}.dist-info"
        found.mkdir()
        (found / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {said}\n")
    return {"PYTHONPATH": str(folder)}


def test_another_version_is_one_line_before_anything_else(tmp_path: Path) -> None:
    environment = pretend(tmp_path, transformers="5.16.1", torch="2.10.0")
    recipe = write_recipe(stage1_values(tmp_path / "run"), tmp_path / "recipe.yaml")
    for words in (("run", str(recipe)), ("validate", "--deep", str(recipe)), ("chat", str(tmp_path))):
        done = llava_recipe(*words, cwd=tmp_path, env=environment, fresh=True)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert (
            "torch 2.10.0 is installed, >=2.11 is required; transformers 5.16.1 is installed, <5.25,>="
            in line
        )
        assert line.endswith("pip install 'torch>=2.11' 'transformers<5.25,>=5.17'")
    assert not (tmp_path / "run").exists()


def test_a_command_that_breaks_on_another_version_says_so(tmp_path: Path) -> None:
    """One that must be quick looks at versions when it has failed: no bug of ours then."""
    environment = pretend(tmp_path, pydantic="1.10.26")
    (tmp_path / "pydantic").mkdir()
    (tmp_path / "pydantic" / "__init__.py").write_text("VERSION = '1.10.26'")
    recipe = ROOT / "recipes" / "demo.yaml"
    done = llava_recipe("validate", recipe, cwd=tmp_path, env=environment, fresh=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("pydantic 1.10.26 is installed") and "pip install 'pydantic>=" in line
    log = re.search(r"\(the traceback is in (.+)\)$", line)
    assert log is not None
    assert "Traceback" in Path(log[1]).read_text("utf-8")
    Path(log[1]).unlink()


def test_an_extra_is_looked_at_only_where_it_is_needed(tmp_path: Path) -> None:
    environment = pretend(tmp_path, bitsandbytes="0.40", lmms_eval="0.1")
    done = llava_recipe("run", "--help", cwd=tmp_path, env=environment, fresh=True)
    assert done.returncode == 0, done.stderr
    values = stage1_values(tmp_path / "run")
    source = values["model"]["language_model"]
    values["model"]["language_model"] = {"source": source, "quantization": {"bits": 4}}
    recipe = write_recipe(values, tmp_path / "recipe.yaml")
    done = llava_recipe("run", recipe, cwd=tmp_path, env=environment, fresh=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("bitsandbytes 0.40 is installed, >=0.50 is required; install")


def test_a_checkout_that_is_not_installed_says_what_it_needs(tmp_path: Path) -> None:
    """Without its site-packages, Python finds nothing but what is put beside the package."""
    for name in ("llava_recipes", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = [sys.executable, "-S", "-m", "llava_recipes", "run", "recipe.yaml"]
    for found, said in (
        (
            None,
            "packaging is not installed; install a version that works with llava-recipes: pip install pack",
        ),
        (Path(packaging.__file__).parent, "torch is not installed; transformers is not installed; install "),
    ):
        if found is not None:
            (tmp_path / "packaging").symlink_to(found)
        done = run_process(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert said in line


def test_builds_of_this_version_are_that_version() -> None:
    """`2.13.0+cpu`, and what comes before a release."""
    (torch,) = [each for each in NEEDED if each.name == "torch"]
    for said in (f"{lowest(torch)}+cpu", "2.99.0.dev20300101+cu140"):
        assert torch.specifier.contains(said, prereleases=True)
    assert torch.specifier.contains(version("torch"), prereleases=True)


def test_commands_that_look_at_no_version_import_nothing_heavy() -> None:
    """tests/test_imports.py runs each of them."""
    tried = (ROOT / "tests" / "test_imports.py").read_text("utf-8")
    assert [name for name in WITHOUT_TORCH if not re.search(rf'^        \("{name}"', tried, re.M)] == []
