"""Commands that only read a recipe stay light: nothing of torch is imported on their way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECIPE = "recipes/pretrain_v15_13b.yaml"
HEAVY = ("torch", "transformers", "deepspeed", "accelerate", "numpy", "PIL", "pyarrow", "jinja2")

AFTER_A_COMMAND = """
import sys
from llava_recipes.cli.main import main
try:
    code = main(sys.argv[2:])
except SystemExit as stop:
    code = stop.code
print("imported:", *sorted(set(sys.argv[1].split(",")) & set(sys.modules)), file=sys.stderr)
raise SystemExit(code)
"""


def _imported_by(words: tuple[str, ...], names: tuple[str, ...] = HEAVY) -> list[str]:
    """Which of `names` are imported once the command is done, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", AFTER_A_COMMAND, ",".join(names), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    last_line = done.stderr.splitlines()[-1]
    assert last_line.startswith("imported:")
    return last_line.split()[1:]


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("run", "--help"),
        ("validate", "--help"),
        ("plan", "--help"),
        ("preview", "--help"),
        ("schema", "--help"),
        ("chat", "--help"),
        ("generate", "--help"),
        ("eval", "--help"),
        ("merge", "--help"),
        ("export", "--help"),
        ("import", "--help"),
        ("schema",),
        ("list",),
        ("copy", "demo", "-o", "-"),
        ("new", "pretrain", "--yes", "-o", "-"),
        ("explain", "train"),
        ("completion", "bash"),
        ("migrate", "tests/migrate/scripts/v1_5/pretrain.sh"),
        ("export-script", RECIPE),
        ("validate", RECIPE),
        ("plan", RECIPE, "--world-size", "8"),
        ("plan", RECIPE, "--world-size", "8", "--json"),
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(words: tuple[str, ...]) -> None:
    assert _imported_by(words) == []


def test_the_check_sees_what_is_imported() -> None:
    assert _imported_by(("validate", RECIPE), ("pydantic", "torch")) == ["pydantic"]
