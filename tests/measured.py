"""Run the command line in a process of its own and measure the memory that process itself takes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

# The kernel's `ru_maxrss` of a child begins with its parent's at the fork; VmHWM begins at the exec.
_MEASURED = """
import sys
from pathlib import Path
from llava_recipes.cli.main import main
code = main(sys.argv[2:])
status = Path("/proc/self/status").read_text()
peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
Path(sys.argv[1]).write_text(peak)
raise SystemExit(code)
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended; `memory_kb` is None when the process did not live to tell."""

    code: int
    out: str
    err: str
    memory_kb: int | None


def run_measured(
    *arguments: str, folder: Path, timeout_s: float, limit: Callable[[], None] | None = None
) -> Outcome:
    """Run `llava-recipe` with these arguments in a folder; `limit` sets the process's own limits."""
    peak = folder / "peak_kb"
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(peak), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=timeout_s,
        preexec_fn=limit,
        check=False,
    )
    return Outcome(
        code=done.returncode,
        out=done.stdout.decode("utf-8"),
        err=done.stderr.decode("utf-8"),
        memory_kb=int(peak.read_text()) if peak.exists() else None,
    )
