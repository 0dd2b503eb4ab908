"""What the engines' scripts share: questions, our own answers, the report, the exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.engines import compare as module
from benchmarks.engines.compare import (
    Answered,
    Engine,
    Question,
    Refused,
    compare,
    make_parser,
    own_answers,
    read_questions,
    report,
)
from benchmarks.engines.process import executable, run
from tests.benchmarks.engines.conftest import ANSWERS, QUESTIONS, Program
from tests.processes import llava_recipe
from tests.warm import client


def outcome(words: list[str], *answers: str) -> int:
    """The exit code when the engine gives these answers."""

    def open_engine(arguments: argparse.Namespace) -> Engine:
        return lambda questions, max_new_tokens: Answered("theirs 2.0", answers[: len(questions)])

    return compare(make_parser("ask", "Ask.").parse_args(words), "ask", open_engine)


def test_equal_answers_are_counted_with_the_versions(
    asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(asked, *(f" {answer}\n" for answer in ANSWERS)) == 0
    assert (
        capsys.readouterr().out == "3 of 3 equal (3 different answers)\nhere   ours 1.0\nthere  theirs 2.0\n"
    )


def test_a_difference_is_one_line_and_an_exit_code(
    asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = (ANSWERS[0], "at the\nbottom", ANSWERS[2])
    assert outcome(asked, *said) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == '2. 1.png, "where is it": "at the top" here, "at the\\nbottom" there'
    assert shown[1] == "2 of 3 equal (3 different answers)"
    assert outcome([*asked, "--at-least=2"], *said) == 0
    assert outcome([*asked, "--at-least=3"], *said) == 1
    assert outcome([*asked, "--limit=1"], *said) == 0


def test_the_report_says_how_many_answers_there_are() -> None:
    questions = [Question(name=f"{at}.png", image=Path(f"{at}.png"), text="what") for at in range(4)]
    lines, num_equal = report(questions, Answered("", ("a",) * 4), Answered("", ("a",) * 4))
    assert num_equal == 4 and lines[0] == "4 of 4 equal (1 different answers)"


@pytest.mark.parametrize("key", ["prompt", "question", "text"])
@pytest.mark.parametrize("is_list", [True, False])
def test_questions_are_read_as_generate_reads_them(key: str, is_list: bool, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    records = [{"image": "a.png", key: text} for text in ("<image>\nwhat", "what\n<image>", " what ")]
    file = tmp_path / "questions"
    file.write_text(json.dumps(records) if is_list else "\n".join(map(json.dumps, records)) + "\n\n")
    questions = read_questions(file, images=tmp_path, limit=40)
    assert questions == [Question(name="a.png", image=tmp_path / "a.png", text="what")] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "FILE: no questions to ask"),
        ("[", "FILE: not JSON or JSONL (Expecting value: line 1 column 2 (char 1))"),
        ("3", "FILE: record 0 needs `image`, a path, and one of prompt, question, text"),
        ('{"prompt": "a"}', "FILE: record 0 needs `image`, a path, and one of prompt, question, text"),
        (
            '{"image": "a.png", "prompt": "a", "text": "b"}',
            "FILE: record 0 needs `image`, a path, and one of prompt, question, text",
        ),
        ('{"image": "b.png", "prompt": "a"}', "FILE: record 0: FOLDER/b.png is not a file"),
    ],
)
def test_a_file_that_asks_nothing_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "questions"
    file.write_text(text)
    with pytest.raises(Refused) as refused:
        read_questions(file, images=tmp_path, limit=40)
    assert str(refused.value).replace(str(file), "FILE").replace(str(tmp_path), "FOLDER") == message


@pytest.mark.parametrize(
    ("place", "word", "message"),
    [
        (0, "nowhere", "RUN: nowhere is not a folder"),
        (1, "--questions=nowhere", "--questions: nowhere is not a file"),
        (2, "--images=nowhere", "--images: nowhere is not a folder"),
    ],
)
def test_a_path_that_is_not_there_is_one_line(
    place: int, word: str, message: str, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome([*asked[:place], word, *asked[place + 1 :]], *ANSWERS) == 2
    assert capsys.readouterr() == ("", f"ask: {message}\n")


def test_a_program_that_fails_is_reported_by_its_last_words(program: Program) -> None:
    failing = program("failing", 'import sys\nsys.exit("no model")\n')
    with pytest.raises(Refused, match=r"failing ended with 1: no model$"):
        run([failing])
    with pytest.raises(Refused, match=r"cannot be started: No such file or directory$"):
        run(["./nowhere"])
    with pytest.raises(Refused, match=r"^--binary: ./nowhere is not a program that can be started$"):
        executable("./nowhere", "--binary")


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own processes are forked from one that has imported everything."""
    monkeypatch.setattr(sys, "executable", client.python())


def test_our_answers_are_those_of_generate(warm: None, tmp_path: Path) -> None:
    from tests.tiny import FIXTURES
    from tests.use.finished import conversations, finish, run_values

    values = run_values(tmp_path / "run", freeze=["vision_tower"], data=conversations())
    del values["stages"][0]["trainable"]
    finish(values, tmp_path / "recipe.yaml")
    images = FIXTURES / "images"
    questions = [
        Question(name=name, image=images / name, text=text)
        for name, text in zip(("rgb_0.jpg", "rgb_wide.jpg", "rgba.png"), QUESTIONS, strict=True)
    ]
    found = own_answers(tmp_path / "run", questions, images, 8, base=None)
    records = [{"image": each.name, "prompt": each.text} for each in questions]
    (tmp_path / "asked.json").write_text(json.dumps(records))
    words: list[str | Path] = ["generate", tmp_path / "run", "--input", tmp_path / "asked.json"]
    words += ["--images", images]
    done = llava_recipe(*words, "-o", tmp_path / "said", "--max-new-tokens", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line)["answer"].strip() for line in (tmp_path / "said").read_text().splitlines()]
    assert list(found.answers) == said and len(set(said)) > 1
    assert found.engine.startswith("llava-recipes ") and "transformers " in found.engine


def test_a_run_that_generate_refuses_is_no_traceback(warm: None, tmp_path: Path) -> None:
    question = Question(name="a.png", image=tmp_path / "a.png", text="what")
    with pytest.raises(Refused, match=r"llava-recipe generate ended with 1: [^\n]") as refused:
        own_answers(tmp_path, [question], tmp_path, 8, base=None)
    assert "Traceback" not in str(refused.value)


def test_the_engine_is_looked_for_before_anything_is_asked(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def open_engine(arguments: argparse.Namespace) -> Engine:
        raise Refused("--python: nowhere is not a program that can be started")

    def never(*words: object, **named: object) -> Answered:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(module, "own_answers", never)
    assert compare(make_parser("ask", "Ask.").parse_args(asked), "ask", open_engine) == 2
    assert capsys.readouterr().err == "ask: --python: nowhere is not a program that can be started\n"


def test_the_engine_gets_the_questions_and_the_length(asked: list[str]) -> None:
    seen: list[tuple[list[str], int]] = []

    def open_engine(arguments: argparse.Namespace) -> Engine:
        def ask(questions: Sequence[Question], max_new_tokens: int) -> Answered:
            seen.append(([question.text for question in questions], max_new_tokens))
            return Answered("theirs 2.0", ANSWERS)

        return ask

    words = [*asked, "--max-new-tokens=5"]
    assert compare(make_parser("ask", "Ask.").parse_args(words), "ask", open_engine) == 0
    assert seen == [(list(QUESTIONS), 5)]
