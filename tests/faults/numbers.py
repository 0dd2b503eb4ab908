"""Make a loss, a gradient or a weight NaN or infinite somewhere in a run, and see that no update follows.

    python -m tests.faults.numbers NUM [SEED [MODE]]

Each trial draws the mode, step, accumulation pass, process, kind and value. The run must end with exit code 1
and the samples of the batch named, without an update of that step or a later one, and leave no results.
The same module, imported by the processes of the run, does the poisoning.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava_recipes.deepspeed_presets import PRESETS
from tests.faults.trials import Tried, count_faults, run_by_hand, short_values
from tests.processes import run_process
from tests.tiny import write_recipe
from tests.warm import client


def _zero(stage: int) -> dict[str, Any]:
    return {**PRESETS["zero2"].config, "zero_optimization": {"stage": stage}}


POISON, GROUND = "FAULTS_POISON", "FAULTS_GROUND"
MODES: dict[str, tuple[int, str | dict[str, Any]]] = {
    "plain": (1, "none"),
    "ddp": (2, "none"),
    "zero0": (2, _zero(0)),
    "zero1": (2, _zero(1)),
    "zero2": (2, "zero2"),
    "zero3": (2, "zero3"),
}
"""Processes and the DeepSpeed preset or config."""
KINDS = ("loss", "value", "gradient", "weight", "after")
"""`value` is a loss that is not finite, with gradients that are; `after` a weight spoilt by an update."""
STEPS, PASSES = 3, 2
_RESULTS = ("DONE", "mm_projector.safetensors", "mm_projector.bin", "config.json", "trainer_state.json")


@dataclass(frozen=True)
class Poison:
    """One number of a run that is not finite."""

    mode: str
    kind: str
    value: float
    step: int
    number: int
    """Of the pass in the step, from 1."""
    rank: int
    clips: bool
    precision: str


def draw(rng: random.Random, modes: Sequence[str] = tuple(MODES)) -> Poison:
    mode, kind = rng.choice(modes), rng.choice(KINDS)
    return Poison(
        mode=mode,
        kind=kind,
        value=rng.choice([float("nan"), float("inf"), float("-inf")]),
        step=rng.randint(1, STEPS),
        number=rng.randint(1, PASSES),
        # What only another process of DDP has in its weights is never saved.
        rank=0 if kind == "after" else rng.randrange(MODES[mode][0]),
        clips=rng.random() < 0.7,
        # DeepSpeed keeps 16-bit weights without ZeRO in a way that is refused before the first step.
        precision="fp32" if mode == "zero0" else rng.choice(["fp32", "bf16"]),
    )


def attempt(poison: Poison, ground: Path) -> str:
    """Run a recipe with a poison in it; what was wrong, or nothing."""
    processes, deepspeed = MODES[poison.mode]
    shutil.rmtree(ground, ignore_errors=True)
    ground.mkdir(parents=True)
    run = ground / "run"
    values = short_values(
        run,
        max_steps=STEPS,
        deepspeed=deepspeed,
        gradient_accumulation_steps=PASSES,
        logging_steps=100,
        max_grad_norm=1.0 if poison.clips else 0.0,
        bf16=poison.precision == "bf16",
    )
    recipe = write_recipe(values, ground / "recipe.yaml")
    done = run_process(
        [client.python(), "-m", "llava_recipes", "run", recipe, "--processes", str(processes)],
        cwd=ground,
        env={
            **client.importing("tests.faults.numbers"),
            POISON: json.dumps(asdict(poison)),
            GROUND: str(ground),
        },
    )
    return _fault(poison, ground, done.returncode, done.stdout + done.stderr)


def _fault(poison: Poison, ground: Path, code: int, printed: str) -> str:
    if code != 1:
        return f"exit code {code}: {printed[-300:]}"
    files = sorted(ground.glob("updates-*"))
    updates = [int(line) for file in files for line in file.read_text().split()]
    met_in = poison.step + (poison.kind == "after")
    if any(step >= met_in for step in updates):
        return f"updated in step {max(updates)}"
    if poison.step > 1 and poison.step - 1 not in updates:
        return f"the updates before it are {sorted(set(updates))}"
    if left := [name for name in _RESULTS if (ground / "run" / name).exists()]:
        return f"left {', '.join(left)}"
    if f"step {min(met_in, STEPS)};" not in printed:
        return f"the step is not named: {printed[-300:]}"
    if poison.kind == "after":
        return ""
    poisoned = json.loads((ground / "poisoned").read_text())
    if missing := [index for index in poisoned if f"sample {index} (" not in printed]:
        return f"does not name the samples {missing}: {printed[-300:]}"
    return ""


def poison_this_process() -> None:
    """Let the Trainer of this process meet the number, and note every update that it makes."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from llava_recipes.train.trainer import StageTrainer

    poison = Poison(**json.loads(os.environ[POISON]))
    ground, rank = Path(os.environ[GROUND]), int(os.environ.get("RANK", "0"))
    compute, met = StageTrainer.compute_loss, [0, 0]

    def compute_loss(trainer: Any, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
        step = trainer.state.global_step + 1
        met[:] = [step, met[1] + 1 if met[0] == step else 1]
        here = met == [poison.step, poison.number] and rank == poison.rank
        if here:
            (ground / "poisoned").write_text(json.dumps(trainer._samples.tolist()))
            _spoil(poison, next(iter(trainer._trained.values())))
        forward = model.forward
        if here and poison.kind in ("loss", "value"):
            model.forward = lambda *args, **named: _with_bad_loss(forward(*args, **named), poison)
        try:
            return compute(trainer, model, inputs, **kwargs)
        finally:
            model.forward = forward

    def note_update(optimizer: Any, *_: object) -> None:
        with (ground / f"updates-{rank}").open("a") as file:
            file.write(f"{met[0]}\n")
        if poison.kind == "after" and met[0] == poison.step and rank == poison.rank:
            parameters = [
                each for group in optimizer.param_groups for each in group["params"] if each.numel()
            ]
            parameters[0].data.view(-1)[0] = poison.value

    setattr(StageTrainer, "compute_loss", compute_loss)  # noqa: B010  # mypy knows it as a method
    register_optimizer_step_post_hook(note_update)


def _spoil(poison: Poison, parameter: Any) -> None:
    if poison.kind == "weight":
        part = getattr(parameter, "ds_tensor", parameter).data
        part.view(-1)[part.numel() // 2] = poison.value
    elif poison.kind == "gradient":

        def spoil(gradient: Any) -> Any:
            handle.remove()
            spoilt = gradient.clone()
            spoilt.view(-1)[gradient.numel() // 2] = poison.value
            return spoilt

        handle = parameter.register_hook(spoil)


def _with_bad_loss(output: Any, poison: Poison) -> Any:
    output["loss"] = output.loss * poison.value if poison.kind == "loss" else output.loss + poison.value
    return output


def main(num_trials: str, seed: str = "0", *modes: str) -> int:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:

        def once() -> Tried:
            poison = draw(rng, modes or tuple(MODES))
            return Tried(poison, [poison.mode, poison.kind], attempt(poison, Path(folder) / "ground"))

        return count_faults(int(num_trials), "numbers", once)


if POISON in os.environ:
    poison_this_process()

if __name__ == "__main__":
    run_by_hand(main)
