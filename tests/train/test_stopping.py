"""A request to stop is never forgotten, whenever it comes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from transformers import TrainerControl, TrainerState, TrainingArguments

from llava_recipes.train.stop_on_request import StopOnRequest
from llava_recipes.train.stopping import SAVING, Stop


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


@pytest.mark.parametrize(
    ("reason", "phase", "said"),
    [
        ("SIGINT", None, ["saves a checkpoint after this step, then ends; a second Ctrl-C ends it at once"]),
        ("--max-time", None, ["saves a checkpoint after this step, then ends"]),
        ("SIGTERM", SAVING, ["finishes the checkpoint, then ends"]),
        ("a failure elsewhere", None, []),
    ],
)
def test_a_request_is_acknowledged_at_once(reason: str, phase: str | None, said: list[str]) -> None:
    lines = list[str]()
    stop = Stop(say=lines.append)
    stop.note_step(1)
    if phase is not None:
        stop.enter(phase)
    stop.ask(reason)
    stop.obey("SIGHUP")
    assert [line.removesuffix(", without saving") for line in lines] == [
        f"asked to stop ({reason}): the run {words}" for words in said
    ]


def test_nothing_is_promised_before_the_first_step() -> None:
    lines = list[str]()
    Stop(say=lines.append).ask("SIGINT")
    assert lines == []
