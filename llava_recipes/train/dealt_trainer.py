"""Hugging Face's Trainer, drawing and weighing batches by the layout of the run instead of its processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from llava_recipes.data.dealing import Dealing, PassSampler
from llava_recipes.data.order import BatchLayout, EpochSampler
from llava_recipes.data.workers import worker_options
from llava_recipes.train.step_batches import Batch, counted, is_uncounted, weigh


class DealtTrainer(Trainer):  # type: ignore[misc]
    """Computes in each step the device batches of `layout`, in the order of `sampler`, on any processes."""

    def __init__(self, *, sampler: EpochSampler, layout: BatchLayout, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layout = layout
        self._sampler = sampler
        self._dealing = Dealing(
            layout,
            num_samples=sampler.num_samples,
            drops_last=self.args.dataloader_drop_last,
            world_size=self.args.world_size,
            per_device=self.args.per_device_train_batch_size,
        )

    @property
    def _step_in_epoch(self) -> int:
        return int(self.state.global_step % self._dealing.num_steps)

    def _get_train_sampler(self, train_dataset: object = None) -> EpochSampler:
        return self._sampler

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The Trainer's loader, but the dealing says what each process draws, not accelerate."""
        usual = super().get_train_dataloader()
        kept = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "in_order")
        return DataLoader(
            usual.dataset,
            batch_sampler=PassSampler(self._sampler, self._dealing, rank=self.args.process_index),
            collate_fn=usual.collate_fn,
            **{name: getattr(usual, name) for name in kept},
            **worker_options(
                usual.num_workers, seed=usual.worker_init_fn, context=usual.multiprocessing_context
            ),
        )

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        self._sampler.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor | int | None]:
        """The batches of a step for this process. One that the dealing has no samples for counts nothing."""
        passes = self._dealing.passes(self._step_in_epoch, self.args.process_index)
        assert len(passes) == num_batches, f"{len(passes)} passes dealt, {num_batches} asked for"
        found: tuple[list[Batch], Tensor | int | None] = super().get_batch_samples(
            counted(passes, epoch_iterator), num_batches, device
        )
        if not self.model_accepts_loss_kwargs:
            weigh(found[0], passes, self._dealing, device)
        return found

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        # What the Trainer divides a mean by: the device batches of the step, over the processes.
        num_device_batches = self._dealing.num_device_batches(self._step_in_epoch)
        self.current_gradient_accumulation_steps = num_device_batches / self.args.world_size
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def _track_num_input_tokens(self, inputs: Batch) -> None:
        if is_uncounted(inputs):
            inputs = {name: tensor[:0] for name, tensor in inputs.items()}
        super()._track_num_input_tokens(inputs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # The Trainer counts an epoch in its passes, whose number depends on that of the processes.
        self.state.epoch = self._dealing.epoch_after(self.state.global_step)
        super()._maybe_log_save_evaluate(*args, **kwargs)
