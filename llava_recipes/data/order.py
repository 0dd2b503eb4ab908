"""The order in which a stage's samples are drawn, the same on every process and after a resume.

The original draws in one of two ways, by whether it runs in one process or in several. Either is a pure
function of the seed and the epoch here, so that a run keeps its own whatever it is resumed on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Grouping:
    """What a grouped order is made from.

    `num_shares` is processes × accumulation steps: the original spreads a step's samples over as many batches
    of like length. With `by_modality` samples with and without pictures keep apart.
    """

    lengths: Sequence[int]
    batch_size: int
    num_shares: int
    by_modality: bool

    def order(self, *, within: torch.Generator, between: torch.Generator) -> list[int]:
        """The indices of one epoch.

        Of samples of one kind, all is drawn from `between`. Where two kinds keep apart, each is shuffled from
        `within`, and the order of whole steps is drawn from `between`. With one process both are the same.
        """
        if not self.by_modality:
            return self._by_length(self.lengths, between)
        with_picture = [index for index, length in enumerate(self.lengths) if length > 0]
        text_only = [index for index, length in enumerate(self.lengths) if length <= 0]
        if not with_picture or not text_only:
            return self._by_length(self.lengths, between)
        kinds = []
        for members in (with_picture, text_only):
            inner = self._by_length([abs(self.lengths[index]) for index in members], within)
            kinds.append(self._steps([members[index] for index in inner]))
        # What is left over of both kinds makes the last step together, in the order of the data.
        rest = sorted(kinds[0][-1] + kinds[1][-1])
        whole = kinds[0][:-1] + kinds[1][:-1]
        shuffled = torch.randperm(len(whole), generator=between).tolist()
        return [index for step in shuffled for index in whole[step]] + rest

    def _steps(self, indices: list[int]) -> list[list[int]]:
        size = self.batch_size * self.num_shares
        return [indices[start : start + size] for start in range(0, len(indices), size)]

    def _by_length(self, lengths: Sequence[int], generator: torch.Generator) -> list[int]:
        permutation: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
        order: list[int] = []
        for step in self._steps(permutation):
            longest_first = sorted(step, key=lengths.__getitem__, reverse=True)
            for share in deal_evenly(longest_first, lengths, num_shares=self.num_shares):
                order += share
        return order


def deal_evenly(indices: Sequence[int], lengths: Sequence[int], *, num_shares: int) -> list[list[int]]:
    """Shares of equal number and nearly equal total length: each index goes where the total is smallest.

    Where the number does not divide they are dealt out in turn.
    """
    size, left_over = divmod(len(indices), num_shares)
    if left_over:
        return [list(indices[share::num_shares]) for share in range(num_shares)]
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    totals: list[float] = [0] * num_shares
    for index in indices:
        smallest = totals.index(min(totals))
        shares[smallest].append(index)
        totals[smallest] += lengths[index]
        if len(shares[smallest]) == size:
            totals[smallest] = math.inf
    return shares


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
