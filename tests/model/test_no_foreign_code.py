"""Every call that lets a library read a model's files trusts no code in them."""

from __future__ import annotations

import ast
from pathlib import Path

import llava_recipes

READERS = ("from_pretrained", "from_config", "pipeline")


def _reads(file: Path) -> list[ast.Call]:
    calls = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in READERS]


def test_every_read_of_a_model_trusts_no_code() -> None:
    """Left out, `trust_remote_code` is what transformers asks for on standard input."""
    files = sorted(Path(llava_recipes.__file__).parent.rglob("*.py"))
    reads = [(file, call) for file in files for call in _reads(file)]
    assert len(reads) >= 6
    for file, call in reads:
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert given.get("trust_remote_code") == "False", f"{file.name}:{call.lineno}: {ast.unparse(call)}"
