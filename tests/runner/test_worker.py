"""What training processes report to the command that watches them."""

from __future__ import annotations

import atexit
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava_recipes.errors import Mark, Problem, RecipeError
from llava_recipes.runner import worker
from llava_recipes.runner.beginnings import at_stage
from llava_recipes.runner.reports import Request, Result, problems_message, read_problems
from llava_recipes.runner.worker import Worker, _leave, limit_reached
from llava_recipes.train.stopping import Stop, StoppedBeforeStep
from tests.processes import ROOT, run_process


def read_back(*errors: RecipeError) -> list[Problem]:
    """The problems of a process each, as they are after their way through a connection."""
    sent = [json.dumps(problems_message(error)) for error in errors]
    return read_problems([(rank, json.loads(line)) for rank, line in enumerate(sent)])


def test_a_sample_keeps_its_place() -> None:
    """Of the sources of a mix none is known by a sample's number; its file, line or row is."""
    problems = (
        Problem(
            "sample 3: broken",
            code="test",
            mark=Mark("a.json", 12, 1, text="  {"),
            found="x.png",
            hint="fix it",
        ),
        Problem("sample 4: broken", code="test", mark=Mark("b.parquet", 0, 0, row=7)),
        Problem("too large", code="test", path=("stages", 0, "train")),
    )
    found = read_back(RecipeError(problems[0]), RecipeError(*problems))
    assert found == list(problems)
    assert found[0].mark is not None and found[0].mark.text == "  {"


def test_two_problems_with_one_message_are_two() -> None:
    problems = (
        Problem("bad value", code="bad", path=("stages", 0, "train"), found="1", on_key=True),
        Problem("bad value", code="bad", path=("stages", 0, "data"), found="1", severity="warning"),
        Problem("bad value", code="bad", path=("stages", 0, "data"), found="2", is_secret=True),
    )
    assert read_back(RecipeError(*problems), RecipeError(problems[1])) == list(problems)


def test_a_problem_of_a_worker_points_at_its_own_stage() -> None:
    """A worker's plan has one stage; all else of the problem stays."""
    problem = Problem("bad", code="bad", path=("stages", 0, "lora"), mark=Mark("a.json", 1, 1), on_key=True)
    assert at_stage(problem, 2) == replace(problem, path=("stages", 2, "lora"))
    elsewhere = replace(problem, path=("model", "projector"))
    assert at_stage(elsewhere, 2) == elsewhere


def test_an_interruption_that_a_library_takes_for_an_error_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(request: Request, stop: Stop) -> Result:
        raise ValueError("bad schema")

    monkeypatch.setattr(worker, "_train", train)
    monkeypatch.setattr(worker, "join", lambda folder, run: None)
    process = Worker.__new__(Worker)
    process.stop = Stop()
    process.request = Request(str(tmp_path), "{}", None, False, None, None, "lock", "run")
    with pytest.raises(ValueError):
        process._trained()
    process.stop.is_unwinding = True
    with pytest.raises(StoppedBeforeStep):
        process._trained()


def test_a_process_that_leaves_passes_on_what_it_was_asked() -> None:
    """Its handler may be faster than the thread that hears of the signal; the others wait for the request."""
    told = list[dict[str, Any]]()
    process: Any = Worker.__new__(Worker)
    process.line, process.stop = SimpleNamespace(tell=told.append), Stop(tell=told.append)
    process.stop.reason = "SIGHUP"
    process._say_stopped()
    assert [(each["kind"], each.get("reason")) for each in told] == [("asked", "SIGHUP"), ("stopped", None)]


def _leave_with_code_3() -> None:
    atexit.register(print, "the tracker is told that the run is over")
    _leave(3, Stop())


def test_a_process_runs_its_exit_handlers(tmp_path: Path) -> None:
    """Some trackers of experiments call a run crashed whose handlers did not run."""
    words = "from tests.runner.test_worker import _leave_with_code_3; _leave_with_code_3()"
    done = run_process([sys.executable, "-c", words], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (3, "the tracker is told that the run is over\n"), done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(24, "Too many open files"), "ulimit -n"),
        (
            RuntimeError("Too many open files. Communication with the workers is over"),
            "ulimit -n",
        ),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "ulimit -u"),
        (MemoryError(), "ulimit -v"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "ulimit -v"),
        (RuntimeError("shape mismatch"), None),
        (KeyError("Too many open files"), None),
    ],
)
def test_limits_of_the_system_are_no_bugs(error: Exception, words: str | None) -> None:
    problem = limit_reached(error)
    assert (problem is None) is (words is None)
    if problem is not None and words is not None:
        assert problem.hint is not None and words in problem.hint
