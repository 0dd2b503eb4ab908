"""The script for vLLM, with another program in vLLM's place, or another package of its name."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks.engines.ask_vllm import ENVIRONMENT, INSIDE, main
from tests.benchmarks.engines.conftest import ANSWERS, QUESTIONS, Program

FAKE_PYTHON = """\
import json, os, sys
script, request, answers = sys.argv[1:]
seen = {"script": script, "request": json.load(open(request)), "environment": dict(os.environ)}
json.dump(seen, open(FOLDER + "/seen.json", "w"))
json.dump(SAYS, open(answers, "w"))
"""

FAKE_VLLM = """\
import json, os


class SamplingParams:
    def __init__(self, **settings):
        self.settings = settings


class Output:
    def __init__(self, text):
        self.outputs = [self]
        self.text = text


class LLM:
    def __init__(self, model, **settings):
        self.seen = {"model": model, "settings": settings}

    def chat(self, chats, sampling, **settings):
        self.seen.update(chats=chats, sampling=sampling.settings, chat_settings=settings)
        json.dump(self.seen, open(os.environ["SEEN"], "w"))
        return [Output(f" answer {at}") for at, _ in enumerate(chats)]
"""


def fake_python(program: Program, folder: Path, says: object) -> str:
    text = FAKE_PYTHON.replace("FOLDER", repr(str(folder))).replace("SAYS", repr(says))
    return f"--python={program('python', text)}"


def test_a_python_is_started_on_the_export(
    asked: list[str], program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = tmp_path / "run" / "export-hf"
    export.mkdir()
    python = fake_python(program, tmp_path, {"engine": "vllm 9", "answers": [f" {a} " for a in ANSWERS]})
    assert main([*asked, python, "--max-new-tokens=7"]) == 0
    assert capsys.readouterr().out.endswith("there  vllm 9\n")
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert Path(seen["script"]) == INSIDE
    questions = [
        {"image": str(tmp_path / "images" / f"{at}.png"), "text": text} for at, text in enumerate(QUESTIONS)
    ]
    assert seen["request"] == {"model": str(export), "questions": questions, "max_new_tokens": 7}
    assert ENVIRONMENT.items() <= seen["environment"].items()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--python=./nowhere"], "--python: ./nowhere is not a program that can be started"),
        (
            [f"--python={sys.executable}"],
            "--export: RUN/export-hf is not a folder; make it: llava-recipe export RUN --to hf",
        ),
        ([f"--python={sys.executable}", "--export=nowhere"], "--export: nowhere is not a folder"),
    ],
)
def test_what_is_missing_is_one_line(
    words: list[str], message: str, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*asked, *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.replace(asked[0], "RUN").startswith(f"ask_vllm: {message}")


def test_a_python_without_vllm_is_one_line(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "export-hf").mkdir()
    assert main([*asked, f"--python={sys.executable}"]) == 2
    message = f"{sys.executable}: vLLM cannot be imported: No module named 'vllm'"
    assert capsys.readouterr() == ("", f"ask_vllm: {message}\n")


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({}, "FOLDER/python: inside_vllm.py left no answers"),
        ({"engine": "vllm 9", "answers": ["one"]}, "vllm 9 gave 1 answers to 3 questions"),
    ],
)
def test_answers_that_do_not_fit_are_refused(
    says: object,
    message: str,
    asked: list[str],
    program: Program,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "run" / "export-hf").mkdir()
    assert main([*asked, fake_python(program, tmp_path, says)]) == 2
    assert capsys.readouterr().err == f"ask_vllm: {message.replace('FOLDER', str(tmp_path))}\n"


@pytest.mark.parametrize("begin", ["", "{{ bos_token }}"])
def test_vllm_is_asked_by_chat_messages(
    begin: str,
    asked: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "run" / "export-hf").mkdir()
    (tmp_path / "run" / "export-hf" / "chat_template.jinja").write_text(f"{begin}{{{{ messages }}}}")
    (tmp_path / "vllm.py").write_text(FAKE_VLLM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.json"))
    assert main([*asked, f"--python={sys.executable}"]) == 1
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["model"] == str(tmp_path / "run" / "export-hf")
    assert seen["settings"]["dtype"] == "float32"
    assert seen["sampling"] == {"temperature": 0.0, "max_tokens": 32}
    assert seen["chat_settings"]["tokenization_kwargs"] == {"add_special_tokens": not begin}
    image = base64.b64encode((tmp_path / "images" / "1.png").read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
        {"type": "text", "text": QUESTIONS[1]},
    ]
    assert seen["chats"][1] == [{"role": "user", "content": content}]
    shown = capsys.readouterr().out
    assert '1. 0.png, "what is this": "a red circle" here, "answer 0" there' in shown
    assert "there  torch " in shown and os.environ["PYTHONPATH"] == str(tmp_path)
