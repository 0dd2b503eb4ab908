"""When a run is asked to stop, and when it is asked to end at once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from llava_recipes.cli.options import duration
from llava_recipes.errors import RecipeError
from llava_recipes.recipe.load import load_source
from llava_recipes.runner import interruption
from llava_recipes.runner.beginnings import Run
from llava_recipes.runner.execute import Stopped, WorkerBug, _read_answer
from llava_recipes.runner.facts import plan_recipe
from llava_recipes.runner.interruption import Interruption
from llava_recipes.runner.launch import Answer, Processes
from llava_recipes.runner.reports import Reports, Result
from llava_recipes.stop_signals import STOP_SIGNALS
from tests.processes import python, run_process
from tests.tiny import stage1_values, yaml_text


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_storm_of_signals_is_one_request(number: signal.Signals) -> None:
    with Interruption() as asked:
        for _ in range(3):
            os.kill(os.getpid(), number)
            time.sleep(0.01)
    assert (asked.reason, asked.is_repeated) == (number.name, False)


def test_a_later_signal_is_a_second_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_REPEATED_AFTER_S", 1e-9)
    with Interruption() as asked, asked.ending_processes_first():
        os.kill(os.getpid(), signal.SIGXCPU)
        os.kill(os.getpid(), signal.SIGXCPU)
        assert not asked.is_repeated
        os.kill(os.getpid(), signal.SIGTERM)
    assert (asked.reason, asked.is_repeated) == ("SIGXCPU", True)


def test_the_end_of_a_time_is_no_second_request_after_its_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_REPEATED_AFTER_S", 1e-9)
    with Interruption() as asked, asked.ending_processes_first():
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert not asked.is_repeated
        os.kill(os.getpid(), signal.SIGTERM)
    assert (asked.reason, asked.is_repeated) == ("SIGUSR1", True)


def test_before_training_the_first_signal_ends_it() -> None:
    with Interruption() as asked, pytest.raises(KeyboardInterrupt), asked.ending_at_once():
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(5)
    with pytest.raises(KeyboardInterrupt), asked.ending_at_once():
        pass


def test_what_libraries_make_of_the_first_signal_ends_it_too() -> None:
    for error in (ValueError("bad schema"), None):
        with Interruption() as asked, pytest.raises(KeyboardInterrupt), asked.ending_at_once():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            except KeyboardInterrupt:
                if error is not None:
                    raise error from None
    with Interruption() as asked, pytest.raises(ValueError), asked.ending_at_once():
        raise ValueError("of its own")


def test_an_ignored_hangup_stays_ignored() -> None:
    """As nohup leaves it; Ctrl-C counts, also where a shell started the run in the background."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)}
    try:
        with Interruption() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert asked.reason is None
            os.kill(os.getpid(), signal.SIGINT)
            assert asked.reason == "SIGINT"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_time_that_is_over_asks_to_stop() -> None:
    asked = Interruption(max_time_s=60)
    left_s = asked.seconds_left()
    assert left_s is not None and 50 < left_s <= 60 and asked.reason is None
    over = Interruption(max_time_s=1e-9)
    assert (over.seconds_left(), over.reason) == (0.0, "--max-time")
    assert Interruption().seconds_left() is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3:55:00", 14_100),
        ("1-2", 93_600),
        ("1-02:30", 95_400),
        ("1-02:30:10", 95_410),
        ("1-00:00:00", 86_400),
        ("55:30", 3_330),
        ("90m", 5_400),
        ("4h", 14_400),
        ("1h30m", 5_400),
        ("1.5h", 5_400),
        ("45s", 45),
        ("9" * 400 + "h", 3e9),
    ],
)
def test_a_time_is_read_as_schedulers_write_it(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "10", "-1h", "0:00:00", "4 h", "1:2:3:4", "nan", "1h-2m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="is not a time"):
        duration(text)


def test_a_second_signal_ends_what_no_process_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while the weights are hashed that a stage starts from."""
    monkeypatch.setattr(interruption, "_REPEATED_AFTER_S", 1e-9)
    with Interruption() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        with asked.ending_processes_first():
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


_SHIELDED = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.kill(os.getpid(), signal.SIGUSR1)
os.execv(sys.argv[1], sys.argv[1:])
"""
_LOOK = """
import signal, subprocess, sys
from llava_recipes.interpreter import leave_current_folder
from llava_recipes.runner.interruption import Interruption
leave_current_folder()
with Interruption() as asked:
    print(asked.reason, subprocess.run([sys.executable, "-c", "exit(7)"]).returncode)
"""


def test_what_a_parent_shields_from_is_received(tmp_path: Path) -> None:
    (program,) = python("", fresh=True)[:1]
    done = run_process([program, "-c", _SHIELDED, program, "-c", _LOOK], cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("SIGUSR1 7\n", "")


def stopped_by_term(killed: str | None, num_saved: int, folder: Path, *, met: str | None = None) -> str:
    """What a run says that SIGTERM was to stop, while one of its processes was killed, or met an error."""
    loaded = load_source(yaml_text(stage1_values(folder)), "r.yaml")
    run = Run(loaded, plan_recipe(loaded, world_size=2), Processes(2), resume=False, stages=(0,))
    run.interruption.ask("SIGTERM")
    saved = {rank: Result(3, True, 1.0, 1.0, None) for rank in range(num_saved)}
    stops = ({"kind": "stopped", "step": 3, "waited_for": None, "met": met},)
    reports = Reports((), None, saved, stops, killed, has_begun=True)
    with pytest.raises((Stopped, RecipeError)) as ended:
        _read_answer(run, 0, Answer(137 if killed else 0, reports, None), [])
    problems = getattr(ended.value, "problems", ())
    return f"{type(ended.value).__name__}: {ended.value} {[each.found for each in problems]}"


def test_a_process_that_is_killed_while_it_saves_is_named(tmp_path: Path) -> None:
    by_kill, by_term = (f"rank 1 (process 7) was killed by {name}" for name in ("SIGKILL", "SIGTERM"))
    assert stopped_by_term(None, 0, tmp_path).startswith("Stopped: pretrain: stopped after step 3 without")
    lost = "RuntimeError: Connection closed by peer"
    said = stopped_by_term(None, 0, tmp_path, met=f"{lost}\nmore")
    assert f"step 3 without saving it, since another process had left: {lost};" in said
    assert by_kill in stopped_by_term(by_kill, 0, tmp_path)
    assert stopped_by_term(by_kill, 0, tmp_path).startswith("RecipeError")
    # What was learned is saved, or the process did what it was asked to.
    assert "saved checkpoint-3" in stopped_by_term(by_kill, 1, tmp_path)
    assert stopped_by_term(by_term, 0, tmp_path).startswith("Stopped")


def test_what_is_said_of_a_peer_that_left_when_asked_is_no_bug(tmp_path: Path) -> None:
    loaded = load_source(yaml_text(stage1_values(tmp_path)), "r.yaml")
    traceback = 'Traceback:\n  File "/x/torch/distributed/distributed_c10d.py", line 3151, in broadcast\n'
    for last, error in (
        ("RuntimeError: [gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer", Stopped),
        ("RuntimeError: sizes differ", WorkerBug),
    ):
        run = Run(loaded, plan_recipe(loaded, world_size=2), Processes(2), resume=False, stages=(0,))
        run.interruption.ask("SIGUSR1")
        reports = Reports((), f"{traceback}    work.wait()\n{last}", {}, (), None, has_begun=True)
        with pytest.raises(error):
            _read_answer(run, 0, Answer(3, reports, None), [])


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("SIGINT", "interrupted before the first step; nothing was saved; the same command starts it again"),
        ("--max-time", "loading left no time for a step; nothing was saved; give it more time"),
    ],
)
def test_too_little_time_is_not_advised_again(reason: str, said: str, tmp_path: Path) -> None:
    loaded = load_source(yaml_text(stage1_values(tmp_path)), "r.yaml")
    run = Run(loaded, plan_recipe(loaded, world_size=1), Processes(1), resume=False, stages=(0,))
    run.interruption.ask(reason)
    reports = Reports((), None, {}, (), None, has_begun=True)
    with pytest.raises(Stopped, match=rf"^pretrain: {said} \(asked by {reason}\)$"):
        _read_answer(run, 0, Answer(0, reports, None), [])
