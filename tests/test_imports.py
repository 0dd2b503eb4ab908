"""Commands that only read a recipe stay light: nothing of torch is imported on their way."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llava_recipes.cli.main import COMMANDS
from tests.processes import run_process

ROOT = Path(__file__).parent.parent
RECIPE = "recipes/pretrain_v15_13b.yaml"
HEAVY = ("torch", "transformers", "deepspeed", "accelerate", "numpy", "PIL", "pyarrow", "jinja2", "rich")

AFTER_A_COMMAND = """
import sys
from llava_recipes.cli.main import main
names = set(sys.argv.pop(1).split(","))
try:
    code = main()
except SystemExit as stop:
    code = stop.code
print("imported:", *sorted(names & set(sys.modules)), file=sys.stderr)
raise SystemExit(code)
"""


def _imported_by(words: tuple[str, ...], names: tuple[str, ...] = HEAVY) -> list[str]:
    """Which of `names` are imported once the command is done, in a process of its own."""
    done = run_process([sys.executable, "-c", AFTER_A_COMMAND, ",".join(names), *words], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    last_line = done.stderr.splitlines()[-1]
    assert last_line.startswith("imported:")
    return last_line.split()[1:]


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        *((command, "--help") for command in COMMANDS),
        ("schema",),
        ("list",),
        ("copy", "demo", "-o", "-"),
        ("new", "pretrain", "--yes", "-o", "-", "--data", "tests/golden/fixtures/stage1.json"),
        ("explain", "train"),
        ("completion", "bash"),
        ("migrate", "tests/migrate/scripts/v1_5/pretrain.sh"),
        ("export-script", RECIPE),
        ("slurm", RECIPE, "--gpus-per-node", "8"),
        ("validate", RECIPE),
        ("plan", RECIPE, "--world-size", "8"),
        ("plan", RECIPE, "--world-size", "8", "--json"),
        ("show", RECIPE, "--origin"),
        ("diff", RECIPE, RECIPE, "--world-size", "8"),
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(words: tuple[str, ...]) -> None:
    assert _imported_by(words) == []


def test_an_explanation_comes_at_once() -> None:
    """The keys are read from their list, and none of the code that makes it is imported."""
    assert _imported_by(("explain", "bf16"), (*HEAVY, "pydantic", "yaml")) == []


def test_the_check_sees_what_is_imported() -> None:
    assert _imported_by(("validate", RECIPE), ("pydantic", "torch")) == ["pydantic"]
