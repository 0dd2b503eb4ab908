"""What holds for every test: offline, on the CPU, with one thread, in this process and in those it starts.

A test leaves the process as it found it (tests/leaks.py), and tests run in a random order (pytest-randomly).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings
from tqdm import tqdm

from tests.durations import SLOW_S, Clock, functions_in, is_slow, record
from tests.laws import LONG, examples
from tests.leaks import Surroundings, may_end
from tests.warm import client

# The same examples every time: a red run speaks of the change. `--hypothesis-profile=default` draws new ones.
settings.register_profile("steady", examples(100), derandomize=True)
settings.load_profile("steady")

# Under nohup the tests would ignore it, and so would the runs that they stop with it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    CUDA_VISIBLE_DEVICES="",
    DS_ACCELERATOR="cpu",
    # rich wraps at the terminal's width; the texts that tests compare must not depend on it.
    COLUMNS="110",
)
for name in ("WANDB_API_KEY", "FORCE_COLOR", "CLICOLOR_FORCE", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
    os.environ.pop(name, None)

# A bar of transformers' would leave a thread that watches it.
tqdm.monitor_interval = 0

LOOPBACK = ("127.", "::1", "localhost")

RECORD = os.environ.get("LLAVA_RECIPES_DURATIONS") == "1"

_GRACE_S = 30.0
_SURROUNDINGS = pytest.StashKey[Surroundings]()
_clock = Clock()


def _refuse_the_network(event: str, arguments: tuple[object, ...]) -> None:
    """Fail a test that reaches for another machine; Unix sockets and loopback are fine."""
    if event != "socket.connect":
        return
    address = arguments[1]
    if isinstance(address, tuple) and not str(address[0]).startswith(LOOPBACK):
        raise RuntimeError(f"a test reached for the network: {address[0]}")


sys.addaudithook(_refuse_the_network)


def pytest_configure(config: pytest.Config) -> None:
    # A test that draws numbers seeds them itself. No option in pyproject.toml: `-p no:randomly` must work.
    config.option.randomly_reset_seed = False
    config.pluginmanager.register(_clock)
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        client.join(worker["testrunuid"])


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave a file that is slow as a whole unread where slow tests are left out: imports take seconds."""
    if config.getoption("markexpr") != "not slow" or not collection_path.name.startswith("test_"):
        return None
    functions = functions_in(collection_path)
    return True if functions and all(map(is_slow, functions)) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if is_slow(item.nodeid.partition("[")[0]):
            item.add_marker("slow")
    left_out = [] if LONG else [item for item in items if item.get_closest_marker("long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


def pytest_collection_finish() -> None:
    # What collecting has imported stays: no later collection of garbage need look through it.
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    client.leave()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    # Before any fixture: those of a module, too, must not change what is there for other tests.
    item.stash[_SURROUNDINGS] = Surroundings.now()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    try:
        yield
    except BaseException as error:
        for line in _put_back(item):
            error.add_note(f"this test leaves behind {line}")
        raise
    differences = _put_back(item)
    if differences:
        pytest.fail("this test leaves behind\n  " + "\n  ".join(differences), pytrace=False)


def _put_back(item: pytest.Item) -> list[str]:
    """What a test has left other than it found it, a line each, put back as far as that can be done."""
    before = item.stash.get(_SURROUNDINGS, None)
    if before is None:
        return []
    differences = before.differences(Surroundings.now())
    # A process or thread that is on its way out may take a moment.
    deadline = time.monotonic() + _GRACE_S
    while any(map(may_end, differences)) and time.monotonic() < deadline:
        time.sleep(0.02)
        differences = before.differences(Surroundings.now())
    if differences:
        before.restore()
    return differences


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: pytest.ExitCode, config: pytest.Config
) -> None:
    seed = config.getoption("randomly_seed", None)
    if seed is not None:
        terminalreporter.write_line(
            f"order of the tests: --randomly-seed={seed} (with -n 0 exactly the same)"
        )
    taken = _clock.seconds()
    if RECORD:
        if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            record(taken)
        return
    above = [(seconds, name) for name, seconds in taken.items() if seconds > SLOW_S and not is_slow(name)]
    if above:
        terminalreporter.write_line(
            f"above {SLOW_S:g} s, and recorded as below (on an idle machine: `make durations`):"
        )
        for seconds, name in sorted(above, reverse=True):
            terminalreporter.write_line(f"  {seconds:5.1f} s  {name}")
