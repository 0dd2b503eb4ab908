"""`llava-recipe generate`: batches, order, resuming, and what is refused before anything is generated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava_recipes.cli.main import main
from llava_recipes.use import batches
from llava_recipes.use.batches import UNFINISHED, AnswersFile
from tests.tiny import FIXTURES

IMAGES = str(FIXTURES / "images")
TALK = [
    {"from": "human", "value": "<image>\nWhat is it?"},
    {"from": "gpt", "value": "a square"},
    {"from": "human", "value": "Which color?"},
    {"from": "gpt", "value": "red"},
]
RECORDS: list[dict[str, Any]] = [
    {"question_id": 7, "image": "rgb_0.jpg", "text": "What is it?\nAnswer in one word."},
    {"id": "a", "prompt": "Name two colors, and say at length why these two and no others."},
    {"id": "b", "images": ["rgb_0.jpg", "rgb_wide.jpg"], "question": "Is <image> like <image>?"},
    {"id": "c", "image": "rgb_tall.jpg", "conversations": TALK},
    {"id": "d", "image": ["rgb_exact.png"], "question": "Why?"},
    {"id": "e", "prompt": "Hello"},
]


def questions(folder: Path, records: list[dict[str, Any]] | None = None) -> Path:
    file = folder / "questions.jsonl"
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records or RECORDS)
    file.write_text("".join(lines), encoding="utf-8")
    return file


def generate(run: Path, file: Path, out: Path, *options: str) -> int:
    fixed = (f"--input={file}", f"--images={IMAGES}", f"-o={out}", "--max-new-tokens=6")
    return main(["generate", str(run), *fixed, *options])


def answers(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_batches_give_what_one_by_one_gives(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, alone, four = questions(tmp_path), tmp_path / "alone.jsonl", tmp_path / "four.jsonl"
    assert generate(runs / "v1", file, alone, "--batch-size=1") == 0
    assert generate(runs / "v1", file, four, "--batch-size=4") == 0
    assert four.read_bytes() == alone.read_bytes()
    lines = answers(four)
    assert [{key: line[key] for key in line if key != "answer"} for line in lines] == RECORDS
    assert all(isinstance(line["answer"], str) for line in lines)
    assert len({line["answer"] for line in lines}) > 1
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == f"6 answers in {four}"
    assert "note: 2 of 6 records have images but no <image>: their images come first" in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "alone.jsonl",
        "four.jsonl",
        "questions.jsonl",
    ]


def test_the_originals_form(runs: Path, tmp_path: Path) -> None:
    file, plain, llava = questions(tmp_path), tmp_path / "plain.jsonl", tmp_path / "llava.jsonl"
    assert generate(runs / "v1", file, plain) == 0
    assert generate(runs / "v1", file, llava, "--format=llava") == 0
    written = answers(llava)
    # llava/eval/model_vqa.py writes these, and its evaluation scripts read them.
    keys = {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert all(set(line) == keys and line["model_id"] == "v1" for line in written)
    assert [line["question_id"] for line in written] == [7, "a", "b", "c", "d", "e"]
    assert [line["text"] for line in written] == [line["answer"] for line in answers(plain)]
    assert written[3]["prompt"] == "Which color?"


def test_an_earlier_answer_is_heard(runs: Path, tmp_path: Path) -> None:
    """The conversation before the last question counts, the answer after it does not."""
    other = [*TALK[:3], {"from": "gpt", "value": "nothing of the kind"}]
    past = [TALK[0], {"from": "gpt", "value": "wonderful weather in the mountains"}, *TALK[2:]]
    records = [{"image": "rgb_tall.jpg", "conversations": turns} for turns in (TALK, other, past)]
    assert generate(runs / "v1", questions(tmp_path, records), tmp_path / "out.jsonl") == 0
    first, same, changed = (line["answer"] for line in answers(tmp_path / "out.jsonl"))
    assert first == same != changed


@pytest.mark.parametrize("options", [(), ("--temperature=2", "--seed=3")])
def test_what_was_cut_short_goes_on(
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
) -> None:
    file, whole, out = questions(tmp_path), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    unfinished = tmp_path / f"out.jsonl{UNFINISHED}"
    assert generate(runs / "v1", file, whole, "--batch-size=2", *options) == 0
    append, calls = AnswersFile.append, []

    def killed_later(self: AnswersFile, lines: list[batches.Line]) -> None:
        calls.append(len(lines))
        if len(calls) == 3:
            raise KeyboardInterrupt
        append(self, lines)

    with monkeypatch.context() as patch:
        patch.setattr(AnswersFile, "append", killed_later)
        assert generate(runs / "v1", file, out, "--batch-size=2", *options) == 130
    assert not out.exists()
    # A crash may cut a line, and leave half a batch before it.
    kept = unfinished.read_text("utf-8").splitlines()
    assert len(kept) == 5
    unfinished.write_text("\n".join([*kept[:4], kept[4][:10]]), encoding="utf-8")

    capsys.readouterr()
    assert generate(runs / "v1", file, out, "--batch-size=2", *options) == 1
    assert "contains unfinished answers" in capsys.readouterr().err
    assert generate(runs / "v1", file, out, "--batch-size=3", "--resume", *options) == 1
    assert "batch_size: 2 then, 3 now" in capsys.readouterr().err
    assert generate(runs / "v1", file, out, "--batch-size=2", "--resume", *options) == 0
    assert "note: 2 of 6 answers exist already" in capsys.readouterr().err
    assert out.read_bytes() == whole.read_bytes()
    assert not unfinished.exists()


def test_what_is_there_stays(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = questions(tmp_path, RECORDS[-1:]), tmp_path / "out.jsonl"
    out.write_text("mine\n")
    for options in ((), ("--resume",)):
        assert generate(runs / "v1", file, out, *options) == 1
        assert capsys.readouterr().err == (
            f"{out} already exists\nhint:  choose another file, or replace it with --overwrite\n"
        )
        assert out.read_text() == "mine\n"
    assert generate(runs / "v1", file, out, "--overwrite") == 0
    assert len(answers(out)) == 1


BAD: list[tuple[dict[str, Any], str]] = [
    ({"id": 1}, "the record has no question"),
    ({"text": "a", "prompt": "b"}, "the record has several questions"),
    ({"text": 3}, "`text` is not a string"),
    ({"text": "What is <image>?"}, "<image> tags and images differ in number"),
    ({"image": "rgb_0.jpg", "text": "<image> or <image>?"}, "<image> tags and images differ in number"),
    ({"image": "rgb_0.jpg", "images": [], "text": "a"}, "the record has both `image` and `images`"),
    ({"image": 5, "text": "a"}, "`image` is not a path or a list of paths"),
    ({"image": "none.jpg", "text": "a"}, "cannot be used"),
    ({"image": "../stage1.json", "text": "a"}, "cannot be used"),
    ({"conversations": []}, "`conversations` has no human turn"),
    ({"conversations": [{"from": "user", "value": "a"}]}, "turn 0 is malformed"),
    (
        {"conversations": [TALK[0], TALK[0]]},
        "two human turns follow each other; human and gpt must alternate",
    ),
]


@pytest.mark.parametrize(("record", "message"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_a_bad_record_is_reported_by_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record: dict[str, Any], message: str
) -> None:
    file = questions(tmp_path, [RECORDS[0], record, RECORDS[1]])
    assert generate(tmp_path / "no run is opened", file, tmp_path / "out.jsonl") == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"{file}:2:1: ") and message in printed.splitlines()[0]
    assert not (tmp_path / "out.jsonl").exists()


def test_half_of_a_character_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"text": "a \\ud83d"}\n')
    assert generate(tmp_path / "no run is opened", file, tmp_path / "out.jsonl") == 1
    assert "the text of turn 0 contains an unpaired surrogate" in capsys.readouterr().err


def test_a_key_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = questions(tmp_path, [{"text": "a", "answer": "red"}])
    assert generate(tmp_path / "no run is opened", file, tmp_path / "out.jsonl") == 1
    assert "records already have the key `answer`, which the answers would replace" in capsys.readouterr().err


def test_a_question_that_does_not_fit(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [RECORDS[1], {"prompt": "why " * 3000}]
    file = questions(tmp_path, records)
    assert generate(runs / "v1", file, tmp_path / "out.jsonl") == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"{file}:2:1: the prompt is too long for the model's context")
    records = [RECORDS[3]]
    assert generate(runs / "plain", questions(tmp_path, records), tmp_path / "new.jsonl") == 1
    assert "template `plain` takes one human turn and one answer, not 3 turns" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["questions.jsonl"]
