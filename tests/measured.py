"""Run the command line in a process of its own and measure the memory that process itself takes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.processes import run_process

# The kernel's `ru_maxrss` of a child begins with its parent's at the fork; VmHWM begins at the exec.
_MEASURED = """
import sys
from pathlib import Path
from llava_recipes.cli.main import main
peak_file = sys.argv.pop(1)
code = main()
status = Path("/proc/self/status").read_text()
peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
Path(peak_file).write_text(peak)
raise SystemExit(code)
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended; `memory_kb` is None when the process did not live to tell."""

    code: int
    out: str
    err: str
    memory_kb: int | None


def run_measured(*arguments: str, folder: Path, limit: Callable[[], None] | None = None) -> Outcome:
    """Run `llava-recipe` with these arguments in a folder; `limit` sets the process's own limits."""
    peak = folder / "peak_kb"
    done = run_process([sys.executable, "-c", _MEASURED, peak, *arguments], cwd=folder, limit=limit)
    return Outcome(
        code=done.returncode,
        out=done.stdout,
        err=done.stderr,
        memory_kb=int(peak.read_text()) if peak.exists() else None,
    )
