"""The batches of one optimizer step on one process, made to count as the run's own device batches do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from llava_recipes.data.collate import SAMPLE_INDEX
from llava_recipes.data.dealing import Dealing
from llava_recipes.data.prompts import IGNORED

Batch = dict[str, Tensor]
BATCH_LABELS = "num_batch_labels"
"""int64[B]: the label tokens of the device batch that each sample belongs to; see `training_forward`."""


def counted(passes: Sequence[range], batches: Iterable[Batch]) -> Iterator[Batch]:
    """A batch for each pass. One without rows runs the same modules, and adds nothing to loss and counts."""
    for rows, batch in zip(passes, batches, strict=False):
        yield (
            batch
            if rows
            else batch
            | {
                "labels": torch.full_like(batch["labels"], IGNORED),
                SAMPLE_INDEX: batch[SAMPLE_INDEX][:0],
            }
        )


def weigh(batches: Sequence[Batch], passes: Sequence[range], dealing: Dealing, device: torch.device) -> None:
    """Let the losses of a step's batches add up to those of the layout's device batches, each a mean.

    Where passes are not whole device batches, every process must call it: the label tokens of a device batch
    are counted over all of them.
    """
    if dealing.is_kept:
        for batch in batches:
            if is_uncounted(batch):
                batch[BATCH_LABELS] = torch.ones(1, dtype=torch.int64)
        return
    members = [torch.tensor([dealing.device_batch(row) for row in rows or (0,)]) for rows in passes]
    num_labels = torch.zeros(dealing.layout.batches_per_step, dtype=torch.int64)
    for batch, numbers in zip(batches, members, strict=True):
        # Nothing predicts the first token.
        num_labels.index_add_(0, numbers, (batch["labels"][:, 1:] != IGNORED).sum(dim=1))
    if dealing.world_size > 1:
        over_all = num_labels.to(device)
        dist.all_reduce(over_all)
        num_labels = over_all.cpu()
    for batch, numbers in zip(batches, members, strict=True):
        # A pass that counts nothing may stand for a device batch that nobody has.
        batch[BATCH_LABELS] = num_labels[numbers].clamp(min=1)


def is_uncounted(batch: Batch) -> bool:
    return batch[SAMPLE_INDEX].numel() == 0
