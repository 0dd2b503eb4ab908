"""The order in which a stage's samples are drawn, the same on every process and after a resume.

The original draws in one of two ways, by whether it runs in one process or in several. Either is a pure
function of the seed and the epoch here, so that a run keeps its own whatever it is resumed on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch.utils.data import Sampler

from llava_recipes.data.grouping import Grouping

Order = Literal["file", "seed", "original"]
"""`seed` is also what the original draws with one process, `original` what it draws with several."""

_UNSEEDED = 67280421310721
"""The seed of a `torch.Generator()` that nobody seeds: accelerate 0.21 gives one to the sampler of several
processes, whatever the run's seed is, and keeps it for all epochs."""


def epoch_order(num_samples: int, seed: int, epoch: int, order: Order) -> list[int]:
    """Sample indices of one epoch, counted from 0.

    With one process the original's generator, seeded once, gives two numbers per epoch: the data loader's
    base seed, and the seed of the permutation. With several the permutations come from the sampler's
    generator, two per epoch, of which the second is thrown away; the seed has no part in them.
    """
    if order == "file":
        return list(range(num_samples))
    if order == "original":
        generator = torch.Generator().manual_seed(_UNSEEDED)
        for _ in range(2 * epoch):
            torch.randperm(num_samples, generator=generator)
    else:
        seeds = torch.Generator().manual_seed(seed)
        for _ in range(epoch + 1):
            _draw(seeds)
            permutation_seed = _draw(seeds)
        generator = torch.Generator().manual_seed(permutation_seed)
    return torch.randperm(num_samples, generator=generator).tolist()


def grouped_order(grouping: Grouping, seed: int, epoch: int, order: Order) -> list[int]:
    """Sample indices of one epoch, samples of like length side by side.

    As the original draws it: one generator, seeded once, gives per epoch the data loader's base seed and then
    the permutations themselves, so that the epochs before are drawn again to reach a later one. With several
    processes the permutation of whole steps comes from the sampler's generator.
    """
    seeded = torch.Generator().manual_seed(seed)
    sampler = torch.Generator().manual_seed(_UNSEEDED) if order == "original" else seeded
    for _ in range(epoch + 1):
        _draw(seeded)
        indices = grouping.order(within=seeded, between=sampler)
    return indices


class EpochSampler(Sampler[int]):
    """Yields the order of the epoch that was set last, grouped where there is a grouping."""

    def __init__(
        self, num_samples: int, seed: int, *, order: Order, grouping: Grouping | None = None
    ) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.order = order
        self.grouping = grouping
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        if self.grouping is not None:
            return iter(grouped_order(self.grouping, self.seed, self.epoch, self.order))
        return iter(epoch_order(self.num_samples, self.seed, self.epoch, self.order))


def _draw(generator: torch.Generator) -> int:
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())
