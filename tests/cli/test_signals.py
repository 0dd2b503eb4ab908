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
from llava_recipes.cli.main import main
from llava_recipes.exit_codes import INTERRUPTED
from llava_recipes.export.target import new_folder
from tests.processes import ROOT, python, run_process


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


_TWICE = """
import os, signal, sys, time
from llava_recipes.cli import main, {command}

def stop_twice(arguments):
    for _ in range(2):
        try:
            os.kill(os.getpid(), signal.{signal})
            time.sleep(1)
        except KeyboardInterrupt:
            print("stopped")
    raise KeyboardInterrupt

{command}.run = stop_twice
sys.argv = ["llava-recipe", "{command}", "recipe.yaml"]
sys.exit(main.main())
"""


@pytest.mark.parametrize(
    ("command", "name", "times"), [("show", "SIGINT", 2), ("show", "SIGTERM", 1), ("run", "SIGHUP", 1)]
)
def test_a_signal_is_one_request_and_ctrl_c_may_stop_several_answers(
    command: str, name: str, times: int, tmp_path: Path
) -> None:
    script = _TWICE.format(command=command, signal=name)
    done = run_process(
        [*python("", fresh=True)[:1], "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "stopped\n" * times, "interrupted\n")
