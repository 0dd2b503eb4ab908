"""What a checkpoint's state files hold: read as plain values alone, and refused before any of it is used."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from llava_recipes.model.pickles import BadPickle, SafeGlobal, load_plain, only_plain
from llava_recipes.model.values import not_finite
from llava_recipes.recipe.errors import Problem, RecipeError
from llava_recipes.train.checkpoints import TRAINER_STATE, UNUSABLE

_PICKLED = frozenset([".pt", ".pth", ".bin"])
# The random state of numpy; transformers' own list.
_NUMPY = (
    *("numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"),
    "numpy.dtypes.UInt32DType",
)
# Records of plain numbers, whose making runs nothing else.
_DEEPSPEED = (
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
_MOMENTS = frozenset(["exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum"])
_OF_OTHER_PROCESSES = re.compile(r"gloo|nccl|c10d|connection|peer|timed? ?out", re.IGNORECASE)


class _StandIn:
    """Takes the place of a class of DeepSpeed where a file is only looked at: its import costs seconds."""

    def __init__(self, *given: object) -> None: ...


def find_unreadable(folder: Path) -> str | None:
    """What is wrong with the state files of a checkpoint in one sentence, or None. Runs nothing of them.

    Tensors are mapped, not read: that they are as they were saved is the seal's to say.
    """
    safe = [*_named(_NUMPY), *((_StandIn, name) for name in _DEEPSPEED)]
    for file in sorted(folder.rglob("*")):
        if file.suffix in _PICKLED and file.is_file():
            try:
                load_plain(file, safe)
            except BadPickle as error:
                return f"{file.relative_to(folder).as_posix()} {error}"
    trouble = _state_trouble(folder)
    return None if trouble is None else f"{TRAINER_STATE} {trouble}"


def _state_trouble(folder: Path) -> str | None:
    step = int(folder.name.rpartition("-")[2])
    try:
        state = json.loads((folder / TRAINER_STATE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"cannot be read: {error}"
    if not isinstance(state, dict):
        return "is not a mapping"
    if state.get("global_step") != step:
        return f"has global_step {json.dumps(state.get('global_step'))[:40]}, and {step} is the folder's"
    for key, kinds in (("epoch", (int, float)), ("total_flos", (int, float)), ("log_history", (list,))):
        value = state.get(key)
        if not isinstance(value, kinds) or (isinstance(value, float) and not math.isfinite(value)):
            return f"has no usable `{key}`"
    return None


@contextmanager
def loading(checkpoint: Path, files: str, *, by_deepspeed: bool = False) -> Iterator[None]:
    """Load files of a checkpoint in the block, tensors and plain values alone.

    What fails there is the checkpoint's fault, and becomes a RecipeError of code UNUSABLE.
    """
    try:
        with only_plain(_named((*_NUMPY, *(_DEEPSPEED if by_deepspeed else ())))):
            yield
    except (torch.OutOfMemoryError, dist.DistError, MemoryError):
        raise
    except RecipeError as error:
        problem = error.problems[0]
        why = problem.message if problem.found is None else f"{problem.message}: {problem.found}"
        raise _unusable(checkpoint, f"{files}: {why}") from error
    # transformers and DeepSpeed check little of what they load: it fails in whatever way its values ask for.
    except Exception as error:
        if isinstance(error, RuntimeError) and _OF_OTHER_PROCESSES.search(str(error)):
            # A process that waits for another one fails when that does, whose problem it is.
            raise
        text = (str(error).strip() or "nothing said").splitlines()[0]
        raise _unusable(checkpoint, f"{files} cannot be loaded: {type(error).__name__}: {text}") from error


def check_state(checkpoint: Path) -> None:
    """Raise RecipeError when transformers cannot take a checkpoint's own state, before it is asked to."""
    from transformers import TrainerState

    with loading(checkpoint, TRAINER_STATE):
        TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError when a loaded optimizer's averages are not those of its weights, or not finite.

    torch takes any of them, and fails at the first step. Other optimizers keep averages of another shape.
    """
    # accelerate has wrapped it.
    inner = getattr(optimizer, "optimizer", optimizer)
    if not type(inner).__module__.startswith("torch.optim"):
        return
    for group in optimizer.param_groups:
        for weight in group["params"]:
            state = optimizer.state.get(weight, {})
            for name in _MOMENTS & state.keys():
                if tuple(state[name].shape) != tuple(weight.shape):
                    shapes = f"{list(state[name].shape)}, that of its weight {list(weight.shape)}"
                    raise ValueError(f"{name} has shape {shapes}")
                if (trouble := not_finite(state[name])) is not None:
                    raise ValueError(f"{name} has {trouble}")


def _unusable(checkpoint: Path, why: str) -> RecipeError:
    return RecipeError(
        Problem(
            f"{checkpoint.name} cannot be loaded",
            code=UNUSABLE,
            path=("stages", 0, "output_dir"),
            found=why,
            hint=f"remove {checkpoint}; `--resume` then continues from the one before",
        )
    )


def _named(names: tuple[str, ...]) -> list[SafeGlobal]:
    found = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        found.append((getattr(importlib.import_module(module), attribute), name))
    return found
