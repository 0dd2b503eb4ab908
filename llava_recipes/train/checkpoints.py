"""Checkpoints that can be trusted: sealed when complete, checked before they are used."""

from __future__ import annotations

import hashlib
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

SEAL = "checkpoint.json"
TRAINER_STATE = "trainer_state.json"
UNUSABLE = "checkpoint-unusable"
"""The code of a problem with a checkpoint itself: an older one may do."""

_ALWAYS = ("trained.safetensors", TRAINER_STATE, "scheduler.pt")
_OPTIMIZER, _DEEPSPEED_TAG = "optimizer.pt", "latest"
_LOADED = frozenset([".bin", ".json", ".pt", ".pth", ".safetensors"])
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A folder `checkpoint-STEP` of a run."""

    folder: Path
    step: int


def list_checkpoints(output_dir: Path) -> list[Checkpoint]:
    """Every checkpoint folder of a run, newest first, sound or not."""
    found = [
        Checkpoint(folder, int(match.group(1)))
        for folder in output_dir.glob("checkpoint-*")
        if folder.is_dir() and (match := _NAME.fullmatch(folder.name))
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def make_room(folder: Path) -> None:
    """Remove what stands where a checkpoint is saved: one that was passed over, with files of its own."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)


def seal(folder: Path, *, step: int, world_size: int) -> None:
    """Write down size and SHA-256 of every file, as the last act of saving."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SEAL
    }
    write_text(folder / SEAL, json.dumps({"step": step, "world_size": world_size, "files": files}, indent=1))


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint in one sentence, or None when every byte is as it was saved."""
    try:
        recorded = _sealed(folder)
        return _missing(folder, recorded) or next(_changed(folder, recorded), None)
    except OSError as error:
        return f"it cannot be read: {error}"
    except _BadSeal as error:
        return str(error)


class _BadSeal(Exception):
    """Why a seal says nothing of its checkpoint."""


def _sealed(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file that was saved, by its path inside the folder."""
    file = folder / SEAL
    if not file.exists():
        raise _BadSeal(f"it has no {SEAL}: saving was cut short")
    if not file.is_file():
        raise _BadSeal(f"its {SEAL} is not a file")
    try:
        with open_ordinary(file) as opened:
            sealed = json.loads(opened.read())
        files = {name: (facts["bytes"], facts["sha256"]) for name, facts in sealed["files"].items()}
        step = sealed["step"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _BadSeal(f"its {SEAL} cannot be read") from None
    if step != int(folder.name.rpartition("-")[2]):
        raise _BadSeal(f"its {SEAL} is that of another step")
    return files


def _missing(folder: Path, recorded: Mapping[str, tuple[int, str]]) -> str | None:
    """What a checkpoint of ours has and this one's seal doesn't name, or the other way round."""
    tag = folder / _DEEPSPEED_TAG
    optimizer = _DEEPSPEED_TAG if tag.exists() or _DEEPSPEED_TAG in recorded else _OPTIMIZER
    for name in (*_ALWAYS, optimizer):
        if name not in recorded:
            return f"its {SEAL} does not name {name}"
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in _LOADED and name not in recorded and name != SEAL:
            return f"{name} was not saved with it"
    if optimizer == _OPTIMIZER or not tag.is_file():
        return None
    # DeepSpeed takes its files from the folder that this one names, wherever that is.
    with open_ordinary(tag) as opened:
        named = opened.read().decode("utf-8", errors="replace").strip()
    if not any(PurePosixPath(name).parts[0] == named for name in recorded if "/" in name):
        return f"{_DEEPSPEED_TAG} names no folder that was saved with it"
    return None


def _changed(folder: Path, recorded: Mapping[str, tuple[int, str]]) -> Iterator[str]:
    for name, (size, digest) in recorded.items():
        path = folder / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            yield f"its {SEAL} names {name}, outside of it"
        elif not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != size:
            yield f"{name} has {path.stat().st_size:,} bytes, {size} were saved"
        elif _sha256(path) != digest:
            yield f"{name} has other content than was saved"


def remove_old(output_dir: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; the newest sound one always stays."""
    checkpoints = [found for found in list_checkpoints(output_dir) if (found.folder / SEAL).is_file()]
    for checkpoint in checkpoints[keep:]:
        shutil.rmtree(checkpoint.folder)


def _sha256(path: Path) -> str:
    with open_ordinary(path) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()  # type: ignore[arg-type]  # a buffered reader


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
    return RecipeError.of(
        f"{checkpoint.name} cannot be loaded",
        code=UNUSABLE,
        path=("stages", 0, "output_dir"),
        found=why,
        hint=f"remove {checkpoint}; `--resume` then continues from the one before",
    )


def _named(names: tuple[str, ...]) -> list[SafeGlobal]:
    found = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        found.append((getattr(importlib.import_module(module), attribute), name))
    return found
