"""The checkpoints of a run as folders: written aside and committed as a whole, checked, rotated, cleaned up.

A checkpoint does not depend on the number of processes or on DeepSpeed; train/saved_state.py says what is in
its files.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from llava_recipes.errors import RecipeError
from llava_recipes.files import name_of_temporary, naming, open_ordinary, sync_folder, write_text
from llava_recipes.screen import say
from llava_recipes.seals import (
    FileSeal,
    NotAsSealed,
    find_changes,
    read_sealed,
    read_seals,
    seal_of,
    sealed_text,
)
from llava_recipes.train.stopping import is_of_peers

SEAL, LATEST = "checkpoint.json", "latest"
TRAINED, OPTIMIZER, PROGRESS = "trained.safetensors", "optimizer.pt", "progress.json"
RANDOM, TRAINER_STATE = "random.json", "trainer_state.json"
UNUSABLE = "checkpoint-unusable"
"""The code of a problem with one checkpoint: an older one may be usable."""
NOTHING_LEARNED = "nothing-was-learned"
"""The code of a problem with all checkpoints of a run: another recipe starts at step 0."""

_FORM = 2
"""The first form, in pickles of torch and DeepSpeed, had no number."""
_ALWAYS = (TRAINED, OPTIMIZER, PROGRESS, RANDOM, TRAINER_STATE)
_LOADED = frozenset([".json", ".pt", ".safetensors"])
_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]*)")
_IN_CHECKPOINTS = re.compile(
    r"(trained|optimizer-\d+-of-\d+)\.safetensors|(optimizer|progress|random|trainer_state)\.json"
    r"|(optimizer|scheduler|scaler)\.pt|rng_state(_\d+)?\.pth|global_step\d+|latest|zero_to_fp32\.py"
)
"""What a checkpoint of this or an earlier version consists of, besides its seal."""
_SAVING, _REMOVING, _ASIDE = ".saving-", ".removing-", "set-aside-"
_LOGS = ("metrics.jsonl", "samples.jsonl")
"""A run that goes on after a loss of power must find in them what was before its checkpoint."""
_WRITTEN = frozenset(
    [
        *("plan.json", "recipe.resolved.yaml", "environment.json", "inputs.json", "history.jsonl", "DONE"),
        *(
            "metrics.jsonl",
            "samples.jsonl",
            "config.json",
            "adapter_config.json",
            "adapter_model.safetensors",
        ),
        *("mm_projector.bin", "mm_projector.safetensors", "non_lora_trainables.bin", LATEST),
        *(TRAINED, TRAINER_STATE),
    ]
)
"""Files of a run folder that are replaced as a whole, and so may leave a temporary file."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder `checkpoint-STEP` of a run."""

    folder: Path
    step: int


@dataclass(frozen=True)
class SealFacts:
    """What a checkpoint's seal says besides its files."""

    step: int
    world_size: int
    layout: Mapping[str, int]
    """How the run deals samples out, as BatchLayout.to_json()."""
    loss: float | None
    """The last logged one."""
    run: str | None = None
    """The run that saved it; None in seals of earlier versions."""


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    return int(folder.name.rpartition("-")[2])


def list_checkpoints(output_dir: Path) -> list[Checkpoint]:
    """Every sealed checkpoint of a run, newest first, usable or not."""
    found = [
        Checkpoint(folder, int(match.group(1)))
        for folder in output_dir.glob("checkpoint-*")
        if (match := _NAME.fullmatch(folder.name)) and os.path.lexists(folder / SEAL)
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


# ---- writing -----------------------------------------------------------------------------------------------


class NewCheckpoint:
    """A checkpoint that is being written, beside where it will be; it counts once it is committed."""

    def __init__(self, output_dir: Path, step: int) -> None:
        self._output_dir = output_dir
        self._name = f"checkpoint-{step}"
        self.folder = output_dir / f"{_SAVING}{self._name}"
        self._seals: dict[str, Callable[[], FileSeal]] = {}
        _discard(self.folder)
        self.folder.mkdir()

    def add(self, name: str, seal: Callable[[], FileSeal]) -> None:
        """Note a file; `seal` waits until it is on the disk."""
        self._seals[name] = seal

    def write_json(self, name: str, value: JsonValue) -> None:
        """Write a file of plain values. NaN and infinity keep their names in Python."""
        self.write(name, json.dumps(value, indent=1).encode())

    def write(self, name: str, data: bytes) -> None:
        """Write a file, flushed to the disk."""
        _write_flushed(self.folder / name, data)
        written = FileSeal(len(data), hashlib.sha256(data).hexdigest())
        self.add(name, lambda: written)

    def commit(self, facts: SealFacts) -> Path:
        """Seal the checkpoint, give it its name, and name it in `latest`; returns its folder."""
        files: dict[str, JsonValue] = {
            name: {**wait().to_json()} for name, wait in sorted(self._seals.items())
        }
        _write_flushed(self.folder / SEAL, _sealed(facts, files))
        sync_folder(self.folder)
        place = self._output_dir / self._name
        for log in _LOGS:
            _flush(self._output_dir / log)
        if (moved := set_aside(place)) is not None:
            say(f"what was at {place} is now {moved.name}")
        os.rename(self.folder, place)
        sync_folder(self._output_dir)
        write_text(self._output_dir / LATEST, f"{self._name}\n")
        return place

    def discard(self) -> None:
        """Remove what was written so far."""
        _discard(self.folder)


@contextmanager
def saving(output_dir: Path, step: int) -> Iterator[NewCheckpoint]:
    """A new checkpoint to write to and commit; when the block raises, nothing of it stays."""
    checkpoint = NewCheckpoint(output_dir, step)
    try:
        with naming(output_dir / f"checkpoint-{step}"):
            yield checkpoint
    except BaseException:
        checkpoint.discard()
        raise


def seal(folder: Path, facts: SealFacts) -> None:
    """Seal a checkpoint's folder as it is, for example after its files were changed on purpose."""
    names = [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SEAL
    ]
    (folder / SEAL).write_bytes(
        _sealed(facts, {name: {**seal_of(folder / name).to_json()} for name in names})
    )


def _sealed(facts: SealFacts, files: Mapping[str, JsonValue]) -> bytes:
    content = {"form": _FORM, **asdict(facts), "files": dict(files)}
    return sealed_text(content).encode()


def _flush(path: Path) -> None:
    """Flush a file that others have written to the disk, if it exists."""
    with suppress(FileNotFoundError):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_flushed(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


# ---- keeping order -----------------------------------------------------------------------------------------


def remove_old(output_dir: Path, *, newest: int, keep: int) -> None:
    """Remove all checkpoints but `keep`: that of step `newest`, just written, and those before it.

    Later ones, links, folders without a seal of ours and those protected from writing are left alone.
    """
    ours = [
        found
        for found in list_checkpoints(output_dir)
        if found.step <= newest
        and not found.folder.is_symlink()
        and os.access(found.folder, os.W_OK)
        and _is_ours(found.folder)
    ]
    for checkpoint in ours[max(keep, 1) :]:
        # It loses its name first: a folder that is removed in part never counts as a checkpoint.
        away = output_dir / f"{_REMOVING}{checkpoint.folder.name}"
        _discard(away)
        os.rename(checkpoint.folder, away)
        _discard(away)


def _is_ours(folder: Path) -> bool:
    try:
        _read_seal(folder)
    except (OSError, _BadSeal):
        return False
    return True


def set_aside(place: Path) -> Path | None:
    """Rename what is at a checkpoint's place, so that it counts no more; returns its new place."""
    if not os.path.lexists(place):
        return None
    number = 1
    while os.path.lexists(aside := place.with_name(f"{_ASIDE}{place.name}" + f"-{number}" * (number > 1))):
        number += 1
    os.rename(place, aside)
    return aside


def clean_up(output_dir: Path) -> None:
    """Remove what writes that were killed left in a run's folder; for its owner alone."""
    if not output_dir.is_dir():
        return
    for path in sorted(output_dir.iterdir()):
        if path.is_symlink():
            continue
        if is_leftover(path.name):
            _discard(path)
        elif _NAME.fullmatch(path.name) and path.is_dir() and not os.path.lexists(path / SEAL):
            if all(_IN_CHECKPOINTS.fullmatch(each.name) for each in path.iterdir()):
                _discard(path)
            elif (moved := set_aside(path)) is not None:
                say(f"{path}, which is no checkpoint of this run, is now {moved.name}")


def is_leftover(name: str) -> bool:
    """Whether a name in a run's folder is that of a write, or of a removal, that was not finished."""
    for prefix in (_SAVING, _REMOVING):
        if name.startswith(prefix) and _NAME.fullmatch(name.removeprefix(prefix)):
            return True
    return name_of_temporary(name) in _WRITTEN


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def missing_latest(output_dir: Path) -> str | None:
    """The name of the checkpoint that was committed last, where it is gone; or None."""
    try:
        with open_ordinary(output_dir / LATEST) as opened:
            name = opened.read(80).decode("ascii", errors="replace").strip()
    except OSError:
        return None
    is_gone = _NAME.fullmatch(name) and not os.path.lexists(output_dir / name)
    return name if is_gone else None


# ---- checking ----------------------------------------------------------------------------------------------


def find_damage(folder: Path, *, run: str | None = None) -> str | None:
    """What is wrong with a checkpoint, in a few words, or None when every byte is as it was saved.

    run  the run that goes on: one that another run saved isn't its own, though every byte is right
    """
    try:
        recorded, facts = _read_seal(folder)
        if run is not None and facts.run not in (None, run):
            return "another run saved it"
        trouble = _missing(folder, recorded) or next(find_changes(folder, recorded), None)
        return trouble or _state_trouble(folder)
    except OSError as error:
        return f"it cannot be read: {error}"
    except _BadSeal as error:
        return str(error)


def read_facts(folder: Path) -> SealFacts:
    """What the seal of a sound checkpoint says. Raises RecipeError where it is damaged."""
    try:
        return _read_seal(folder)[1]
    except (OSError, _BadSeal) as error:
        raise unusable(folder, str(error)) from error


def check_form(folder: Path) -> None:
    """Raise RecipeError for a checkpoint that an earlier version wrote in another form."""
    if files_of_earlier_form(folder) is None:
        return
    raise RecipeError.of(
        f"{folder.name} was written by an earlier version, in a form that is no longer read",
        code="checkpoint-of-earlier-version",
        path=("stages", 0, "output_dir"),
        found=str(folder),
        hint="finish this run with that version, which environment.json names; or start a new run from these "
        f"weights, in another output_dir, with `init_from: {folder}`",
    )


def files_of_earlier_form(folder: Path) -> dict[str, JsonValue] | None:
    """What the seal of a checkpoint in an earlier form says of its files; None for any other one."""
    try:
        with open_ordinary(folder / SEAL) as opened:
            sealed = json.loads(opened.read())
    except (OSError, ValueError, RecursionError):
        return None
    files = sealed.get("files") if isinstance(sealed, dict) else None
    if not isinstance(files, dict) or "form" in sealed or not files.keys() & {"optimizer.pt", "latest"}:
        return None
    return files


def find_damage_of_weights(folder: Path) -> str | None:
    """As `find_damage`, for a checkpoint whose weights alone are used: it may have an earlier form."""
    files = files_of_earlier_form(folder)
    if files is None:
        return find_damage(folder)
    try:
        seals = read_seals({TRAINED: files.get(TRAINED)})
        return next(find_changes(folder, seals), None)
    except (OSError, ValueError) as error:
        return str(error)


class _BadSeal(Exception):
    """What is wrong with a seal."""


def _read_seal(folder: Path) -> tuple[dict[str, FileSeal], SealFacts]:
    """Size and SHA-256 of every file that was saved, by its path inside the folder, and the other facts."""
    file = folder / SEAL
    if not file.exists():
        raise _BadSeal(f"it has no {SEAL}: saving was cut short")
    if not file.is_file():
        raise _BadSeal(f"its {SEAL} is not a file")
    try:
        with open_ordinary(file) as opened:
            text = opened.read().decode("utf-8")
        values, has_sum = read_sealed(text)
        if not has_sum:
            raise ValueError("its own SHA-256 is missing")
        sealed: dict[str, Any] = values
        facts = SealFacts(
            sealed["step"],
            sealed["world_size"],
            dict(sealed["layout"]),
            sealed["loss"],
            sealed.get("run"),
        )
        files = read_seals(sealed["files"])
    except NotAsSealed:
        raise _BadSeal(f"its {SEAL} was changed after it was saved") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _BadSeal(f"its {SEAL} cannot be read: {error}") from None
    if facts.step != step_of(folder):
        raise _BadSeal(f"its {SEAL} is from another step")
    return files, facts


def _missing(folder: Path, recorded: Mapping[str, FileSeal]) -> str | None:
    """A file that a checkpoint needs and the seal doesn't name, or one that was added; or None."""
    for name in _ALWAYS:
        if name not in recorded:
            return f"{name} is missing in its {SEAL}"
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in _LOADED and name not in recorded and name != SEAL:
            return f"{name} was not saved with it"
    return None


def _state_trouble(folder: Path) -> str | None:
    step = step_of(folder)
    try:
        state = json.loads((folder / TRAINER_STATE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"{TRAINER_STATE} cannot be read: {error}"
    if not isinstance(state, dict):
        return f"{TRAINER_STATE} is not a mapping"
    if state.get("global_step") != step:
        found = json.dumps(state.get("global_step"))[:40]
        return f"{TRAINER_STATE} has global_step {found} instead of {step}"
    for key, kinds in (("epoch", (int, float)), ("total_flos", (int, float)), ("log_history", (list,))):
        value = state.get(key)
        if not isinstance(value, kinds) or (isinstance(value, float) and not math.isfinite(value)):
            return f"{TRAINER_STATE} has no usable `{key}`"
    return None


@contextmanager
def loading(checkpoint: Path, files: str) -> Iterator[None]:
    """Turn what fails in the block into a RecipeError with code UNUSABLE: it is the checkpoint's fault."""
    # The parent of the training processes imports this module, and has no use for torch.
    import torch
    import torch.distributed as dist

    try:
        yield
    except (torch.OutOfMemoryError, dist.DistError, MemoryError):
        raise
    except RecipeError as error:
        problem = error.problems[0]
        if problem.code == UNUSABLE:
            raise
        why = problem.message if problem.found is None else f"{problem.message}: {problem.found}"
        raise unusable(checkpoint, f"{files}: {why}") from error
    # Bad values can raise anything where they are used.
    except Exception as error:
        if isinstance(error, RuntimeError) and is_of_peers(str(error)):
            # A process that waits for another one fails with it; the other one reports the problem.
            raise
        text = (str(error).strip() or "no message").splitlines()[0]
        raise unusable(checkpoint, f"{files} cannot be loaded: {type(error).__name__}: {text}") from error


def unusable(checkpoint: Path, why: str) -> RecipeError:
    """The error of a checkpoint that cannot be resumed from."""
    return RecipeError.of(
        f"{checkpoint.name} cannot be loaded",
        code=UNUSABLE,
        path=("stages", 0, "output_dir"),
        found=why,
        hint=f"remove {checkpoint}; the run then continues from the checkpoint before it",
    )
