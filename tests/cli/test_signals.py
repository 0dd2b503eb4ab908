"""A command that is asked to end leaves nothing half-written."""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path
from types import FrameType

import pytest

from llava_recipes.cli import show
from llava_recipes.cli.main import INTERRUPTED, main
from llava_recipes.export.target import new_folder


def test_sigterm_ends_a_command_as_ctrl_c_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_and_be_ended(arguments: argparse.Namespace) -> int:
        with new_folder(tmp_path / "out" / "model", num_bytes=1) as folder:
            (folder / "config.json").write_text("{}")
            os.kill(os.getpid(), signal.SIGTERM)
        return 0

    def passed_over(number: int, frame: FrameType | None) -> None:
        pass

    monkeypatch.setattr(show, "run", write_and_be_ended)
    # Without the command's own handler the signal would end pytest; this one would be passed over.
    before = signal.signal(signal.SIGTERM, passed_over)
    try:
        assert main(["show", "recipe.yaml"]) == INTERRUPTED
        assert signal.getsignal(signal.SIGTERM) is passed_over
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list((tmp_path / "out").iterdir()) == []
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_that_a_library_takes_for_an_error_is_none(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As pydantic's compiled code does, with a SchemaError."""

    def be_ended(arguments: argparse.Namespace) -> int:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except KeyboardInterrupt:
            raise ValueError("bad schema") from None
        return 0

    monkeypatch.setattr(show, "run", be_ended)
    assert main(["show", "recipe.yaml"]) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
