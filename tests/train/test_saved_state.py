"""What a checkpoint contains: any optimizer goes on to the bit, and the plan decides on rates."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from transformers import get_scheduler
from transformers.optimization import Adafactor

from llava_recipes.errors import RecipeError
from llava_recipes.seals import seal_of
from llava_recipes.train.checkpoints import UNUSABLE, SealFacts, find_damage, saving
from llava_recipes.train.optimizer_states import check_storable
from llava_recipes.train.saved_state import Live, open_state, restore, restore_random, save_state
from llava_recipes.train.tensor_files import TensorSpec, TensorWriter, in_shards

CPU = torch.device("cpu")
Make = Callable[[Any], torch.optim.Optimizer]


class Model(nn.Module):
    """As large as an 8-bit optimizer needs to keep 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = {"0": nn.Linear(64, 80), "2": nn.Linear(80, 3, dtype=torch.bfloat16)}
        self.model = nn.ModuleDict({"multi_modal_projector": nn.ModuleDict(layers)})
        self.frozen = nn.ParameterDict()

    def step(self, optimizer: torch.optim.Optimizer, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for parameter in self.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.grad = drawn.to(parameter.dtype)
        optimizer.step()


def live(make: Make, *, rate: float = 0.1, num_steps: int = 10) -> Live:
    model = Model()
    optimizer = make(list(model.parameters()))
    for group in optimizer.param_groups:
        group["lr"] = rate
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=num_steps)
    return Live(model, optimizer, scheduler, None, None, CPU)


def write(state: Live, folder: Path, step: int = 4, **progress: Any) -> Path:
    with saving(folder, step) as new:
        save_state(
            state, new, beginnings=state.beginnings(), progress=progress, check=lambda name, tensor: None
        )
        new.write_json(
            "trainer_state.json", {"global_step": step, "epoch": 0.1, "total_flos": 0, "log_history": []}
        )
        return new.commit(SealFacts(step, 1, {}, 0.5))


def eight_bits(name: str) -> Make:
    def make(parameters: Any) -> torch.optim.Optimizer:
        bnb = pytest.importorskip("bitsandbytes")
        optimizer: torch.optim.Optimizer = getattr(bnb.optim, name)(parameters, lr=0.1)
        return optimizer

    return make


OPTIMIZERS: dict[str, Make] = {
    "adamw": torch.optim.AdamW,
    "adamw fused": lambda given: torch.optim.AdamW(given, fused=True),
    "amsgrad": lambda given: torch.optim.Adam(given, amsgrad=True),
    "sgd": torch.optim.SGD,
    "momentum": lambda given: torch.optim.SGD(given, momentum=0.9),
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adafactor": lambda given: Adafactor(given, scale_parameter=False, relative_step=False, lr=0.1),
    "8-bit": eight_bits("AdamW8bit"),
    "lion": eight_bits("Lion"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    make = OPTIMIZERS[name]
    whole = live(make)
    try:
        for number in range(4):
            whole.model.step(whole.optimizer, number)  # type: ignore[operator]
            whole.scheduler.step()
    except (NotImplementedError, RuntimeError) as error:
        pytest.skip(f"not on this machine: {error}")
    folder = write(whole, tmp_path)
    assert find_damage(folder) is None
    odd = [file.name for file in folder.iterdir() if file.suffix not in (".json", ".safetensors")]
    assert odd == ["optimizer.pt"]
    again = live(make)
    for parameter in again.model.parameters():
        parameter.data.zero_()
    assert restore(again, open_state(folder, CPU), beginnings=again.beginnings()) is None
    for number in range(4, 7):
        for state in (whole, again):
            state.model.step(state.optimizer, number)  # type: ignore[operator]
            state.scheduler.step()
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert again.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


def stepped(folder: Path, make: Make = torch.optim.AdamW, num_steps: int = 4) -> Path:
    state = live(make)
    for number in range(num_steps):
        state.model.step(state.optimizer, number)  # type: ignore[operator]
        state.scheduler.step()
    return write(state, folder, step=num_steps)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_rate_and_length_are_the_new_plans(num_steps: int, tmp_path: Path) -> None:
    folder = stepped(tmp_path, num_steps=num_steps)
    again = live(torch.optim.AdamW, rate=0.5, num_steps=20)
    restore(again, open_state(folder, CPU), beginnings=again.beginnings())
    wanted = pytest.approx(0.5 * (20 - num_steps) / 20)
    assert again.optimizer.param_groups[0]["lr"] == wanted
    again.optimizer.step()
    again.scheduler.step()
    assert again.scheduler.get_last_lr() == [pytest.approx(0.5 * (19 - num_steps) / 20)]


def test_a_schedule_that_reacts_to_losses_keeps_its_factor(tmp_path: Path) -> None:
    def plateau(rate: float) -> Live:
        state = live(torch.optim.SGD, rate=rate)
        for group in state.optimizer.param_groups:
            del group["initial_lr"]
            group["lr"] = rate
        return Live(
            state.model, state.optimizer, ReduceLROnPlateau(state.optimizer, patience=0), None, None, CPU
        )

    before = plateau(0.1)
    beginnings = before.beginnings()
    for loss in (1.0, 2.0, 3.0):
        before.scheduler.step(loss)
    with saving(tmp_path, 4) as new:
        save_state(before, new, beginnings=beginnings, progress={}, check=lambda name, tensor: None)
        folder = new.commit(SealFacts(4, 1, {}, None))
    after = plateau(0.3)
    restore(after, open_state(folder, CPU), beginnings=after.beginnings())
    assert after.optimizer.param_groups[0]["lr"] == pytest.approx(0.003)
    assert after.scheduler.best == 1.0


def test_another_optimizer_begins_anew_and_says_so(tmp_path: Path) -> None:
    again = live(torch.optim.SGD)
    note = restore(again, open_state(stepped(tmp_path), CPU), beginnings=again.beginnings())
    assert note == "the optimizer is now torch.SGD instead of adam: its averages start anew"
    assert not again.optimizer.state


def test_the_loss_scale_goes_on(tmp_path: Path) -> None:
    def scaled(**given: Any) -> Live:
        state = live(torch.optim.AdamW)
        scaler = torch.amp.GradScaler("cpu", **given)
        scaler.scale(torch.ones(1))
        return Live(state.model, state.optimizer, state.scheduler, scaler, None, CPU)

    folder = write(scaled(init_scale=8.0), tmp_path)
    again = scaled(growth_interval=7)
    restore(again, open_state(folder, CPU), beginnings=again.beginnings())
    assert again.scaler.get_scale() == 8.0 and again.scaler.get_growth_interval() == 7


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def test_random_states_go_on_and_new_processes_are_seeded(tmp_path: Path) -> None:
    saved = open_state(stepped(tmp_path), CPU)
    expected = drawn()

    def draw_as(rank: int, step: int = 4) -> tuple[float, float, float]:
        restore_random(saved, CPU, rank=rank, seed=1, step=step)
        return drawn()

    # Saved before the model above was drawn from again: the same state twice gives the same numbers.
    assert draw_as(0) == expected
    assert draw_as(1) == draw_as(1) != draw_as(2)
    assert draw_as(1, step=8) != draw_as(1)


def spoil(folder: Path, file: str, values: Any) -> None:
    """Replace a file's text, or some of its tensors."""
    if file.endswith(".pt"):
        torch.save(values, folder / file)
        return
    if not isinstance(values, dict):
        (folder / file).write_text(values)
        return
    tensors = load_file(folder / file) | values
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / file)


WEIGHTS, AVERAGES = "trained.safetensors", "optimizer-00001-of-00001.safetensors"
BIAS, AVERAGE = "projector.0.bias", "projector.0.bias:exp_avg"


@pytest.mark.parametrize(
    ("file", "values", "found"),
    [
        (WEIGHTS, {BIAS: torch.ones(3)}, BIAS),
        (WEIGHTS, {BIAS: None}, "does not fit"),
        (WEIGHTS, {"projector.9.bias": torch.ones(3)}, "projector.9.bias"),
        (WEIGHTS, {BIAS: torch.full((80,), torch.nan)}, "80 NaN"),
        (AVERAGES, {AVERAGE: torch.ones(3)}, "has shape [3]"),
        (AVERAGES, {"lm_head.weight:exp_avg": torch.ones(3)}, "doesn't train"),
        (AVERAGES, {AVERAGE: torch.full((80,), torch.inf)}, "80 infinite"),
        (AVERAGES, "x" * 40, AVERAGES),
        ("optimizer.pt", [], "must contain a mapping"),
        ("optimizer.pt", {}, "no usable `kind`"),
        ("optimizer.pt", {"kind": Path("x")}, "could run code"),
        ("progress.json", '{"schedule": {}, "scale": {}}', "progress.json"),
        ("random.json", '[{"python": 1}]', "random.json"),
        ("random.json", "[]", "random states"),
    ],
)
def test_contents_of_no_use_are_the_checkpoints_fault(
    file: str, values: Any, found: str, tmp_path: Path
) -> None:
    folder = stepped(tmp_path)
    spoil(folder, file, values)
    again = live(torch.optim.AdamW)
    with pytest.raises(RecipeError) as caught:
        restore(again, open_state(folder, CPU), beginnings=again.beginnings())
    (problem,) = caught.value.problems
    assert problem.code == UNUSABLE and found in str(problem.found)


def test_a_step_count_changes_its_kind_with_the_optimizer(tmp_path: Path) -> None:
    """DeepSpeed's Adam counts in whole numbers, torch's in tensors."""
    folder = stepped(tmp_path)
    values = torch.load(folder / "optimizer.pt", weights_only=True)
    for scalars in values["scalars"].values():
        scalars["step"] = 4
    torch.save(values, folder / "optimizer.pt")
    again = live(torch.optim.AdamW)
    restore(again, open_state(folder, CPU), beginnings=again.beginnings())
    step = next(iter(again.optimizer.state.values()))["step"]
    assert isinstance(step, torch.Tensor) and step == 4 and step.dtype == torch.float32


def test_states_that_no_file_can_contain_are_refused() -> None:
    state = live(torch.optim.SGD)
    for value in (object(), [torch.ones(1)], torch.ones(2, dtype=torch.complex64)):
        state.optimizer.state[next(state.model.parameters())] = {"projector": value}
        with pytest.raises(RecipeError, match="cannot be saved"):
            state.states().specs()
            state.states().scalars()

    class GaLoreAdamW(torch.optim.SGD): ...

    with pytest.raises(RecipeError, match="cannot be saved"):
        check_storable(live(GaLoreAdamW).states(), uses_deepspeed=False)
    check_storable(live(torch.optim.AdamW).states(), uses_deepspeed=False)


def test_tensors_are_written_as_safetensors_reads_them(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5).bfloat16(),
        "none": torch.zeros(0, 4),
        "large": torch.arange(9_000_000, dtype=torch.int32).reshape(3, -1).t(),
        "b": torch.tensor([True, False]),
    }
    specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    file = tmp_path / "x.safetensors"
    with TensorWriter(file, specs) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    assert writer.seal() == seal_of(file)
    for name, tensor in load_file(file).items():
        assert torch.equal(tensor, tensors[name]) and tensor.dtype == tensors[name].dtype
    parts = [list(part) for part in in_shards(specs, 36_000_000)]
    assert parts == [["a", "none"], ["large"], ["b"]]


def test_the_position_is_that_of_the_schedule_not_of_the_run(tmp_path: Path) -> None:
    """A step that fp16 skips does not move the schedule."""
    state = live(torch.optim.AdamW)
    for _ in range(3):
        state.optimizer.step()
        state.scheduler.step()
    again = live(torch.optim.AdamW)
    restore(again, open_state(write(state, tmp_path, step=7), CPU), beginnings=again.beginnings())
    assert isinstance(again.scheduler, LambdaLR) and again.scheduler.last_epoch == 3
