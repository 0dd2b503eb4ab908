"""One task of benchmarks/gpu.py in a process of its own: `python -m benchmarks.gpu_task JSON`.

Rows go to standard output, a JSON object a line; all else that is printed goes to standard error.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Emit = Callable[[dict[str, Any]], None]

_LIBRARIES = ("torch", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes")


def machine(emit: Emit) -> None:
    """What the figures were taken on."""
    import torch

    on_card = torch.cuda.is_available()
    emit(
        {
            "event": "machine",
            "device": torch.cuda.get_device_name() if on_card else "CPU",
            "num_devices": torch.cuda.device_count() if on_card else 0,
            "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if on_card else None,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "versions": {name: _version(name) for name in _LIBRARIES},
        }
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def speed(emit: Emit, *, size: int, num_products: int) -> None:
    """The rate of a square matrix product in bf16 on random numbers."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn(size, size, device=device, generator=generator).to(torch.bfloat16) for _ in range(2)
    )
    out = torch.empty_like(left)
    for _ in range(3):
        torch.matmul(left, right, out=out)
    seconds = [_seconds_of(lambda: torch.matmul(left, right, out=out)) for _ in range(num_products)]
    rates = [2 * size**3 / each / 1e12 for each in seconds]
    emit(
        {
            "event": "figures",
            "status": "measured",
            "size": size,
            "num_products": num_products,
            "tflops": statistics.median(rates),
            "slowest_tflops": min(rates),
            "fastest_tflops": max(rates),
        }
    )


def _seconds_of(act: Callable[[], object]) -> float:
    import torch

    if not torch.cuda.is_available():
        began_s = time.perf_counter()
        act()
        return time.perf_counter() - began_s
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    act()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def golden(emit: Emit, **runs: list[str]) -> None:
    _name_tests()
    from benchmarks.gpu_golden import replay

    replay(emit, **runs)


def steps(emit: Emit, *, batches: list[int], **setting: Any) -> None:
    from benchmarks.gpu_steps import Setting, measure_steps

    measure_steps(Setting(**setting, batches=tuple(batches)), emit)


def resume(emit: Emit, **setting: Any) -> None:
    _name_tests()
    from benchmarks.gpu_resume import Setting, cut_and_resume

    cut_and_resume(Setting(**setting), emit)


def _name_tests() -> None:
    """Let `tests` be this checkout's folder: an installed package of that name would be found before it."""
    package = types.ModuleType("tests")
    package.__path__ = [str(Path(__file__).resolve().parents[1] / "tests")]
    sys.modules["tests"] = package


TASKS: dict[str, Callable[..., None]] = {
    task.__name__: task for task in (machine, speed, golden, steps, resume)
}


def main(argument: str) -> None:
    wanted = json.loads(argument)
    # Libraries print what they like to standard output; the rows keep a way of their own.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as rows:
        os.dup2(2, 1)

        def emit(row: dict[str, Any]) -> None:
            print(json.dumps(row), file=rows, flush=True)

        TASKS[wanted["task"]](emit, **wanted["options"])


if __name__ == "__main__":
    main(sys.argv[1])
