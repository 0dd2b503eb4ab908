"""How the samples of an epoch are dealt to steps, to device batches, and to the processes that there are now.

Steps and device batches are those of the run's layout, whatever processes train it. Where samples do not
fill the last batches of several processes, accelerate's `BatchSamplerShard` fills them with the first ones of
the epoch; one process has a smaller last batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import Sampler

from llava_recipes.data.order import BatchLayout, EpochSampler


@dataclass(frozen=True)
class Dealing:
    """The passes of each process in each step of an epoch.

    layout      processes, device batch and accumulation that the run was started with
    world_size  processes that train now
    per_device  samples that one of them takes in one pass, at most
    """

    layout: BatchLayout
    num_samples: int
    drops_last: bool
    world_size: int
    per_device: int

    @property
    def is_kept(self) -> bool:
        """Whether every pass computes one device batch of the layout."""
        return self.per_device == self.layout.per_device_train_batch_size

    @property
    def num_rows(self) -> int:
        """Samples of an epoch, counting those again that fill its last batches."""
        whole, rest = divmod(self.num_samples, self._per_round)
        if self.drops_last or not rest:
            return whole * self._per_round
        return self.num_samples if self.layout.world_size == 1 else (whole + 1) * self._per_round

    @property
    def num_steps(self) -> int:
        return math.ceil(self.num_rows / self.layout.samples_per_step)

    @property
    def num_passes(self) -> int:
        """Passes of each process in an epoch."""
        last = max(0, self.num_steps - 1)
        return last * self._passes_in(self.layout.samples_per_step) + self._passes_in(len(self.rows(last)))

    def rows(self, step: int) -> range:
        """Which rows of an epoch a step, counted within it, computes."""
        size = self.layout.samples_per_step
        return range(step * size, min((step + 1) * size, self.num_rows))

    def passes(self, step: int, rank: int) -> list[range]:
        """The rows that a process computes in each of its passes; none in one that only others need."""
        rows, size = self.rows(step), self.per_device
        numbers = range(rank, self.world_size * self._passes_in(len(rows)), self.world_size)
        return [rows[number * size : (number + 1) * size] for number in numbers]

    def device_batch(self, row: int) -> int:
        """Which device batch of its step a row belongs to."""
        return row % self.layout.samples_per_step // self.layout.per_device_train_batch_size

    def num_device_batches(self, step: int) -> int:
        return math.ceil(len(self.rows(step)) / self.layout.per_device_train_batch_size)

    def epoch_after(self, num_steps: int) -> float:
        """How many epochs are done after some steps, in passes of the layout."""
        epoch, step = divmod(num_steps, self.num_steps)
        return epoch + step * self.layout.gradient_accumulation_steps / math.ceil(
            self.num_rows / self._per_round
        )

    @property
    def _per_round(self) -> int:
        return self.layout.world_size * self.layout.per_device_train_batch_size

    def _passes_in(self, num_rows: int) -> int:
        return math.ceil(math.ceil(num_rows / self.per_device) / self.world_size)


class PassSampler(Sampler[list[int]]):
    """The samples of each pass of one process, in the order of the epoch that was set last.

    A pass that has no samples of its own gets one of its step, which must not count.
    """

    def __init__(self, sampler: EpochSampler, dealing: Dealing, *, rank: int) -> None:
        self.sampler, self.dealing, self.rank = sampler, dealing, rank

    def __len__(self) -> int:
        return self.dealing.num_passes

    def __iter__(self) -> Iterator[list[int]]:
        return deal(list(self.sampler), self.dealing, rank=self.rank)


def deal(order: Sequence[int], dealing: Dealing, *, rank: int) -> Iterator[list[int]]:
    """The samples of each pass of a process in one epoch, whose order is given."""
    for step in range(dealing.num_steps):
        for rows in dealing.passes(step, rank):
            yield [order[row % len(order)] for row in rows or dealing.rows(step)[:1]]
