"""`llava-recipe completion`: what the shells offer, asked of a real bash."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from llava_recipes.authoring.draft import TEMPLATES
from llava_recipes.authoring.gallery import gallery
from llava_recipes.cli.main import COMMANDS, main
from tests.processes import run_process

BASH = shutil.which("bash")

ASK = """\
source ./completions
COMP_WORDS=("$@")
COMP_CWORD=$(( $# - 1 ))
_llava_recipe
if (( ${#COMPREPLY[@]} )); then printf '%s\\n' "${COMPREPLY[@]}"; fi
"""


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A working folder with recipes, and the script under `completions`."""
    assert main(["completion", "bash"]) == 0
    (tmp_path / "completions").write_text(capsys.readouterr().out, encoding="utf-8")
    (tmp_path / "ask").write_text(ASK, encoding="utf-8")
    for name in ("one.yaml", "two.yml", "with space.yaml", "with * star.yaml", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "inner").mkdir()
    (tmp_path / "folder.yaml").mkdir()
    return tmp_path


def _offered(folder: Path, *words: str) -> set[str]:
    assert BASH is not None
    done = run_process([BASH, "--norc", "./ask", "llava-recipe", *words], cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(set(lines))
    return set(lines)


RECIPES = {"one.yaml", "two.yml", "with space.yaml", "with * star.yaml", "inner", "folder.yaml"}


@pytest.mark.skipif(BASH is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("",), {*COMMANDS, "--help", "--version"}),
        (("va",), {"validate"}),
        (("run", ""), RECIPES),
        (("run", "t"), {"two.yml"}),
        (("validate", "one.yaml", "w"), {"with space.yaml", "with * star.yaml"}),
        (("run", "--dr"), {"--dry-run"}),
        (("run", "one.yaml", "--set", ""), set()),
        (("schema", "p"), {"plan"}),
        (("new", ""), set(TEMPLATES)),
        (("new", "pretrain", "--images", ""), {"inner", "folder.yaml"}),
        (("new", "pretrain", "--data", "no"), {"notes.txt"}),
        (("new", "pretrain", "--data", "=", "no"), {"notes.txt"}),
        (("copy", ""), {entry.name for entry in gallery()}),
        (("list", "pretrain_v15"), {"pretrain_v15_7b", "pretrain_v15_13b"}),
        (("explain", "stages.train.learn"), {"stages.train.learning_rate"}),
        (("completion", ""), {"bash", "zsh", "fish"}),
        (("preview", "--format", "="), {"table", "jsonl"}),
        (("nonsense", ""), set()),
    ],
)
def test_bash_offers(folder: Path, words: tuple[str, ...], offered: set[str]) -> None:
    assert _offered(folder, *words) == offered


@pytest.mark.skipif(BASH is None, reason="there is no bash")
def test_bash_knows_it_for_the_command(folder: Path) -> None:
    assert BASH is not None
    script = "source ./completions; complete -p llava-recipe"
    done = run_process([BASH, "--norc", "-c", script], cwd=folder)
    assert done.stdout == "complete -F _llava_recipe llava-recipe\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_option_is_there(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    first = text.splitlines()[0]
    assert first == "#compdef llava-recipe" if shell == "zsh" else first.startswith("#")
    for command in COMMANDS:
        assert f"{command}" in text
    for option in ("dry-run", "output-dir", "world-size"):
        assert option in text
    for name in (*TEMPLATES, *(entry.name for entry in gallery())):
        assert name in text


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_quotes_are_closed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    for line in capsys.readouterr().out.splitlines():
        shlex.split(line, comments=True)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_shell_itself_can_read_it(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell}")
    assert main(["completion", shell]) == 0
    file = tmp_path / "completions"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    done = run_process([program, "-n", file], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_shell_is_wrong_usage() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["completion", "tcsh"])
    assert stopped.value.code == 2
