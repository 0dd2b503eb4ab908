"""The GPU benchmark: every part on a CPU; what happens where a task fails, hangs or lacks a library."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.bounded import Ended
from benchmarks.gpu import Task, main
from tests.benchmarks.test_bounded import is_alive
from tests.processes import ROOT, TIMEOUT_S, python, run_process, started

Row = dict[str, Any]

BROKEN = Task("a", {}, "speed", {"no_such_option": 1}, 60, ())
HANGING = Task("b", {}, "golden", {}, 0.3, ())


def rows_of(printed: str) -> list[Row]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def line(row: Row, on_line: Callable[[str], None]) -> None:
    on_line(json.dumps(row) + "\n")


def simulate(monkeypatch: pytest.MonkeyPatch, act: Callable[[Callable[[str], None]], Ended]) -> None:
    """Let tasks do what `act` does in place of a process."""

    def run_bounded(argv: object, *, on_line: Callable[[str], None], **rest: object) -> Ended:
        return act(on_line)

    monkeypatch.setattr(gpu, "run_bounded", run_bounded)


def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    argv: list[str | Path] = [*python("benchmarks.gpu"), "--tiny", "--minutes", "25", "--out", out]
    done = run_process(argv, cwd=ROOT, timeout_s=1700)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done.stdout)
    assert rows_of(out.read_text()) == rows

    ended = [row for row in rows if row["event"] == "ended"]
    assert [row["part"] for row in ended] == ["machine", "a", "b", "c", "c", "e", "d", "d"]
    assert {row["status"] for row in ended if row.get("tuning") != "QLoRA"} == {"done"}
    figures = [row for row in rows if row["event"] == "figures"]
    golden = [row for row in figures if row["part"] == "b"]
    assert {(row["run"], row["precision"]) for row in golden} == {
        (run, precision) for run in ("stage 1, base", "stage 2, lora") for precision in ("fp32", "bf16")
    }
    assert all(row["largest_difference"] < 1e-5 for row in golden if row["precision"] == "fp32")
    steps = [row for row in figures if row["part"] in "cd"]
    assert {
        (row["tuning"], row["checkpointing"], row["batch"], row["tokens"], row["labels"]) for row in steps
    } >= {
        ("Stage 1", True, 4, 16 + 29, 28),
        ("Stage 1", False, 4, 16 + 29, 28),
        ("LoRA", True, 2, 16 + 350, 200),
    }
    (resumed,) = [row for row in figures if row["part"] == "e"]
    assert resumed["largest_difference"] == 0
    assert resumed["done"] == {"cut": True, "uncut": True}
    assert 0 < resumed["stopped_at"] < resumed["resumed_from"] < resumed["num_steps"]

    table = done.stdout[done.stdout.rindex("}\n") :]
    for words in (
        "(a) A matrix product",
        "| stage 2, lora | 18 |",
        "| tiny | LoRA | on | 2 |",
        "DONE exists: yes",
    ):
        assert words in table


def test_results_are_added_to_what_a_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch, lambda on_line: Ended(0, 1.0, ""))
    out = tmp_path / "gpu.jsonl"
    out.write_text('{"event": "earlier"}\n')
    assert main(["--tiny", "--out", str(out)], tasks=[HANGING]) == 0
    assert next(row["event"] for row in rows_of(out.read_text())) == "earlier"
    assert len(rows_of(out.read_text())) == 2


def test_what_fails_stops_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.jsonl"
    code = main(["--tiny", "--out", str(out)], tasks=[BROKEN, HANGING, BROKEN])
    printed = capsys.readouterr().out
    assert code == 1
    first, hanging, last = rows_of(printed)
    assert (first["status"], last["status"]) == ("failed", "failed")
    assert "no_such_option" in first["why"]
    assert "Traceback" in first["errors"][0]
    assert (hanging["status"], hanging["why"]) == ("too long", "killed after 0.3 s")
    assert "- (b): too long, killed after 0.3 s" in printed
    assert rows_of(out.read_text()) == [first, hanging, last]


def test_an_absent_library_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "is_installed", lambda name: name != "bitsandbytes")
    tasks = [task for task in gpu.full_tasks() if "bitsandbytes" in task.needs]
    assert [task.settings["tuning"] for task in tasks] == ["QLoRA", "QLoRA"]
    assert main(["--tiny"], tasks=tasks) == 0
    printed = capsys.readouterr().out
    assert {row["why"] for row in rows_of(printed)} == {"bitsandbytes not installed"}
    assert "- (d) 7B QLoRA checkpointing on: skipped, bitsandbytes not installed" in printed


def test_only_what_is_asked_for_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "is_installed", lambda name: False)
    main(["--tiny", "--only", "a,c"])
    assert [row["part"] for row in rows_of(capsys.readouterr().out)] == ["machine", "a", "c", "c"]


@pytest.mark.parametrize("text", ["f", "a;c", ""])
def test_a_part_that_does_not_exist_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--only", text])
    assert "parts are a, b, c, d, e" in capsys.readouterr().err


def test_nothing_is_begun_when_no_time_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", "--minutes", "0.1"], tasks=[BROKEN]) == 0
    assert [row["why"] for row in rows_of(capsys.readouterr().out)] == ["no time is left"]


def test_a_figure_that_is_wrong_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(on_line: Callable[[str], None]) -> Ended:
        row = {"event": "figures", "status": "failed", "error": "the loss is off by 3"}
        line({**row, "run": "r", "precision": "fp32", "num_steps": 1, "largest_difference": 3}, on_line)
        return Ended(0, 1.0, "")

    simulate(monkeypatch, act)
    assert main(["--tiny"], tasks=[HANGING]) == 1
    assert "- (b): failed, the loss is off by 3" in capsys.readouterr().out


def test_too_little_memory_is_a_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(on_line: Callable[[str], None]) -> Ended:
        row = {"event": "figures", "status": "out of memory", "batch": 32, "tokens": 605, "planned_gib": 90.0}
        more = {"planned_without_context_gib": 89.4, "plan_says_fits": False}
        line({**row, **more, "flops_per_sample": 1.0, "model_flops_per_sample": 1.0}, on_line)
        return Ended(0, 1.0, "")

    simulate(monkeypatch, act)
    tasks = [task for task in gpu.full_tasks() if task.part == "c"]
    assert main(["--tiny"], tasks=tasks) == 0
    assert capsys.readouterr().out.count("| out of memory |") == len(tasks)


def test_without_a_card_the_way_out_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(on_line: Callable[[str], None]) -> Ended:
        row = {"event": "machine", "device": "CPU", "num_devices": 0, "memory_gib": None, "cuda": None}
        line({**row, "python": "3.12", "versions": {}}, on_line)
        return Ended(0, 1.0, "")

    simulate(monkeypatch, act)
    assert main([]) == 1
    assert capsys.readouterr().err == (
        "gpu.py: machine: at most 60 s\ntorch finds no NVIDIA card here; --tiny runs on the CPU\n"
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_shows_what_it_has(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(on_line: Callable[[str], None]) -> Ended:
        figures = {"size": 8, "num_products": 1, "tflops": 1.0, "slowest_tflops": 1.0, "fastest_tflops": 1.0}
        line({"event": "figures", "status": "measured", **figures}, on_line)
        on_line('{"event": "fig')
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        return Ended(None, 1.0, "")

    simulate(monkeypatch, act)
    assert main(["--tiny"], tasks=[BROKEN, HANGING]) == code
    printed = capsys.readouterr().out
    assert "(a) A matrix product of 8 × 8 × 8" in printed
    assert f"- (a): interrupted, by {number.name}" in printed
    assert {row["part"] for row in rows_of(printed)} == {"a"}, "a task began after the signal"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_behind(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """A task with a folder and a child of its own, as those of parts b, d and e have."""
    task = f"""
import subprocess, sys, tempfile, time
tempfile.mkdtemp(prefix="gpu-benchmark-")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid) + "\\n")
time.sleep(600)
"""
    script = f"""
import signal, sys
from benchmarks import gpu
real = gpu.run_bounded
gpu.run_bounded = lambda argv, **rest: real([sys.executable, "-c", {task!r}], **rest)
task = gpu.Task("b", {{}}, "golden", {{}}, 100, ())
raise SystemExit(gpu.main(["--tiny"], tasks=[task, task]))
"""
    (tmp_path / "tmp").mkdir()
    env = {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}
    with started([sys.executable, "-c", script], cwd=tmp_path, env=env) as run:
        pid = wait_for(tmp_path / "pid")
        assert list((tmp_path / "tmp").iterdir()), "the folder is somewhere else"
        run.send_signal(number)
        printed, errors = run.communicate(timeout=TIMEOUT_S)
    assert (run.returncode, errors) == (code, "gpu.py: b: at most 100 s\n")
    assert f"- (b): interrupted, by {number.name}" in printed
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not is_alive(pid)


def wait_for(file: Path) -> int:
    """The number in a file, once its line is whole."""
    until_s = time.monotonic() + TIMEOUT_S
    while not file.exists() or not file.read_text().endswith("\n"):
        assert time.monotonic() < until_s, f"{file} has not come"
        time.sleep(0.02)
    return int(file.read_text())


@pytest.mark.parametrize("place", ["/proc/x.jsonl", "", "absent/x.jsonl"])
def test_an_output_that_cannot_be_written_is_refused(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / place
    assert main(["--tiny", "--out", str(out)], tasks=[BROKEN]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (said,) = printed.err.splitlines()
    assert said.startswith(f"gpu.py: --out: {out} cannot be written: ")


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "-inf", "1e999", "much"])
def test_minutes_that_are_none_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([f"--minutes={text}"], tasks=[])
    assert f"'{text}'" in capsys.readouterr().err


def test_the_parts_on_a_card_are_bounded_and_complete() -> None:
    tasks = list(gpu.full_tasks())
    assert {task.part for task in tasks} == set(gpu.PARTS)
    measured = [tuple(task.settings.values()) for task in tasks if task.part in "cd"]
    assert sorted(measured) == [
        *(("13B", "Stage 1", on) for on in (False, True)),
        *(("7B", tuning, on) for tuning in ("LoRA", "QLoRA", "Stage 1") for on in (False, True)),
    ]
    for task in tasks:
        assert 0 < task.limit_s <= 140
        assert task.options.get("batches", [1])[-1] == 1
    assert [tuple(task.settings) for task in tasks if task.part == "e"] == [("deepspeed",)]
