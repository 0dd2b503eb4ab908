"""What the program says to a word that is no command."""

from __future__ import annotations

import pytest

from llava_recipes.cli.main import main


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("valdate", "did you mean `validate`?"),
        ("impot", "did you mean `import`?"),
        ("zzz", "commands: run, "),
    ],
)
def test_an_unknown_command(word: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    assert advice in capsys.readouterr().err
