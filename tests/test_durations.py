"""Which tests are slow is recorded, not written by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests import durations
from tests.processes import ROOT, run_process


def test_only_tests_that_exist_are_recorded() -> None:
    """After a test is renamed or removed: change tests/durations.json alike, or run `make durations`."""
    assert durations.recorded().keys() - durations.all_functions() == set()


def test_no_test_is_marked_by_hand() -> None:
    by_hand = "mark" + ".slow"
    files = [*ROOT.glob("tests/**/*.py")]
    assert len(files) > 200
    assert [file for file in files if by_hand in file.read_text("utf-8")] == []


def test_a_test_is_marked_as_recorded(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        is_slow = durations.is_slow(item.nodeid.partition("[")[0])
        assert (item.get_closest_marker("slow") is not None) == is_slow


def test_what_quick_runs_is_recorded_as_short() -> None:
    """So that `make quick` stays under a minute on two cores."""
    quick = [seconds for name, seconds in durations.recorded().items() if not durations.is_slow(name)]
    assert sum(quick) < durations.QUICK_S


def test_a_record_keeps_what_did_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = sorted(durations.functions_in(Path(__file__)))[:2]
    monkeypatch.setattr(durations, "FILE", tmp_path / "durations.json")
    (tmp_path / "durations.json").write_text("{}")
    durations.record({here: 1.0, there: 7.0})
    durations.record({here: 2.04, "tests/test_gone.py::test_gone": 8.0})
    durations.record({there: 0.1})
    assert durations.recorded() == {here: 2.0}


TIMED = """
import time
import pytest

@pytest.fixture(scope="module")
def dear():
    time.sleep(0.6)

def test_first(dear): ...

@pytest.mark.parametrize("number", range(3))
def test_second(dear, number): time.sleep(0.1)

def test_third(): ...
"""


COUNTED = """
import json, sys
import pytest
from tests.durations import Clock

clock = Clock()
options = ["-p", "no:randomly", "-p", "no:cacheprovider", "-c", "/dev/null"]
pytest.main([*options, sys.argv[1]], plugins=[clock])
print()
print(json.dumps({name.partition("::")[2]: seconds for name, seconds in clock.seconds().items()}))
"""


def test_a_function_takes_its_cases_and_its_fixtures(tmp_path: Path) -> None:
    file = tmp_path / "test_timed.py"
    file.write_text(TIMED)
    done = run_process([sys.executable, "-c", COUNTED, file], cwd=ROOT)
    seconds = json.loads(done.stdout.splitlines()[-1])
    assert seconds["test_first"] >= 0.6
    assert seconds["test_second"] >= 0.9
    assert seconds["test_third"] < 0.5
