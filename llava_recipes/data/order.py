"""The order in which a stage's samples are drawn, the same on every process and after a resume."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from llava_recipes.data.grouping import Grouping


def epoch_order(num_samples: int, seed: int, epoch: int, shuffle: bool) -> list[int]:
    """Sample indices of one epoch, counted from 0; file order without `shuffle`.

    The permutation is the one that the original draws with one process. Its generator, seeded once, gives two
    numbers per epoch: the data loader's base seed, and the seed of the permutation.
    """
    if not shuffle:
        return list(range(num_samples))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epoch + 1):
        _draw(generator)
        permutation_seed = _draw(generator)
    permutation = torch.randperm(num_samples, generator=torch.Generator().manual_seed(permutation_seed))
    return permutation.tolist()


def grouped_order(grouping: Grouping, seed: int, epoch: int) -> list[int]:
    """Sample indices of one epoch, samples of like length side by side.

    As the original draws it: one generator, seeded once, gives per epoch the data loader's base seed and then
    the permutations themselves, so that the epochs before are drawn again to reach a later one.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epoch + 1):
        _draw(generator)
        order = grouping.order(generator)
    return order


class EpochSampler(Sampler[int]):
    """Yields the order of the epoch that was set last, grouped where there is a grouping."""

    def __init__(self, num_samples: int, seed: int, shuffle: bool, grouping: Grouping | None = None) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.shuffle = shuffle
        self.grouping = grouping
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        if self.grouping is not None:
            return iter(grouped_order(self.grouping, self.seed, self.epoch))
        return iter(epoch_order(self.num_samples, self.seed, self.epoch, self.shuffle))


def _draw(generator: torch.Generator) -> int:
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())
