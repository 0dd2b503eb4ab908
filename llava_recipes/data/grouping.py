"""Samples of like length side by side: less padding, and one kind of sample in a batch.

Lengths are words; a negative one is that of a sample without a picture. The random numbers are drawn
as the original draws them, so that the same seed gives the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


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
