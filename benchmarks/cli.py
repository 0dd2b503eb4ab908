"""Time the commands that a person waits for: whole processes, interpreter start included.

    python benchmarks/cli.py [--repeats 10] [--against CHECKOUT]

With `--against` each command also runs in another checkout, in turn with this one, and the table compares CPU
seconds, which needs no quiet machine.
Bytecode is cached as in any installed package, in a folder of its own that is filled by a first run of each
command. CPU seconds (user and system) are printed next to wall seconds, which grow on a busy machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "recipes/pretrain_v15_13b.yaml"
COMMANDS: dict[str, list[str]] = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import pydantic.main, yaml'": ["-c", "import pydantic.main, yaml"],
    "--help": ["-m", "llava_recipes", "--help"],
    "validate RECIPE": ["-m", "llava_recipes", "validate", RECIPE],
    "plan RECIPE --world-size 8": ["-m", "llava_recipes", "plan", RECIPE, "--world-size", "8"],
    "plan RECIPE --gpu h100": ["-m", "llava_recipes", "plan", RECIPE, "--gpu", "h100"],
    "explain KEY": ["-m", "llava_recipes", "explain", "stages[].train.learning_rate"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="runs of each (default 10)")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="compare with another checkout")
    given = parser.parse_args()
    repeats: int = given.repeats
    with tempfile.TemporaryDirectory() as bytecode:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        print(_machine())
        if given.against is not None:
            _compare(given.against, repeats, environment)
            return
        print(f"RECIPE is {RECIPE}; medians (smallest) of {repeats} runs\n")
        print("| | wall, s | CPU, s |\n|---|---:|---:|")
        for name, arguments in COMMANDS.items():
            _time_once(arguments, environment)
            walls, cpus = zip(*(_time_once(arguments, environment) for _ in range(repeats)), strict=True)
            print(f"| `{name}` | {_middle(walls)} | {_middle(cpus)} |", flush=True)


def _compare(other: Path, repeats: int, environment: dict[str, str]) -> None:
    """Print CPU seconds of both checkouts: pairs run in turn, the first of a pair alternating."""
    print(f"RECIPE is {RECIPE}; CPU seconds, medians of {repeats} pairs\n")
    print("| | before | now | now / before |\n|---|---:|---:|---:|")
    for name, arguments in COMMANDS.items():
        if "llava_recipes" not in arguments:
            continue
        cpus: dict[Path, list[float]] = {other.resolve(): [], ROOT: []}
        for number in range(-1, repeats):
            for folder in sorted(cpus, reverse=number % 2 == 0):
                _, cpu_s = _time_once(arguments, environment, folder)
                # The first pair fills the cache of bytecode.
                cpus[folder] += [cpu_s] if number >= 0 else []
        before, now = (statistics.median(values) for values in cpus.values())
        print(f"| `{name}` | {before:.3f} | {now:.3f} | {now / before:.2f} |", flush=True)


def _machine() -> str:
    parts = [
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in ("pydantic", "PyYAML")),
    ]
    return f"{', '.join(parts)}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def _middle(values: tuple[float, ...]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f})"


def _time_once(arguments: list[str], environment: dict[str, str], folder: Path = ROOT) -> tuple[float, float]:
    """Wall and CPU seconds of one process in a checkout, which must succeed."""
    start_s = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - start_s
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments} ended with {process.returncode}")
    return wall_s, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
