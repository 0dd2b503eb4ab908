"""Three questions about drawn images, what our side says to them, and programs in place of the engines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.engines import compare
from benchmarks.engines.compare import Answered, Question

QUESTIONS = ("what is this", "where is it", "how large is it")
ANSWERS = ("a red circle", "at the top", "small")

Program = Callable[[str, str], Path]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of every script: RUN, the questions and where their images are.

    What `llava-recipe generate` says is ANSWERS, without opening RUN.
    """
    (tmp_path / "run").mkdir()
    (tmp_path / "images").mkdir()
    lines = []
    for number, question in enumerate(QUESTIONS):
        Image.new("RGB", (4 + number, 4), (80 * number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "prompt": f"<image>\n{question}"}) + "\n")
    (tmp_path / "questions.jsonl").write_text("".join(lines))

    def own_answers(
        run: Path, questions: Sequence[Question], images: Path, max_new_tokens: int, *, base: str | None
    ) -> Answered:
        return Answered("ours 1.0", ANSWERS[: len(questions)])

    monkeypatch.setattr(compare, "own_answers", own_answers)
    files = [f"--questions={tmp_path}/questions.jsonl", f"--images={tmp_path}/images"]
    return [str(tmp_path / "run"), *files]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Make an executable of a name from the text of a Python script."""

    def make(name: str, text: str) -> Path:
        file = tmp_path / name
        file.write_text(f"#!{sys.executable} -IS\n{text}")
        file.chmod(0o700)
        return file

    return make
