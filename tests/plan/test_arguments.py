from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from llava_recipes import versions
from llava_recipes.errors import Problem
from llava_recipes.plan.arguments import check_arguments, keyword_arguments, packages_of, plan_train
from llava_recipes.plan.batch import count_steps, derive_batch
from llava_recipes.plan.types import TrainPlan
from llava_recipes.recipe.names import OPTIMIZERS, REFUSED_FIELDS, TRAINING_ARGUMENTS
from llava_recipes.recipe.schema import Train

PATH = ("stages", 0, "train")


def train(**values: Any) -> Train:
    return Train.model_validate({"learning_rate": 1e-3, "num_train_epochs": 1.0, **values})


def planned(settings: Train, *, num_samples: int | None = None) -> TrainPlan:
    batch = derive_batch(settings, world_size=1)
    assert batch is not None
    return plan_train(settings, batch, count_steps(settings, batch, num_samples=num_samples, world_size=1))


def build(settings: Train, folder: Path) -> TrainingArguments:
    wanted: dict[str, Any] = keyword_arguments(planned(settings))
    return TrainingArguments(output_dir=str(folder), use_cpu=True, **versions.training_arguments(wanted))


def test_every_setting_arrives(tmp_path: Path) -> None:
    settings = train(
        num_train_epochs=1.5,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=5,
        weight_decay=0.1,
        adam_beta1=0.8,
        adam_beta2=0.95,
        adam_epsilon=1e-7,
        max_grad_norm=0.5,
        optim="sgd",
        warmup_ratio=0.03,
        lr_scheduler_type="linear",
        bf16=True,
        gradient_checkpointing=True,
        dataloader_num_workers=2,
        logging_steps=7,
        save_strategy="epoch",
        save_steps=9,
        save_total_limit=2,
        seed=7,
        extra={"dataloader_pin_memory": False, "ddp_timeout": 60},
    )
    built = build(settings, tmp_path)
    same = set(Train.model_fields) & TRAINING_ARGUMENTS.keys() - {
        "max_steps",
        "report_to",
        "tf32",
    }
    for name in same - {"warmup_steps", "save_strategy", "lr_scheduler_type", "eval_strategy", "optim"}:
        assert getattr(built, name) == getattr(settings, name), name
    for name in ("save_strategy", "lr_scheduler_type", "eval_strategy", "optim"):
        assert getattr(built, name).value == getattr(settings, name)
    (name,) = versions.training_arguments({"activation_checkpointing_kwargs": None})
    assert getattr(built, name) == {"use_reentrant": False}
    assert built.max_steps == -1
    assert built.report_to == []
    assert built.dataloader_pin_memory is False
    assert built.ddp_timeout == 60
    # The original's warm-up is ceil(ratio × steps).
    assert built.get_warmup_steps(2181) == 66


@pytest.mark.parametrize(("steps", "expected"), [(0, 0), (1, 1), (50, 50)])
def test_warmup_in_steps_stays_in_steps(steps: int, expected: int, tmp_path: Path) -> None:
    assert build(train(warmup_steps=steps), tmp_path).get_warmup_steps(2181) == expected


def test_max_steps_replace_epochs(tmp_path: Path) -> None:
    assert build(train(num_train_epochs=None, max_steps=5), tmp_path).max_steps == 5


@pytest.mark.parametrize(("normalization", "averages"), [("device_batch", False), ("token", True)])
def test_loss_normalization_chooses_the_average(normalization: str, averages: bool, tmp_path: Path) -> None:
    built = build(train(loss_normalization=normalization), tmp_path)
    assert built.average_tokens_across_devices is averages


def test_tf32_is_asked_for_only_when_it_is_on() -> None:
    assert "tf32" not in keyword_arguments(planned(train()))
    assert keyword_arguments(planned(train(tf32=True)))["tf32"] is True


@given(epochs=st.floats(0.1, 9), ratio=st.floats(0, 0.5), num_samples=st.integers(1, 10**6))
def test_counted_warmup_is_what_a_share_comes_to(epochs: float, ratio: float, num_samples: int) -> None:
    settings = train(num_train_epochs=epochs, warmup_ratio=ratio, per_device_train_batch_size=8)
    plan = planned(settings, num_samples=num_samples)
    assert plan.max_steps is not None
    theirs = TrainingArguments.get_warmup_steps
    counted, share = (SimpleNamespace(warmup_steps=steps) for steps in (plan.warmup_steps, ratio))
    assert theirs(counted, plan.max_steps) == theirs(share, plan.max_steps)


def test_nothing_is_said_twice() -> None:
    plan = planned(train(warmup_ratio=0.03, bf16=True), num_samples=100)
    assert not set(plan.training_arguments) & {*TrainPlan.model_fields, "bf16", "fp16"}
    assert "warmup_steps" in planned(train(warmup_ratio=0.03)).training_arguments


def problem_with(**values: Any) -> Problem:
    (problem,) = check_arguments(train(**values), path=PATH)
    return problem


@pytest.mark.parametrize("name", sorted(REFUSED_FIELDS))
def test_refused_fields_say_where_they_belong(name: str) -> None:
    problem = problem_with(extra={name: 1})
    assert problem.path == (*PATH, "extra", name)
    assert problem.on_key and problem.hint


@pytest.mark.parametrize("name", ["hub_token", "push_to_hub_token"])
def test_a_secret_is_refused_and_never_shown(name: str) -> None:
    problem = problem_with(extra={name: "hf_verysecret"})
    assert "verysecret" not in f"{problem.message} {problem.found} {problem.hint}"
    assert problem.hint and "no secrets" in problem.hint


def test_a_misspelled_field_is_corrected() -> None:
    problem = problem_with(extra={"dataloader_pin_memry": False})
    assert problem.message == "TrainingArguments has no field `dataloader_pin_memry`"
    assert problem.hint == "did you mean `dataloader_pin_memory`?"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dataloader_pin_memory", "no", "`dataloader_pin_memory` takes true or false"),
        ("ddp_timeout", True, "`ddp_timeout` takes a whole number"),
        ("neftune_noise_alpha", "5", "`neftune_noise_alpha` takes null or a number"),
    ],
)
def test_values_of_the_wrong_type_are_refused(name: str, value: object, message: str) -> None:
    assert problem_with(extra={name: value}).message == message


def test_values_of_the_right_type_are_taken() -> None:
    extra = {"neftune_noise_alpha": 5, "ddp_bucket_cap_mb": None, "optim_target_modules": ["projector"]}
    assert not list(check_arguments(train(extra=extra), path=PATH))


def test_an_unknown_optimizer_is_corrected() -> None:
    problem = problem_with(optim="adamw_torhc")
    assert problem.path == (*PATH, "optim")
    assert problem.hint == "did you mean `adamw_torch`?"


def test_every_optimizer_of_transformers_trains_or_says_why_not() -> None:
    """Those left were tried, with the packages that they need."""
    given = {"save_strategy": "no", "extra": {"optim_target_modules": "all-linear"}}
    taken = {name for name in OPTIMIZERS if not list(check_arguments(train(optim=name, **given), path=PATH))}
    alone = {name for name in taken if not packages_of(name)}
    assert alone == {"adafactor", "adagrad", "adamw_torch", "adamw_torch_fused", "rmsprop", "sgd"}
    refused = {"lomo", "adalomo", "adamw_anyprecision", "adamw_torch_4bit", "galore_adamw_layerwise"}
    assert refused | {"schedule_free_sgd", "adamw_torch_xla"} <= OPTIMIZERS - taken
    assert len(OPTIMIZERS - taken) == 14
