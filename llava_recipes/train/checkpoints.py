"""The checkpoints of a run: seal them when they are whole, check them before they are loaded."""

from __future__ import annotations

import importlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
import torch.distributed as dist

from llava_recipes.errors import RecipeError
from llava_recipes.files import open_ordinary, write_text
from llava_recipes.model.checkpoint import BadPickle, SafeGlobal, load_plain, not_finite, only_plain
from llava_recipes.seals import FileSeal, find_changes, read_seals, write_seals

SEAL = "checkpoint.json"
TRAINER_STATE = "trainer_state.json"
UNUSABLE = "checkpoint-unusable"
"""The code of a problem with one checkpoint: an older one may be usable."""

_ALWAYS = ("trained.safetensors", TRAINER_STATE, "scheduler.pt")
_OPTIMIZER, _DEEPSPEED_TAG = "optimizer.pt", "latest"
_LOADED = frozenset([".bin", ".json", ".pt", ".pth", ".safetensors"])
_NAME = re.compile(r"checkpoint-(\d+)")
_PICKLED = frozenset([".pt", ".pth", ".bin"])
# The classes of numpy's random state, as transformers lists them.
_NUMPY = (
    *("numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"),
    "numpy.dtypes.UInt32DType",
)
# Records of plain numbers; unpickling them runs no other code.
_DEEPSPEED = (
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
_MOMENTS = frozenset(["exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum"])
_OF_OTHER_PROCESSES = re.compile(r"gloo|nccl|c10d|connection|peer|timed? ?out", re.IGNORECASE)


@dataclass(frozen=True)
class Checkpoint:
    """A folder `checkpoint-STEP` of a run."""

    folder: Path
    step: int


def list_checkpoints(output_dir: Path) -> list[Checkpoint]:
    """Every checkpoint folder of a run, newest first, usable or not."""
    found = [
        Checkpoint(folder, int(match.group(1)))
        for folder in output_dir.glob("checkpoint-*")
        if folder.is_dir() and (match := _NAME.fullmatch(folder.name))
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def make_room(folder: Path) -> None:
    """Remove what exists where a checkpoint is saved, such as an older one that could not be used."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)


def seal(folder: Path, *, step: int, world_size: int) -> None:
    """Record size and SHA-256 of every file, as the last step of saving."""
    names = [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SEAL
    ]
    files = write_seals(folder, names)
    write_text(folder / SEAL, json.dumps({"step": step, "world_size": world_size, "files": files}, indent=1))


def remove_old(output_dir: Path, *, keep: int) -> None:
    """Remove all sealed checkpoints but the newest `keep`."""
    checkpoints = [found for found in list_checkpoints(output_dir) if (found.folder / SEAL).is_file()]
    for checkpoint in checkpoints[keep:]:
        shutil.rmtree(checkpoint.folder)


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words, or None when every byte is as it was saved."""
    try:
        recorded = _read_seal(folder)
        return _missing(folder, recorded) or next(find_changes(folder, recorded), None)
    except OSError as error:
        return f"it cannot be read: {error}"
    except _BadSeal as error:
        return str(error)


class _BadSeal(Exception):
    """What is wrong with a seal."""


def _read_seal(folder: Path) -> dict[str, FileSeal]:
    """Size and SHA-256 of every file that was saved, by its path inside the folder."""
    file = folder / SEAL
    if not file.exists():
        raise _BadSeal(f"it has no {SEAL}: saving was cut short")
    if not file.is_file():
        raise _BadSeal(f"its {SEAL} is not a file")
    try:
        with open_ordinary(file) as opened:
            sealed = json.loads(opened.read())
        files, step = read_seals(sealed["files"]), sealed["step"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _BadSeal(f"its {SEAL} cannot be read: {error}") from None
    if step != int(folder.name.rpartition("-")[2]):
        raise _BadSeal(f"its {SEAL} is from another step")
    return files


def _missing(folder: Path, recorded: Mapping[str, FileSeal]) -> str | None:
    """A file that a checkpoint needs and the seal doesn't name, or one that was added; or None."""
    tag = folder / _DEEPSPEED_TAG
    optimizer = _DEEPSPEED_TAG if tag.exists() or _DEEPSPEED_TAG in recorded else _OPTIMIZER
    for name in (*_ALWAYS, optimizer):
        if name not in recorded:
            return f"{name} is missing in its {SEAL}"
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in _LOADED and name not in recorded and name != SEAL:
            return f"{name} was not saved with it"
    if optimizer == _OPTIMIZER or not tag.is_file():
        return None
    # DeepSpeed reads its files from the folder that this file names, wherever that is.
    with open_ordinary(tag) as opened:
        named = opened.read().decode("utf-8", errors="replace").strip()
    if not any(PurePosixPath(name).parts[0] == named for name in recorded if "/" in name):
        return f"{_DEEPSPEED_TAG} names a folder that was not saved with it"
    return None


def find_unreadable(folder: Path) -> str | None:
    """What is wrong with the state files of a checkpoint, in a few words, or None; no code in them is run.

    Tensors are mapped, not read: `find_damage` compares their bytes.
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


class _StandIn:
    """Replaces a class of DeepSpeed, whose import takes seconds, while a file is only checked."""

    def __init__(self, *given: object) -> None: ...


def _state_trouble(folder: Path) -> str | None:
    step = int(folder.name.rpartition("-")[2])
    try:
        state = json.loads((folder / TRAINER_STATE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"cannot be read: {error}"
    if not isinstance(state, dict):
        return "is not a mapping"
    if state.get("global_step") != step:
        return f"has global_step {json.dumps(state.get('global_step'))[:40]} instead of {step}"
    for key, kinds in (("epoch", (int, float)), ("total_flos", (int, float)), ("log_history", (list,))):
        value = state.get(key)
        if not isinstance(value, kinds) or (isinstance(value, float) and not math.isfinite(value)):
            return f"has no usable `{key}`"
    return None


@contextmanager
def loading(checkpoint: Path, files: str, *, by_deepspeed: bool = False) -> Iterator[None]:
    """Allow the block to load nothing but tensors and plain values from a checkpoint's files.

    A failure is the checkpoint's fault, and becomes a RecipeError with code UNUSABLE.
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
    # transformers and DeepSpeed check little of what they load: bad values can raise anything.
    except Exception as error:
        if isinstance(error, RuntimeError) and _OF_OTHER_PROCESSES.search(str(error)):
            # A process that waits for another one fails with it; the other one reports the problem.
            raise
        text = (str(error).strip() or "no message").splitlines()[0]
        raise _unusable(checkpoint, f"{files} cannot be loaded: {type(error).__name__}: {text}") from error


def check_state(checkpoint: Path) -> None:
    """Raise RecipeError when transformers cannot read a checkpoint's trainer_state.json."""
    from transformers import TrainerState

    with loading(checkpoint, TRAINER_STATE):
        TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError when a loaded optimizer's averages do not fit its weights or are not finite.

    torch loads any averages, and fails at the first step. Optimizers outside torch may keep them in other
    shapes, and are not checked.
    """
    # accelerate wraps the optimizer.
    inner = getattr(optimizer, "optimizer", optimizer)
    if not type(inner).__module__.startswith("torch.optim"):
        return
    for group in optimizer.param_groups:
        for weight in group["params"]:
            state = optimizer.state.get(weight, {})
            for name in _MOMENTS & state.keys():
                if tuple(state[name].shape) != tuple(weight.shape):
                    wanted = f"the shape {list(weight.shape)} of its weight"
                    raise ValueError(f"{name} has shape {list(state[name].shape)} instead of {wanted}")
                if (trouble := not_finite(state[name])) is not None:
                    raise ValueError(f"{name} has {trouble}")


def _unusable(checkpoint: Path, why: str) -> RecipeError:
    return RecipeError.of(
        f"{checkpoint.name} cannot be loaded",
        code=UNUSABLE,
        path=("stages", 0, "output_dir"),
        found=why,
        hint=f"remove {checkpoint}; `--resume` then continues from the checkpoint before it",
    )


def _named(names: tuple[str, ...]) -> list[SafeGlobal]:
    found = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        found.append((getattr(importlib.import_module(module), attribute), name))
    return found
