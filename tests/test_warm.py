"""A process that is forked from the warm server behaves as a fresh one does."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, python, run_process
from tests.warm import client

BEHAVIOR = {
    "exit code": "raise SystemExit(7)",
    "last words": "raise SystemExit('no')",
    "an error": "print('said'); 1 / 0",
    "a signal": "import os; os.kill(os.getpid(), 15)",
    "a signal that nothing can hold": "import os; os.kill(os.getpid(), 9)",
    "what is read": "import sys; print(ascii(sys.stdin.read()), sys.argv, __name__)",
    "encodings": "import sys; print([(s.encoding, s.errors) for s in (sys.stdin, sys.stdout, sys.stderr)])",
    "limits": "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))",
    "signals held back": "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))",
    "folder": "import os, sys; print(os.getcwd(), sys.path[0], os.path.basename(sys.argv[0]))",
}


def _limit() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))


@pytest.mark.parametrize("name", BEHAVIOR)
def test_a_forked_process_behaves_as_a_fresh_one(name: str, tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(BEHAVIOR[name])
    forked, fresh = (
        run_process([*python("shown", fresh=fresh), "a b"], cwd=tmp_path, text="one\r\ntwo", limit=_limit)
        for fresh in (False, True)
    )
    assert (forked.returncode, forked.stdout) == (fresh.returncode, fresh.stdout)
    assert bool(forked.stderr) == bool(fresh.stderr)


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONPATH": str(ROOT)},
        {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT)]), "TMPDIR": "{folder}"},
        {"PYTHONPATH": "", "TEMP": "{folder}"},
    ],
    ids=str,
)
def test_a_process_of_this_checkout_is_forked_whatever_its_paths(env: dict[str, str], tmp_path: Path) -> None:
    """And has the paths that a fresh one has."""
    (tmp_path / "shown.py").write_text(
        "import sys, tempfile\n"
        "print(sys.path, tempfile.gettempdir())\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    given = {name: value.format(folder=tmp_path) for name, value in env.items()}
    forked, fresh = (
        run_process(python("shown", fresh=fresh), cwd=tmp_path, env=given) for fresh in (False, True)
    )
    assert forked.stdout == fresh.stdout
    assert (forked.stderr, fresh.stderr) == (f"{client.python() != sys.executable}\n", "False\n")


def test_forked_processes_share_no_random_state(tmp_path: Path) -> None:
    (tmp_path / "drawn.py").write_text(
        "import random, numpy, torch\n"
        "print(random.random(), numpy.random.rand(), torch.rand(1).item(), sep='\\n')"
    )
    first, second = (run_process(python("drawn"), cwd=tmp_path).stdout.split() for _ in range(2))
    assert len(first) == len(second) == 3
    assert not set(first) & set(second)


def test_the_server_outlives_its_clients(tmp_path: Path) -> None:
    """Those that are gone before they have said what they want."""
    if client.python() == sys.executable:
        pytest.skip("every process is a fresh one here")
    for said in (b"", b"{"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(Path(client.python()).parent / "socket"))
            connection.sendall(said)
    (tmp_path / "fine.py").write_text("print('fine')")
    assert run_process(python("fine"), cwd=tmp_path).stdout == "fine\n"
