"""The project's own files agree with one another: version, Pythons, what CI and the hooks run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_recipes import __version__
from tests.processes import run_process

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def _yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text("utf-8"))


def test_the_version_is_the_changelogs_newest_and_the_citations() -> None:
    (newest, *_) = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert newest == _yaml("CITATION.cff")["version"] == __version__


def test_the_citation_has_what_cff_asks_for() -> None:
    citation = _yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["authors"] == PROJECT["authors"]
    assert citation["license"] == PROJECT["license"]


def test_the_workflow_runs_make_test_on_every_python() -> None:
    job = _yaml(".github/workflows/test.yml")["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == PYTHONS
    assert "make test" in [step.get("run") for step in job["steps"]]
    assert (ROOT / ".ci" / "run").read_text("utf-8").rstrip().endswith("make test")


def test_a_python_is_named_as_supported_where_the_workflow_tests_it() -> None:
    named = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if "Python :: 3." in text]
    assert named
    assert set(named) <= set(PYTHONS)
    assert PROJECT["requires-python"] == f">={min(PYTHONS)}"


def test_the_hooks_are_what_make_lint_runs() -> None:
    (local,) = _yaml(".pre-commit-config.yaml")["repos"]
    hooks = {Path(hook["entry"].split()[0]).name for hook in local["hooks"]}
    lint = re.search(r"^lint:.*?\n\n", (ROOT / "Makefile").read_text("utf-8"), re.M | re.S)
    assert lint is not None
    assert hooks == set(re.findall(r"\$\(BIN\)/([\w-]+)", lint[0]))


def test_an_issue_template_asks_for_something() -> None:
    forms = [_yaml(f".github/ISSUE_TEMPLATE/{name}.yml") for name in ("bug", "feature")]
    assert all(form["name"] and form["description"] and form["body"] for form in forms)


def test_the_decisions_are_dated_and_few() -> None:
    text = (ROOT / "docs" / "DECISIONS.md").read_bytes()
    assert len(text) <= 15_000
    entries = re.findall(r"^\*\*(?:(?!\n\n).)+", text.decode("utf-8"), re.M | re.S)
    assert entries
    assert [entry for entry in entries if not re.search(r"\(20\d\d-\d\d-\d\d\)", entry)] == []


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What set-up reads, without an environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def _make(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # The options of a `make` that runs these tests are not for this one.
    return run_process(["make", *words], cwd=folder, env={"MAKEFLAGS": "", "MAKELEVEL": "", "PIP_FLAGS": ""})


def test_a_second_make_sets_nothing_up(checkout: Path) -> None:
    ready = checkout / ".venv" / ".ready"
    assert _make("--question", "setup", folder=checkout).returncode == 1
    ready.parent.mkdir()
    ready.touch()
    newest = max(file.stat().st_mtime for file in checkout.iterdir() if file.is_file())
    os.utime(ready, (newest + 1, newest + 1))
    assert _make("--question", "setup", folder=checkout).returncode == 0
    os.utime(checkout / "constraints.txt", (newest + 2, newest + 2))
    assert _make("--question", "setup", folder=checkout).returncode == 1


@pytest.mark.parametrize(
    ("words", "installer"),
    [
        (("UV=",), "python -m pip install"),
        (("UV=/opt/uv",), "/opt/uv pip install --python .venv/bin/python"),
        (("UV=/opt/uv", "PIP_FLAGS=--no-cache-dir"), "python -m pip install"),
    ],
)
def test_uv_installs_where_it_is_available(words: tuple[str, ...], installer: str, checkout: Path) -> None:
    done = _make("--just-print", *words, "setup", folder=checkout)
    assert done.returncode == 0, done.stderr
    assert installer in done.stdout
    assert re.search(r"-c constraints\.txt torch==\S+ -e '\.\[dev\]'$", done.stdout, re.M)
