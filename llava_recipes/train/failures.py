"""What ends a training run that is the user's to mend."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from llava_recipes.model.values import not_finite
from llava_recipes.recipe.errors import KeyPath, Problem, RecipeError


def nonfinite_loss(*, step: int, value: float, stage: KeyPath, what: str = "the loss") -> RecipeError:
    """The loss became NaN or infinite: nothing learned after it is worth keeping."""
    return RecipeError(
        Problem(
            f"{what} is {value} at step {step:,}; training stopped and nothing was saved after it",
            code="loss-or-gradient-not-finite",
            path=(*stage, "train", "learning_rate"),
            hint="lower the learning rate, lengthen the warm-up, or train in bf16 instead of fp16; "
            "`--resume` continues from the last checkpoint",
        )
    )


def nonfinite_weights(*, step: int, name: str, stage: KeyPath) -> RecipeError:
    """A trained weight became NaN or infinite before it could be saved."""
    return RecipeError(
        Problem(
            f"{name} holds NaN or infinite values at step {step:,}; they were not saved",
            code="weights-not-finite",
            path=(*stage, "train", "learning_rate"),
            hint="lower the learning rate or lengthen the warm-up; "
            "`--resume` continues from the last checkpoint",
        )
    )


def check_finite(state: Mapping[str, Tensor], *, step: int, stage: KeyPath) -> None:
    """Raise RecipeError when a trained weight is NaN or infinite: nobody can go on from it."""
    for name, tensor in state.items():
        if not_finite(tensor) is not None:
            raise nonfinite_weights(step=step, name=name, stage=stage)


def out_of_memory(*, detail: str, stage: KeyPath) -> RecipeError:
    """The device ran out of memory."""
    return RecipeError(
        Problem(
            "the device ran out of memory",
            code="out-of-memory",
            path=(*stage, "train", "per_device_train_batch_size"),
            found=detail,
            hint="halve per_device_train_batch_size (and double gradient_accumulation_steps, unless "
            "global_batch_size is given), turn on gradient_checkpointing, or use deepspeed: zero3",
        )
    )
