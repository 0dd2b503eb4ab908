"""`llava-recipe chat`: once, in a pipe, and what it refuses."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from llava_recipes.cli.main import main
from llava_recipes.use.chat import Chat
from tests.tiny import FIXTURES

RED, WIDE = str(FIXTURES / "images" / "rgb_0.jpg"), str(FIXTURES / "images" / "rgb_wide.jpg")


def chat(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["chat", *words, "--max-new-tokens=8"])
    return code, *capsys.readouterr()


def test_a_pipe_gives_the_answers_of_a_conversation(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(runs / "v1")
    code, first, notes = chat(capsys, run, "--image", RED, "What is it?")
    assert code == 0 and first.strip() and notes.startswith("note: the question has no <image> tag")
    lines = ["What is it?", "", "/reset", f"/image {WIDE}", "<image> And this?", "/quit", "Not asked"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    code, answers, notes = chat(capsys, run, "--image", RED)
    assert code == 0 and answers.startswith(first)
    code, second, notes = chat(capsys, run, "<image> And this?", "--image", WIDE)
    assert (code, notes, answers) == (0, "", first + second)


def test_a_captioner_needs_no_question(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, caption, notes = chat(capsys, str(runs / "plain"), "--image", RED)
    assert code == 0 and caption.strip() and notes == ""


class Terminal(io.StringIO):
    """Where a person sits."""

    def isatty(self) -> bool:
        return True


def test_at_a_terminal_one_may_try_again(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip and a Ctrl-C during an answer are reported, and the conversation goes on."""
    lines = iter(["/photo a.jpg", "/image none.jpg", "Stop this", "What is it?"])

    def typed(console: Console, prompt: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    ask = Chat.ask

    def interrupted(talk: Chat, text: str, listen: Callable[[str], None] | None = None) -> str:
        if text == "Stop this":
            raise KeyboardInterrupt
        return ask(talk, text, listen)

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr(Console, "input", typed)
    monkeypatch.setattr(Chat, "ask", interrupted)
    code, said, printed = chat(capsys, str(runs / "v1"))
    assert code == 0 and said.strip()
    assert [line for line in printed.splitlines() if line] == [
        f"{runs / 'v1'} · template v1 · /image FILE · /reset · /quit",
        "unknown command '/photo a.jpg'",
        "hint:  /image FILE · /reset · /quit",
        "the image none.jpg cannot be used",
        "found: the file does not exist",
        "(stopped)",
    ]


def test_an_answer_does_not_steer_the_terminal(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(talk: Chat, text: str, listen: Callable[[str], None]) -> str:
        listen("a\x1b[2Jb\n\tc\x9b")
        return ""

    monkeypatch.setattr(Chat, "ask", ask)
    assert chat(capsys, str(runs / "v1"), "hello")[1] == "a\ufffd[2Jb\n\tc\ufffd\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert chat(capsys, str(runs / "v1"), "hello")[1] == "a\ufffd[2Jb\n\tc\ufffd\n"


def test_another_system_prompt(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = chat(capsys, str(runs / "v1"), "What is it?")
    other = chat(capsys, str(runs / "v1"), "What is it?", "--system", "Answer like a pirate would.")
    assert usual[0] == other[0] == 0 and usual[1] != other[1]
    assert chat(capsys, str(runs / "plain"), "--image", RED, "--system", "Be brief.") == (
        1,
        "",
        "template `plain` has no place for a system prompt\nhint:  leave out --system\n",
    )


def test_what_cannot_be_done_is_reported(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(runs / "v1")
    monkeypatch.setattr("sys.stdin", io.StringIO("/photo a.jpg\n"))
    assert chat(capsys, run) == (
        1,
        "",
        "unknown command '/photo a.jpg'\nhint:  /image FILE · /reset · /quit\n",
    )
    assert chat(capsys, run, "hello", "--top-p=0.5") == (
        1,
        "",
        "--top-p has no effect with temperature 0\nhint:  add --temperature, for example 0.2\n",
    )
    code, _, printed = chat(capsys, run, "hello", "--device", "abacus")
    assert code == 1 and printed.startswith('device "abacus" cannot be used on this machine\nfound: ')
    code, _, printed = chat(capsys, str(runs), "hello")
    assert code == 1 and "this folder contains stages of a run, not a model" in printed
