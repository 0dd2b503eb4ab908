from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, SequentialSampler

from llava_recipes.errors import RecipeError
from llava_recipes.plan.batch import count_steps, derive_batch, explain_batch, fitting_on_device
from llava_recipes.recipe.load import load_recipe
from llava_recipes.recipe.schema import Train
from llava_recipes.runner.facts import plan_recipe

COUNTS = st.integers(1, 9)
ROOT = Path(__file__).parent.parent.parent
PATH = ("stages", 0, "train")


def train(**values: object) -> Train:
    return Train.model_validate({"learning_rate": 1e-3, "num_train_epochs": 1.0, **values})


@given(
    num_samples=st.integers(1, 400),
    per_device=COUNTS,
    accumulation=COUNTS,
    world_size=COUNTS,
    epochs=st.sampled_from([0.3, 0.5, 1.0, 1.5, 2.0, 3.7]),
    drops_last=st.booleans(),
)
def test_steps_are_those_of_the_trainer(
    num_samples: int, per_device: int, accumulation: int, world_size: int, epochs: float, drops_last: bool
) -> None:
    settings = train(
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        extra={"dataloader_drop_last": drops_last},
    )
    batch = derive_batch(settings, world_size=world_size)
    assert batch is not None
    assert batch.in_all == per_device * accumulation * world_size
    sampler = BatchSampler(SequentialSampler(range(num_samples)), per_device, drops_last)
    # Trainer.set_initial_training_values on the length of the loader that accelerate prepares.
    num_passes = len(BatchSamplerShard(sampler, num_processes=world_size))
    per_epoch = num_passes // accumulation + int(num_passes % accumulation > 0)
    steps = count_steps(settings, batch, num_samples=num_samples, world_size=world_size)
    assert steps.per_epoch == per_epoch
    assert steps.in_all == math.ceil(epochs * per_epoch)


def test_the_original_schedule_of_stage_1() -> None:
    settings = train(per_device_train_batch_size=32, warmup_ratio=0.03)
    batch = derive_batch(settings, world_size=8)
    assert batch is not None and batch.in_all == 256
    steps = count_steps(settings, batch, num_samples=558_128, world_size=8)
    assert (steps.per_epoch, steps.in_all, steps.warmup) == (2181, 2181, 66)


def test_max_steps_need_no_samples() -> None:
    settings = train(max_steps=10, num_train_epochs=None, warmup_ratio=0.25)
    batch = derive_batch(settings, world_size=1)
    assert batch is not None
    steps = count_steps(settings, batch, num_samples=None, world_size=1)
    assert (steps.per_epoch, steps.in_all, steps.warmup) == (None, 10, 3)


def test_uncounted_samples_leave_steps_open() -> None:
    settings = train(warmup_ratio=0.03)
    batch = derive_batch(settings, world_size=1)
    assert batch is not None
    steps = count_steps(settings, batch, num_samples=None, world_size=1)
    assert (steps.per_epoch, steps.in_all, steps.warmup) == (None, None, None)


@given(global_batch=st.integers(1, 300), per_device=st.integers(1, 40), world_size=st.integers(1, 40))
def test_proposed_batches_can_be_reached(global_batch: int, per_device: int, world_size: int) -> None:
    settings = train(per_device_train_batch_size=per_device, global_batch_size=global_batch)
    batch = derive_batch(settings, world_size=world_size)
    if batch is not None:
        assert batch.in_all == global_batch == per_device * world_size * batch.accumulation
        return
    hint = explain_batch(settings, world_size=world_size, path=PATH, stage="align").hint
    assert hint is not None
    together = re.findall(r"`global_batch_size: (\d+)`(?: with `per_device_train_batch_size: (\d+)`)?", hint)
    for in_all, size in together:
        changes = {"global_batch_size": int(in_all), "per_device_train_batch_size": int(size or per_device)}
        assert derive_batch(settings.model_copy(update=changes), world_size=world_size)
        # As near to the batch that was wanted as two batches of a device, and never more on one device.
        assert abs(int(in_all) - global_batch) <= world_size * per_device
        assert int(size or 1) <= per_device
    for value in re.findall(r"write `per_device_train_batch_size: (\d+)`", hint):
        assert int(value) <= per_device
        changed = settings.model_copy(update={"per_device_train_batch_size": int(value)})
        assert derive_batch(changed, world_size=world_size)
    for value in re.findall(r"run on (\d+) process", hint):
        assert derive_batch(settings, world_size=int(value))


@pytest.mark.parametrize(
    ("per_device", "world_size", "hint"),
    [
        (
            32,
            7,
            "run on 4 processes, or write `global_batch_size: 252` with `per_device_train_batch_size: 18` "
            "(`--set stages.align.train.global_batch_size=252 "
            "--set stages.align.train.per_device_train_batch_size=18`)",
        ),
        (
            24,
            8,
            "write `per_device_train_batch_size: 16` "
            "(`--set stages.align.train.per_device_train_batch_size=16`)",
        ),
        (
            7,
            3,
            "write `global_batch_size: 255` with `per_device_train_batch_size: 5` "
            "(`--set stages.align.train.global_batch_size=255 "
            "--set stages.align.train.per_device_train_batch_size=5`)",
        ),
        (
            32,
            64,
            "write `per_device_train_batch_size: 4` "
            "(`--set stages.align.train.per_device_train_batch_size=4`)",
        ),
    ],
)
def test_a_global_batch_that_does_not_divide(per_device: int, world_size: int, hint: str) -> None:
    settings = train(per_device_train_batch_size=per_device, global_batch_size=256)
    assert derive_batch(settings, world_size=world_size) is None
    problem = explain_batch(settings, world_size=world_size, path=PATH, stage="align")
    assert problem.path == ("stages", 0, "train", "global_batch_size")
    assert problem.hint == hint


@pytest.mark.parametrize(("name", "segment"), [("align", "align"), ("v1.5", "0"), ("2", "0")])
def test_what_is_proposed_for_the_command_line_can_be_set(name: str, segment: str) -> None:
    settings = train(per_device_train_batch_size=32, global_batch_size=256)
    hint = explain_batch(settings, world_size=64, path=PATH, stage=name).hint
    assert hint is not None and f"`--set stages.{segment}.train.per_device_train_batch_size=4`" in hint


@pytest.mark.parametrize("world_size", [3, 7, 16, 32])
@pytest.mark.parametrize("recipe", ["pretrain_v15_7b", "finetune_v15_7b", "llava_v15_13b"])
def test_words_for_the_command_line_are_right_when_obeyed(recipe: str, world_size: int) -> None:
    file, words = str(ROOT / "recipes" / f"{recipe}.yaml"), list[str]()
    for _ in range(4):
        try:
            plan_recipe(load_recipe(file, words), world_size=world_size)
            break
        except RecipeError as error:
            found = re.findall(r"\(`--set ([^`]*)`\)", str(error.problems[0].hint))
            words += found[-1].split(" --set ")
    else:
        pytest.fail(f"still refused with {words}")
    assert words


@given(share=st.integers(1, 400), per_device=st.integers(1, 40))
def test_what_fits_on_a_device_is_the_largest_that_divides(share: int, per_device: int) -> None:
    divide = [size for size in range(1, per_device + 1) if share % size == 0]
    assert fitting_on_device(share, per_device) == divide[-1]
