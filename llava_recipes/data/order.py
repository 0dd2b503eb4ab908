"""The order in which a stage's samples are drawn, the same on every process and after a resume.

The original draws in one way when it runs in one process, and in another when it runs in several. Here both
are pure functions of seed and epoch, so that a run keeps its order whatever machine resumes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

import torch
from torch.utils.data import Sampler

Order = Literal["file", "seed", "original"]
"""`seed` is the original's order with one process, `original` its order with several."""
_UNSEEDED = 67280421310721
"""The seed of an unseeded `torch.Generator()`: accelerate 0.21 gives one to the sampler of several processes,
whatever the run's seed is, and keeps it for all epochs."""


@dataclass(frozen=True)
class BatchLayout:
    """How a run's samples are dealt out to device batches. It is the run's own, fixed at its first step.

    The names are those of the plan. A run that resumes on another number of processes keeps the layout that
    it was started with, and computes the same device batches in each step.
    """

    world_size: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int

    @property
    def batches_per_step(self) -> int:
        return self.world_size * self.gradient_accumulation_steps

    @property
    def samples_per_step(self) -> int:
        return self.batches_per_step * self.per_device_train_batch_size

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: object) -> BatchLayout:
        """Raises ValueError where they are not those of a layout."""
        if not isinstance(values, dict) or values.keys() != {field.name for field in fields(cls)}:
            raise ValueError(f"{json.dumps(values)[:80]} is not a layout of batches")
        for name, value in values.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"`{name}` is {json.dumps(value)[:40]}, not a whole number above 0")
        return cls(**values)


class EpochSampler(Sampler[int]):
    """Yields the order of the epoch that was set last, grouped when there is a grouping."""

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


def epoch_order(num_samples: int, seed: int, epoch: int, order: Order) -> list[int]:
    """Sample indices of one epoch, counted from 0.

    With one process the original's generator, seeded once, gives two numbers per epoch: the data loader's
    base seed, and the seed of the permutation. With several, the sampler's generator gives two permutations
    per epoch, and the second is thrown away; the run's seed does not change them.
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

    As in the original, one generator, seeded once, gives for each epoch the data loader's base seed and then
    the permutations; a later epoch is reached by drawing all epochs before it again. With several processes
    the permutation of whole steps comes from the sampler's generator.
    """
    seeded = torch.Generator().manual_seed(seed)
    sampler = torch.Generator().manual_seed(_UNSEEDED) if order == "original" else seeded
    for _ in range(epoch + 1):
        _draw(seeded)
        indices = grouping.order(within=seeded, between=sampler)
    return indices


def _draw(generator: torch.Generator) -> int:
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())


@dataclass(frozen=True)
class Grouping:
    """Samples of like length put side by side.

    `num_shares` is processes × accumulation steps: the original spreads a step's samples over as many batches
    of like length. With `by_modality` samples with images and without are kept apart.
    """

    lengths: Sequence[int]
    batch_size: int
    num_shares: int
    by_modality: bool

    def order(self, *, within: torch.Generator, between: torch.Generator) -> list[int]:
        """The indices of one epoch.

        With samples of one kind all numbers come from `between`. With two kinds each is shuffled with
        `within`, and `between` gives the order of whole steps. With one process both are the same generator.
        """
        if not self.by_modality:
            return self._by_length(self.lengths, between)
        with_image = [index for index, length in enumerate(self.lengths) if length > 0]
        text_only = [index for index, length in enumerate(self.lengths) if length <= 0]
        if not with_image or not text_only:
            return self._by_length(self.lengths, between)
        kinds = []
        for members in (with_image, text_only):
            inner = self._by_length([abs(self.lengths[index]) for index in members], within)
            kinds.append(self._steps([members[index] for index in inner]))
        # The rest of both kinds makes the last step, in the order of the data.
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

    When the number is not divisible, indices are dealt out in turn.
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
