"""What hashing and flushing cost when a checkpoint is saved, on one big layer.

    python benchmarks/checkpoints.py FOLDER [--gib 1] [--rounds 7]

FOLDER is on the disk to measure. A linear layer with AdamW's two averages is saved in four ways, whose order
changes from round to round: as runs do; as they would without SHA-256; without flushing and without SHA-256;
and as the Trainer does by itself, with safetensors and torch.save, which flush and hash nothing.
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
from safetensors.torch import save_file
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


def save(live: Live, folder: Path, way: str) -> float:
    """Seconds that one checkpoint takes."""
    os.sync()
    with ExitStack() as stack:
        if way in ("not hashed", "neither"):
            stack.enter_context(patch.object(hashlib, "sha256", _NoHash))
        if way == "neither":
            stack.enter_context(patch.object(os, "fsync", lambda handle: None))
            stack.enter_context(patch.object(os, "posix_fadvise", lambda *given: None))
        started_s = time.perf_counter()
        place = _save_as_trainer(live, folder) if way == "trainer" else _save_as_runs(live, folder)
        seconds = time.perf_counter() - started_s
    shutil.rmtree(place)
    return seconds


def _save_as_runs(live: Live, folder: Path) -> Path:
    with saving(folder, 1) as new:
        save_state(live, new, beginnings=live.beginnings(), progress={}, check=lambda name, tensor: None)
        return new.commit(SealFacts(1, 1, {}, None))


def _save_as_trainer(live: Live, folder: Path) -> Path:
    place = folder / "checkpoint-1"
    place.mkdir()
    save_file(live.model.state_dict(), place / "model.safetensors")
    torch.save(live.optimizer.state_dict(), place / "optimizer.pt")
    return place


WAYS = ("runs", "not hashed", "neither", "trainer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    folder: Path = given.folder / "checkpoints-benchmark"
    folder.mkdir(parents=True)
    live = make_live(given.gib)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    try:
        save(live, folder, "runs")
        for number in range(given.rounds):
            for place in range(len(WAYS)):
                way = WAYS[(number + place) % len(WAYS)]
                seconds[way].append(save(live, folder, way))
    finally:
        shutil.rmtree(folder)
    print(f"{given.rounds} rounds of {given.gib} GiB; seconds, and how much longer runs take, by rounds")
    for way, taken in seconds.items():
        ratios = [ours / theirs - 1 for ours, theirs in zip(seconds["runs"], taken, strict=True)]
        print(
            f"{way:12} {statistics.median(taken):.2f} ({min(taken):.2f} to {max(taken):.2f})"
            f"  {statistics.median(ratios):+.0%} ({min(ratios):+.0%} to {max(ratios):+.0%})"
        )


if __name__ == "__main__":
    main()
