"""The loss on samples that are never trained on, however they are spread over batches and processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava_recipes.data.dataset import StageDataset
from llava_recipes.data.tokens import IGNORED
from llava_recipes.model.generate import evaluating


@dataclass(frozen=True)
class Measured:
    """A loss over all label tokens of the validation samples, and what it took."""

    loss: float
    num_samples: int
    num_tokens: int
    seconds: float


@dataclass(frozen=True)
class ValidationSet:
    """Validation samples, and how they are put into batches."""

    dataset: StageDataset
    collator: Callable[[list[Any]], dict[str, Tensor]]
    batch_size: int
    num_workers: int

    def measure(
        self,
        model: nn.Module,
        prepare: Callable[[dict[str, Tensor]], Mapping[str, Any]],
        device: torch.device,
    ) -> Measured:
        """The sum of all label tokens' losses over their number: in eval mode, without dropout and gradient.

        Every process must call it. Each takes its share of the samples, and runs as many batches as the
        others, since ZeRO-3 gathers weights from all of them: one that has run out repeats a sample that
        does not count. `prepare` moves a batch to the device. No global random number is drawn.
        """
        started_s = time.monotonic()
        total = torch.zeros(2, dtype=torch.float64, device=device)
        with evaluating(model):
            for batch in self._batches():
                output = model(**prepare(batch), num_items_in_batch=1)
                total[0] += output.loss.double()
                total[1] += output.num_label_tokens
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(total)
        sum_of_losses, num_tokens = total.tolist()
        return Measured(
            loss=sum_of_losses / num_tokens,
            num_samples=len(self.dataset),
            num_tokens=int(num_tokens),
            seconds=time.monotonic() - started_s,
        )

    def _batches(self) -> Any:
        several = dist.is_initialized()
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        own = range(rank, len(self.dataset), world_size)
        num_rows = -(-len(self.dataset) // world_size)
        loader = DataLoader(
            self.dataset,
            batch_size=self.batch_size,
            sampler=[*own, *[0] * (num_rows - len(own))],
            collate_fn=self.collator,
            num_workers=self.num_workers,
            # Without one of its own a loader draws from the generator that training's dropout uses.
            generator=torch.Generator(),
        )
        for number, batch in enumerate(loader):
            num_counted = max(0, len(own) - number * self.batch_size)
            batch["labels"][num_counted:] = IGNORED
            yield batch


class MeasureAtTheEnd(TrainerCallback):  # type: ignore[misc]
    """Asks for an evaluation after the last step, whatever the strategy."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
        return control
