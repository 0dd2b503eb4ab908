"""The script for llama.cpp, with other programs in place of its converters and of llama-mtmd-cli."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engines.ask_llama_cpp import ANSWER_BEGINS, CONVERT_LANGUAGE, CONVERT_VISION, main
from tests.benchmarks.engines.conftest import ANSWERS, QUESTIONS, Program

CONVERTERS = """\
import json, pathlib, sys
with open(FOLDER + "/converted.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
option = "--outfile" if "--outfile" in sys.argv else "--output-dir"
target = pathlib.Path(sys.argv[sys.argv.index(option) + 1])
(target if option == "--outfile" else target / "mmproj-model-f32.gguf").write_text("weights")
"""

BINARY = """\
import json, os, pathlib, sys, time
if sys.argv[1:] == ["--version"]:
    sys.exit("version: 0.5 (build 7, commit abc)\\nbuilt with care")
for option in ("-m", "--mmproj"):
    assert os.path.isfile(sys.argv[sys.argv.index(option) + 1])


def write(text):
    # As slowly as a busy machine does it.
    for piece in (text[:9], text[9:]):
        sys.stdout.write(piece)
        sys.stdout.flush()
        time.sleep(0.01)


write("Running in chat mode\\n\\n> ")
lines = []
for line in sys.stdin:
    lines.append(line.rstrip("\\n"))
    if lines[-1].startswith("/image "):
        write(f"{lines[-1]}\\n{lines[-1][7:]} image loaded\\n\\n> ")
    else:
        said = dict(zip(QUESTIONS, ANSWERS))[lines[-1]]
        write(f"{lines[-1]}\\n{os.environ['MTMD_TEST_RESPONSE_MARKER']}\\n\\n {said}\\n\\n> ")
with open(FOLDER + "/called.jsonl", "a") as file:
    file.write(json.dumps([sys.argv[1:], lines]) + "\\n")
"""


@pytest.fixture
def words(asked: list[str], program: Program, tmp_path: Path) -> list[str]:
    """The whole command line, for an export and a checkout that hold what is looked at."""
    export, source = tmp_path / "run" / "export-gguf-ready", tmp_path / "llama.cpp"
    for folder in (export / "language_model", export / "vit", (source / CONVERT_VISION).parent):
        folder.mkdir(parents=True)
    (source / CONVERT_LANGUAGE).touch()
    (source / CONVERT_VISION).touch()
    settings = {"image_mean": [0.5, 0.25, 0.125], "image_std": [1.0, 2.0, 3.0]}
    (export / "vit" / "preprocessor_config.json").write_text(json.dumps(settings))
    python = program("python", CONVERTERS.replace("FOLDER", repr(str(tmp_path))))
    binary = fake_binary(program, tmp_path, BINARY)
    return [*asked, f"--source={source}", f"--python={python}", f"--binary={binary}"]


def fake_binary(program: Program, folder: Path, text: str) -> Path:
    values = {"FOLDER": str(folder), "QUESTIONS": QUESTIONS, "ANSWERS": ANSWERS}
    for name, value in values.items():
        text = text.replace(name, repr(value))
    return program("llama-mtmd-cli", text)


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_converters_and_the_binary_are_called_as_the_export_says(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--max-new-tokens=9"]) == 0
    assert capsys.readouterr().out.endswith(
        "3 of 3 equal (3 different answers)\nhere   ours 1.0\nthere  llama.cpp 0.5 (build 7, commit abc)\n"
    )
    export, source = tmp_path / "run" / "export-gguf-ready", tmp_path / "llama.cpp"
    language, vision = lines(tmp_path / "converted.jsonl")
    model = language[language.index("--outfile") + 1]
    folder = vision[vision.index("--output-dir") + 1]
    assert language == [
        *(str(source / CONVERT_LANGUAGE), str(export / "language_model"), "--outfile", model),
        *("--outtype", "f32"),
    ]
    assert vision == [
        *(str(source / CONVERT_VISION), "-m", str(export / "vit"), "--output-dir", folder),
        *("--llava-projector", str(export / "vit" / "llava.projector"), "--clip-model-is-vision"),
        *("--use-f32", "--image-mean", "0.5", "0.25", "0.125", "--image-std", "1.0", "2.0", "3.0"),
    ]
    calls = lines(tmp_path / "called.jsonl")
    assert len(calls) == len(QUESTIONS)
    for number, (call, question) in enumerate(zip(calls, QUESTIONS, strict=True)):
        words_given, lines_given = call
        assert words_given == [
            *("-m", model, "--mmproj", f"{folder}/mmproj-model-f32.gguf", "--jinja", "--temp", "0"),
            *("-lv", "1", "-n", "9"),
        ]
        assert lines_given == [f"/image {tmp_path / 'images' / f'{number}.png'}", question]
    assert not Path(folder).exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "MTMD_TEST_RESPONSE_MARKER",
            "HOME",
            f"wrote no {ANSWER_BEGINS!r} before its answer: another version?",
        ),
        ("image loaded", "not found", "did not load FOLDER/images/0.png"),
        ('write("Running', 'sys.exit("no chat template"); ("', "ended with 1: no chat template"),
        ("said = dict", "os._exit(3); said = dict", "ended with 3: no message"),
    ],
)
def test_a_binary_that_does_not_answer_is_one_line(
    old: str,
    new: str,
    message: str,
    words: list[str],
    program: Program,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert old in BINARY
    fake_binary(program, tmp_path, BINARY.replace(old, new))
    assert main(words) == 2
    message = message.replace("FOLDER", str(tmp_path))
    assert capsys.readouterr() == ("", f"ask_llama_cpp: {tmp_path}/llama-mtmd-cli {message}\n")


def test_a_question_of_several_lines_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "questions.jsonl").write_text(json.dumps({"image": "0.png", "prompt": "what\nis it"}))
    assert main(words) == 2
    message = "llama-mtmd-cli takes a question as one line; --questions has some of several"
    assert capsys.readouterr() == ("", f"ask_llama_cpp: {message}\n")


def test_a_converter_that_fails_is_reported(
    words: list[str], program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program("python", "import sys; sys.exit('no module named gguf')")
    assert main(words) == 2
    assert capsys.readouterr().err == f"ask_llama_cpp: {tmp_path}/python ended with 1: no module named gguf\n"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--binary=./nowhere", "--binary: ./nowhere is not a program that can be started"),
        ("--python=./nowhere", "--python: ./nowhere is not a program that can be started"),
        ("--source=nowhere", "--source: nowhere/convert_hf_to_gguf.py is not a file"),
        (
            "--export=nowhere",
            "--export: nowhere/language_model is not a folder; "
            "make it: llava-recipe export RUN --to gguf-ready",
        ),
    ],
)
def test_what_is_missing_is_one_line(
    word: str, message: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, word]) == 2
    out, err = capsys.readouterr()
    assert (out, err.replace(words[0], "RUN")) == ("", f"ask_llama_cpp: {message}\n")
