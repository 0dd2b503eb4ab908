"""`llava-recipe completion`: what the shells offer, asked of real ones."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from llava_recipes.authoring.gallery import gallery
from llava_recipes.authoring.new_recipe import TEMPLATES
from llava_recipes.cli.main import COMMANDS, WITHOUT_TORCH, main
from tests.processes import run_process

BASH, FISH = shutil.which("bash"), shutil.which("fish")
IN_BASH = pytest.mark.skipif(BASH is None, reason="there is no bash")

ASK_BASH = """\
source ./completions
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
_python_argcomplete_llava-recipe "${1%% *}"
if (( ${#COMPREPLY[@]} )); then printf '%s\\n' "${COMPREPLY[@]}"; fi
"""
COMMAND = f"#!/bin/sh\nexec '{sys.executable}' -P -m llava_recipes \"$@\"\n"
HEAVY = re.compile(r"\b(torch|transformers|numpy|PIL|rich)$", re.MULTILINE)


def _write_command(file: Path, script: str) -> None:
    file.write_text(script, encoding="utf-8")
    file.chmod(0o755)


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with recipes and the script under `completions`; the command is on the PATH."""
    assert main(["completion", "bash"]) == 0
    work = tmp_path / "work"
    (work / "inner").mkdir(parents=True)
    (work / "folder.yaml").mkdir()
    (work / "completions").write_text(capsys.readouterr().out, encoding="utf-8")
    (work / "ask").write_text(ASK_BASH, encoding="utf-8")
    for name in ("one.yaml", "two.yml", "with space.yaml", "with * star.yaml", "notes.txt", ".hidden.yaml"):
        (work / name).touch()
    stages = "extends: base.yaml\nvars: {data: x}\nstages: [{name: tune}, {name: last}]\n"
    (work / "inner" / "whole.yaml").write_text(stages, encoding="utf-8")
    (work / "inner" / "base.yaml").write_text("model: {}\nvars: {out: y}\n", encoding="utf-8")
    (tmp_path / "bin").mkdir()
    _write_command(tmp_path / "bin" / "llava-recipe", COMMAND)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return work


def _offered(folder: Path, line: str) -> list[str]:
    assert BASH is not None
    done = run_process([BASH, "--norc", "./ask", line], cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [each.removesuffix(" ") for each in done.stdout.splitlines()]
    assert len(lines) == len(set(lines))
    return lines


RECIPES = {"one.yaml", "two.yml", r"with\ space.yaml", r"with\ \*\ star.yaml", "inner/", "folder.yaml/"}


@IN_BASH
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("", {*COMMANDS, "--help", "--version"}),
        ("va", {"validate"}),
        ("run ", RECIPES),
        ("run t", {"two.yml"}),
        ("run ./inner/", {"./inner/base.yaml", "./inner/whole.yaml"}),
        ("run .h", {".hidden.yaml"}),
        ("validate one.yaml w", {r"with\ space.yaml", r"with\ \*\ star.yaml"}),
        ("run 'with s", {"with space.yaml"}),
        ("run --dr", {"--dry-run"}),
        ("run one.yaml --set stages.", set()),
        ("run absent.yaml --stage ", set()),
        ("run inner/whole.yaml --stage ", {"tune", "last"}),
        ("run inner/whole.yaml --set vars.", {"vars.data=", "vars.out="}),
        ("plan inner/whole.yaml --set stages.tune.train.learn", {"stages.tune.train.learning_rate="}),
        ("preview inner/whole.yaml --set model.projector.t", {"model.projector.type="}),
        ("schema p", {"plan"}),
        ("new ", set(TEMPLATES)),
        ("new pretrain --images ", {"inner/", "folder.yaml/"}),
        ("new pretrain --data no", {"notes.txt"}),
        ("new pretrain --data=no", {"notes.txt"}),
        ("copy ", {entry.name for entry in gallery()}),
        ("list pretrain_v15", {"pretrain_v15_7b", "pretrain_v15_13b"}),
        ("explain stages.train.learn", {"stages.train.learning_rate"}),
        ("completion ", {"bash", "zsh", "fish"}),
        ("preview --format ", {"table", "jsonl"}),
        ("chat inner --image no", {"notes.txt"}),
        ("chat inner ", set()),
        ("nonsense ", set()),
    ],
)
def test_bash_offers(folder: Path, line: str, offered: set[str]) -> None:
    assert set(_offered(folder, f"llava-recipe {line}")) == offered


@IN_BASH
def test_bash_knows_it_for_the_command(folder: Path) -> None:
    assert BASH is not None
    script = "source ./completions; complete -p llava-recipe"
    done = run_process([BASH, "--norc", "-c", script], cwd=folder)
    assert done.stdout == "complete -o nospace -F _python_argcomplete_llava-recipe llava-recipe\n"


@IN_BASH
def test_a_tab_runs_nothing_of_the_folder(folder: Path) -> None:
    """Neither a program named as ours, whose path stands on the line, nor modules named as Python's."""
    _write_command(folder / "llava-recipe", "#!/bin/sh\ntouch ran\n")
    for name in ("argcomplete", "yaml", "shlex", "llava_recipes", "sitecustomize"):
        (folder / f"{name}.py").write_text("open('ran', 'w')", encoding="utf-8")
    for line in ("./llava-recipe ", "./llava-recipe run inner/whole.yaml --stage "):
        assert _offered(folder, line)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "command", ["", "plan inner/whole.yaml --set ", *sorted({*COMMANDS} - WITHOUT_TORCH)]
)
def test_a_tab_imports_nothing_heavy(command: str, folder: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers"
    line = f"llava-recipe {command} "
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answers),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    argv = [sys.executable, "-P", "-X", "importtime", "-m", "llava_recipes"]
    done = run_process(argv, cwd=folder, env=asked)
    assert done.returncode == 0
    assert answers.exists() and "argcomplete" in done.stderr
    assert HEAVY.findall(done.stderr) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_itself_can_read_it(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell}")
    assert main(["completion", shell]) == 0
    file = tmp_path / "completions"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    done = run_process([program, "-n", file], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(FISH is None, reason="there is no fish")
def test_fish_offers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert FISH is not None
    assert main(["completion", "fish"]) == 0
    script = capsys.readouterr().out + "complete -C 'llava-recipe run --dr'\n"
    done = run_process([FISH, "--no-config", "-c", script], cwd=folder)
    assert done.stdout == "--dry-run\tcheck everything, but don't train\n"


def test_another_shell_is_wrong_usage() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["completion", "tcsh"])
    assert stopped.value.code == 2
