"""One place through which all text leaves."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from io import StringIO
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import llava_recipes
from llava_recipes.screen import Spoken, _Outlet, escape_json, escape_yaml, say, say_lines, shown, write_log
from llava_recipes.train.progress import Bar, Start
from tests.laws import examples
from tests.processes import ROOT, TIMEOUT_S, python, run_process, started
from tests.terminal import HOSTILE, on_terminal, steering

PACKAGE = Path(llava_recipes.__file__).parent
ANYTHING = st.text(st.characters(), max_size=40)


def test_nothing_else_prints() -> None:
    """No other module calls print, writes to a standard stream, or makes a console of its own."""
    files = [file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "screen.py"]
    found = [
        f"{file.relative_to(PACKAGE)}: {ast.unparse(node)}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if _prints(node)
    ]
    assert len(files) > 150
    assert not found


def _prints(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    return name in ("print", "rich.print", "Console", "os.write") or (
        name.startswith(("sys.stdout.", "sys.stderr.", "sys.__std")) and "write" in name
    )


@examples(300)
@given(ANYTHING)
def test_a_shown_text_is_one_line_that_steers_nothing(text: str) -> None:
    line = shown(text)
    assert not steering(line) - {line}
    assert "\n" not in line
    assert "\t" not in line
    assert shown(line) == line


@examples(300)
@given(ANYTHING, st.sampled_from(["utf-8", "ascii", "latin-1", "cp1252"]))
def test_json_keeps_its_values_in_any_encoding(text: str, encoding: str) -> None:
    spelled = escape_json(json.dumps({text: [text]}, ensure_ascii=False), encoding=encoding)
    spelled.encode(encoding)
    assert not steering(spelled)
    assert json.loads(spelled) == {text: [text]}


@pytest.mark.parametrize("text", ["\u202e\u2066é", "\U000e0001😀\x9b", "##[x] \u2028", "plain"])
def test_yaml_keeps_its_values(text: str) -> None:
    spelled = escape_yaml(f"{json.dumps(text, ensure_ascii=False)}\n")
    assert not steering(spelled)
    assert yaml.safe_load(spelled) == text


FAMILY_AND_PERSIAN = "\U0001f469\u200d\U0001f467 \u0645\u06cc\u200c\u062e\u0648\u0645"


def test_joiners_stay_where_a_script_needs_them() -> None:
    assert shown(FAMILY_AND_PERSIAN) == FAMILY_AND_PERSIAN
    assert shown("pay\u200dpal \u200d") == "pay�pal �"


def test_line_breaks_are_data_in_a_line_and_meant_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\n::error::b", "::warning::c")
    say_lines("a\n  ::error::b\n##[debug]d")
    assert capsys.readouterr().out == "a↵::error::b\n\\::warning::c\na\n  \\::error::b\n##\\[debug]d\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_an_answer_is_judged_as_a_whole(size: int, capsys: pytest.CaptureFixture[str]) -> None:
    said = "see https://user:hunter2@host/x now\n::error::é 👩\u200d👧 \x1b[31m\u202e\n # :: is meant"
    spoken = Spoken()
    for start in range(0, len(said), size):
        spoken.add(said[start : start + size])
    spoken.finish()
    assert capsys.readouterr().out == (
        "see https://***@host/x now\n\\::error::é 👩\u200d👧 �[31m�\n # :: is meant\n"
    )


@pytest.mark.parametrize("columns", [50, 60, 80, 100, 120])
def test_the_bar_cuts_no_digit_and_estimates_for_the_slowest_steps(columns: int) -> None:
    screen = Console(file=StringIO(), width=columns, height=24, force_terminal=True, color_system=None)
    bar, now_s = Bar(screen), 0.0
    bar._progress.live.auto_refresh = False
    bar._progress.get_time = lambda: now_s
    bar.start(Start(title="x", rows=(), num_steps=5198, first_step=1198))
    task = bar._progress.tasks[0]
    task.start_time, task._get_time = 0.0, lambda: now_s
    for step in (1199, 1200):
        now_s += 40.0
        bar.step({"step": step, "loss": 1.2345, "learning_rate": 9.8e-4, "samples_per_s": 1283.4})
    with screen.capture() as shown_bar:
        screen.print(bar._progress.get_renderable())
    with screen.capture() as shown_end:
        bar.finish((("stopped", "step 1,200"),))
    assert "x: stopped" in shown_end.get()
    words = shown_bar.get().replace("\x1b[2K", " ").split()
    for whole in ("1200/5198", "1.2345", "9.8e-4", "1283.4", "0:01:20", "44:25:20"):
        assert whole in words, words


_LIBRARY = f"""
import logging, sys, warnings
from rich.progress import Progress
from llava_recipes.screen import console, guard_redirected, guard_streams
guard_streams()
hostile = {HOSTILE!r} + "https://user:hunter2@host é"
def speak():
    print(hostile); warnings.warn(hostile); logging.warning(hostile); sys.stderr.write(hostile)
speak()
with Progress(console=console()) as bar:
    guard_redirected()
    bar.add_task("bar", total=1)
    speak()
"""


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_what_libraries_print_passes_too(terminal: bool, tmp_path: Path) -> None:
    argv = [python("", fresh=True)[0], "-c", _LIBRARY]
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PYTHONIOENCODING": "utf-8"}
    if terminal:
        code, text = on_terminal(argv, cwd=tmp_path, env=environment)
    else:
        done = run_process(argv, cwd=tmp_path, env=environment)
        code, text = done.returncode, done.stdout + done.stderr
    assert code == 0, text
    assert not steering(text, terminal=terminal, obeys=False)
    assert text.count("PWN") >= 8
    assert "hunter2" not in text


ENCODINGS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "cp1252"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]
CALLS = [
    ["list"],
    ["explain"],
    ["validate", "wrong.yaml"],
    ["validate", "--format", "json", "wrong.yaml"],
    ["copy", "demo", "-o", "-"],
    ["nö"],
]


@pytest.mark.parametrize("environment", ENCODINGS, ids=lambda values: "-".join(values.values()))
def test_any_encoding_is_enough(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("nä→☃😀me: 1\n", encoding="utf-8")
    encoding = environment.get("PYTHONIOENCODING", "ascii")
    for call in CALLS:
        done = subprocess.run(
            [*python("llava_recipes", fresh=True), *call],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            timeout=TIMEOUT_S,
        )
        out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
        assert done.returncode in (0, 1, 2), err
        assert "UnicodeEncodeError" not in err
        if "json" in call:
            assert "nä→☃😀me" in json.dumps(json.loads(out), ensure_ascii=False)
        if call[0] == "copy":
            assert yaml.safe_load(out)["version"] == 1
    code, text = on_terminal([*python("llava_recipes", fresh=True), "list"], cwd=tmp_path, env=environment)
    assert code == 0, text


@pytest.mark.parametrize("call", ["list --json", "--help", "plan --help", "schema", "explain train"])
def test_an_output_that_ends_early_ends_the_command_in_peace(call: str, tmp_path: Path) -> None:
    program = f"{python('llava_recipes', fresh=True)[0]} -m llava_recipes {call}"
    environment = {"PYTHONPATH": str(ROOT)}
    for redirected, code, num_lines in (
        ("| head -c 1 > /dev/null", 0, 0),
        ("> /dev/full", 1, 1),
        ("> /dev/full 2>&1", 1, 0),
        (">&-", 0, 0),
    ):
        script = f"{program} {redirected}; exit ${{PIPESTATUS[0]}}"
        done = run_process(["bash", "-c", script], cwd=tmp_path, env=environment)
        assert done.returncode == code, (redirected, done.stderr)
        assert len(done.stderr.splitlines()) == num_lines, (redirected, done.stderr)


_TYPED = """
import sys
from llava_recipes.screen import guard_streams, say
guard_streams()
say(sys.stdin.read())
"""


def test_what_is_typed_is_read_in_any_encoding(tmp_path: Path) -> None:
    for encoding in ("ascii", "utf-8", "latin-1"):
        done = subprocess.run(
            [python("", fresh=True)[0], "-c", _TYPED],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
            input="é".encode() + b"\xff",
            capture_output=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, done.stderr


_PRINTED = """
import sys
from llava_recipes.screen import flush_streams, guard_streams, say
guard_streams(outlives_reader=True)
for number in range(40_000):
    say(f"line {number} of many that nobody reads")
sys.stderr.write("printed\\n")
sys.stdin.readline()
flush_streams()
say("end")
flush_streams()
"""


def test_a_reader_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    with started([python("", fresh=True)[0], "-c", _PRINTED], cwd=tmp_path) as child:
        assert child.stderr is not None
        assert child.stderr.readline() == "printed\n"
        out, err = child.communicate("read now\n", timeout=60)
    lines = out.splitlines()
    assert (lines[0], lines[-1]) == ("line 0 of many that nobody reads", "end")
    assert re.fullmatch(r"\[[\d,]+ lines are left out here, since nobody read\]", lines[-2])
    assert (err, child.returncode) == ("", 0)


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    script = "import os, sys; from llava_recipes.screen import guard_streams as g; g(outlives_reader=True); "
    script += "sys.exit(os.open('file', os.O_CREAT) < 3)"
    words = shlex.join([python("", fresh=True)[0], "-c", script])
    done = run_process(["bash", "-c", f"{words} <&- >&- 2>&-"], cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "file").exists()


def test_a_log_is_written_after_the_temporary_folder_was_cleaned_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    file = Path(write_log("why"))
    assert file.read_text("utf-8") == "why"
    file.unlink()


def test_a_fork_does_not_wait_for_who_printed_before_it(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        outlet = _Outlet(file)
        is_held, may_end = threading.Event(), threading.Event()

        def hold() -> None:
            with outlet._changed:
                is_held.set()
                may_end.wait()

        (holder := threading.Thread(target=hold)).start()
        is_held.wait()
        pid = os.fork()
        if pid == 0:
            outlet.flush()
            outlet.drain()
            os._exit(7)
        deadline = time.monotonic() + 20
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        may_end.set()
        holder.join()
        if ended[0] == 0:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(ended[1]) == 7 and ended[0] == pid
