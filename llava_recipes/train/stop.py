"""Stop a run on SIGTERM or Ctrl-C with a checkpoint, on every process at the same step."""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Save and stop after the current step once any process was asked to.

    The processes agree by an all-reduce: a signal that reaches one of them alone must not leave the
    others waiting.
    """

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        agreed = self.asked
        if dist.is_initialized() and dist.get_world_size() > 1:
            flag = torch.tensor(int(agreed), device=args.device)
            # A signal that comes while the processes agree is for the next step, and must not be forgotten.
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            agreed = bool(flag.item())
        if agreed and state.global_step < state.max_steps:
            control.should_save = True
            # What asked may not wait for an evaluation.
            control.should_evaluate = False
            control.should_training_stop = True
        return control
