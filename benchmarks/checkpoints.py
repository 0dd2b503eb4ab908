"""What hashing and flushing cost when a checkpoint is saved: pairs with and without, on one big layer.

    python benchmarks/checkpoints.py FOLDER [--gib 1] [--pairs 7]

FOLDER is on the disk to measure. A checkpoint of a linear layer with AdamW's two averages is saved by the
code that runs use, and by the same code with SHA-256 and fsync taken out; who comes first alternates.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

from llava_recipes.train.checkpoints import SealFacts, saving
from llava_recipes.train.saved_state import Live, save_state


class _NoHash:
    def __init__(self, *given: object) -> None: ...

    def update(self, data: object) -> None: ...

    def hexdigest(self) -> str:
        return ""


class _Model(nn.Module):
    def __init__(self, num_values: int) -> None:
        super().__init__()
        layer = nn.Linear(4096, max(1, num_values // 4096), bias=False)
        self.model = nn.ModuleDict({"multi_modal_projector": nn.ModuleDict({"0": layer})})


def make_live(gib: float) -> Live:
    """Weights and averages of `gib` in all."""
    model = _Model(int(gib * 2**30 / 12))
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return Live(model, optimizer, scheduler, None, None, torch.device("cpu"))


def save(live: Live, folder: Path, *, safe: bool) -> float:
    """Seconds that one checkpoint takes."""
    os.sync()
    with ExitStack() as stack:
        if not safe:
            stack.enter_context(patch.object(hashlib, "sha256", _NoHash))
            stack.enter_context(patch.object(os, "fsync", lambda handle: None))
        started_s = time.perf_counter()
        with saving(folder, 1) as new:
            save_state(live, new, beginnings=live.beginnings(), progress={}, check=lambda name, tensor: None)
            place = new.commit(SealFacts(1, 1, {}, None))
        seconds = time.perf_counter() - started_s
    shutil.rmtree(place)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--pairs", type=int, default=7)
    given = parser.parse_args()
    folder: Path = given.folder / "checkpoints-benchmark"
    folder.mkdir(parents=True)
    live = make_live(given.gib)
    try:
        save(live, folder, safe=True)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for pair in range(given.pairs):
            for safe in (pair % 2 == 0, pair % 2 == 1):
                seconds[safe].append(save(live, folder, safe=safe))
    finally:
        shutil.rmtree(folder)
    plain, whole = (statistics.median(seconds[safe]) for safe in (False, True))
    print(f"without {plain:.2f} s, with {whole:.2f} s, medians of {given.pairs} pairs of {given.gib} GiB")
    ratios = [b / a - 1 for a, b in zip(seconds[False], seconds[True], strict=True)]
    print(f"overhead {statistics.median(ratios):+.1%}, from {min(ratios):+.1%} to {max(ratios):+.1%}")


if __name__ == "__main__":
    main()
