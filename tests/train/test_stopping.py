"""A request to stop is never forgotten, whenever it comes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from transformers import TrainerControl, TrainerState, TrainingArguments

from llava_recipes.train.stop_on_request import StopOnRequest
from llava_recipes.train.stopping import Stop


def test_a_signal_that_comes_while_the_processes_agree_stops_at_the_next_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: str
) -> None:
    """Both processes of a node get it at once, and spend a good part of a step in this very call."""
    stop, requests = Stop(), ["SIGTERM"]

    def interrupted(tensor: torch.Tensor, op: object) -> None:
        """What the others say too: nothing yet."""
        for reason in requests:
            stop.ask(reason)
        requests.clear()

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", interrupted)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state = TrainerState(max_steps=10)
    callback = StopOnRequest(stop)
    stopped = []
    for step in (1, 2):
        state.global_step = step
        control = callback.on_step_end(arguments, state, TrainerControl())
        stopped.append((control.should_save, control.should_training_stop))
    assert stopped == [(False, False), (True, True)]
