"""What a checkpoint contains, gathered from a run's live objects and put back into them.

trained.safetensors     what trains, in float32, by canonical name
optimizer-*.safetensors the optimizer's tensors, `NAME:KEY`, in files of bounded size
optimizer.pt            its numbers: plain values, by torch.save, as other programs expect the name
progress.json           position in the schedule, loss scale, DeepSpeed's counters, losses not yet logged
random.json             random states of each process

The first process alone writes and reads; the others send and receive. Nothing but plain values is unpickled.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue
from safetensors import safe_open
from torch import Tensor, nn

from llava_recipes.model.among_processes import by_first, gather_json, num_processes, share_tensor
from llava_recipes.model.checkpoint import BadPickle, load_plain, not_finite
from llava_recipes.model.placing import full_shape, is_first_process
from llava_recipes.model.weight_names import canonical_parameters
from llava_recipes.recipe.foreign import read_object
from llava_recipes.train.checkpoints import (
    OPTIMIZER,
    PROGRESS,
    RANDOM,
    TRAINED,
    NewCheckpoint,
    loading,
    unusable,
)
from llava_recipes.train.optimizer_states import (
    OptimizerStates,
    group_values,
    kind_of_optimizer,
    misfits,
    states_of,
)
from llava_recipes.train.tensor_files import TensorSpec, TensorWriter, in_shards

_SHARD_BYTES = 2 * 10**9
_SCALER = ("scale", "_growth_tracker")
_LOSS_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
_COUNTERS = ("global_steps", "global_samples", "skipped_steps")

Check = Callable[[str, Tensor], None]
"""Raises for values that must not be saved; gets their name."""


@dataclass(frozen=True)
class Beginnings:
    """What the plan alone says about each parameter group: a resumed run takes these from its own plan."""

    rates: tuple[float, ...]
    values: tuple[Mapping[str, JsonValue], ...]


@dataclass(frozen=True)
class Live:
    """The objects of a run that training changes. `engine` is DeepSpeed's, `scaler` torch's, or None."""

    model: nn.Module
    optimizer: Any
    scheduler: Any
    scaler: Any
    engine: Any
    device: torch.device

    def parameters(self) -> dict[str, nn.Parameter]:
        named = canonical_parameters(self.model)
        return {name: parameter for name, parameter in named.items() if parameter.requires_grad}

    def states(self) -> OptimizerStates:
        return states_of(self.parameters(), self.optimizer, uses_deepspeed=self.engine is not None)

    def beginnings(self) -> Beginnings:
        groups = self.states().inner.param_groups
        rates = tuple(float(group.get("initial_lr", group["lr"])) for group in groups)
        return Beginnings(rates, tuple(group_values(self.states().inner)))


# ---- saving ------------------------------------------------------------------------------------------------


def save_state(
    live: Live,
    checkpoint: NewCheckpoint | None,
    *,
    beginnings: Beginnings,
    progress: dict[str, JsonValue],
    check: Check,
) -> None:
    """Write the state into a new checkpoint, which only the first process has; tensor by tensor."""
    states = live.states()
    _stream(checkpoint, TRAINED, states.weight_specs(), states.read_weight, check)
    specs = {f"{name}:{key}": spec for name, keys in states.specs().items() for key, spec in keys.items()}
    shards = list(in_shards(specs, _SHARD_BYTES))
    for number, shard in enumerate(shards, start=1):
        _stream(
            checkpoint,
            f"optimizer-{number:05}-of-{len(shards):05}.safetensors",
            shard,
            lambda each: states.read(*_split(each)),
            check,
        )
    randoms = gather_json(_random_state(live.device), live.device)
    if checkpoint is None:
        return
    optimizer: dict[str, Any] = {
        "kind": kind_of_optimizer(states.inner),
        "scalars": states.scalars(),
        "groups": _changed(group_values(states.inner), beginnings.values),
    }
    numbers = io.BytesIO()
    torch.save(optimizer, numbers)
    checkpoint.write(OPTIMIZER, numbers.getvalue())
    schedule = _schedule(live.scheduler, states, beginnings)
    checkpoint.write_json(PROGRESS, {"schedule": schedule, "scale": _scale(live), **progress})
    checkpoint.write_json(RANDOM, randoms)


def _split(name: str) -> tuple[str, str]:
    parameter, _, key = name.rpartition(":")
    return parameter, key


def _stream(
    checkpoint: NewCheckpoint | None,
    file: str,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], Tensor],
    check: Check,
) -> None:
    def checked(name: str) -> Tensor:
        tensor = read(name)
        check(name, tensor)
        return tensor

    if checkpoint is None:
        for name in specs:
            checked(name)
        return
    with TensorWriter(checkpoint.folder / file, specs) as writer:
        for name in specs:
            writer.write(name, checked(name))
    checkpoint.add(file, writer.seal)


def _changed(
    groups: list[dict[str, JsonValue]], first: tuple[Mapping[str, JsonValue], ...]
) -> list[dict[str, JsonValue]]:
    """What the optimizer itself changed in its groups, such as a count of steps: the rest is the plan's."""
    return [
        {key: value for key, value in now.items() if then.get(key) != value}
        for now, then in zip(groups, first, strict=True)
    ]


def _schedule(scheduler: Any, states: OptimizerStates, beginnings: Beginnings) -> dict[str, JsonValue]:
    """The position, and what a schedule that reacts to losses remembers; no rates, which are the plan's."""
    inner = getattr(scheduler, "scheduler", scheduler)
    own: dict[str, JsonValue] = {
        key: value
        for key, value in inner.state_dict().items()
        if key not in ("base_lrs", "_last_lr", "lr_lambdas") and isinstance(value, bool | int | float | str)
    }
    factors: list[JsonValue] = [
        group["lr"] / rate if rate else 1.0
        for group, rate in zip(states.inner.param_groups, beginnings.rates, strict=True)
    ]
    return {"kind": type(inner).__name__, "own": own, "factors": factors}


def _scale(live: Live) -> dict[str, JsonValue]:
    if live.engine is None:
        scaler = {} if live.scaler is None else live.scaler.state_dict()
        return {"torch": {key: scaler[key] for key in _SCALER if key in scaler}}
    kept = _loss_scaler(live.engine)
    return {
        "deepspeed": {key: float(getattr(kept, key)) for key in _LOSS_SCALER if hasattr(kept, key)},
        "counters": {key: int(getattr(live.engine, key)) for key in _COUNTERS},
    }


def _loss_scaler(engine: Any) -> Any:
    """DeepSpeed's record of a scale that changes, or None."""
    if not engine.fp16_enabled():
        return None
    optimizer = engine.optimizer
    for name in ("loss_scaler", "loss_scale_config"):
        if hasattr(optimizer, name):
            return getattr(optimizer, name)
    return None


def _random_state(device: torch.device) -> dict[str, JsonValue]:
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    found: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, keys.tolist(), int(position), int(has_gauss), float(cached)],  # type: ignore[union-attr]
        "torch": _packed(torch.get_rng_state()),
    }
    if device.type == "cuda":
        found["cuda"] = _packed(torch.cuda.get_rng_state(device))
    return found


def _packed(tensor: Tensor) -> str:
    return base64.b85encode(bytes(tensor.tolist())).decode("ascii")


# ---- loading -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SavedState:
    """A checkpoint's contents, the same on all processes, but for the tensors, which the first one reads."""

    folder: Path
    """Exists only where the first process runs."""
    weights: Mapping[str, TensorSpec]
    tensors: Mapping[str, Mapping[str, TensorSpec]]
    optimizer: Mapping[str, Any]
    progress: Mapping[str, Any]
    randoms: list[Any]
    _files: Mapping[str, Path]

    def read(self, name: str, device: torch.device, spec: TensorSpec) -> Tensor:
        """One tensor, on all processes. Raises RecipeError where it has NaN or infinite values."""
        tensor = None
        if is_first_process():
            with loading(self.folder, self._files[name].name), safe_open(self._files[name], "pt") as opened:
                tensor = opened.get_tensor(name)
        like = torch.empty(spec.shape, dtype=spec.dtype, device="meta")
        whole = share_tensor(tensor, device, like=like)
        if whole.is_floating_point() and (trouble := not_finite(whole)) is not None:
            raise unusable(self.folder, f"{self._files[name].name}: {name} has {trouble}")
        return whole


def open_state(folder: Path, device: torch.device) -> SavedState:
    """The contents of the first process's checkpoint. Raises RecipeError, on all, where they are unusable."""
    shared = by_first(lambda: _described(folder), device)
    place = Path(shared["folder"])
    files = {name: place / file for name, file in shared["files"].items()}
    specs = {
        name: TensorSpec(tuple(shape), getattr(torch, dtype))
        for name, (shape, dtype) in shared["specs"].items()
    }
    tensors: dict[str, dict[str, TensorSpec]] = {}
    for name, spec in specs.items():
        if files[name].name != TRAINED:
            parameter, key = _split(name)
            tensors.setdefault(parameter, {})[key] = spec
    return SavedState(
        folder=place,
        weights={name: spec for name, spec in specs.items() if files[name].name == TRAINED},
        tensors=tensors,
        optimizer=shared["optimizer"],
        progress=shared["progress"],
        randoms=shared["randoms"],
        _files=files,
    )


def _described(folder: Path) -> JsonValue:
    files: dict[str, JsonValue] = {}
    specs: dict[str, JsonValue] = {}
    for file in [folder / TRAINED, *sorted(folder.glob("optimizer-*.safetensors"))]:
        with loading(folder, file.name), safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # not a mapping
                tensor = opened.get_tensor(name)
                files[name] = file.name
                specs[name] = [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
    with loading(folder, OPTIMIZER):
        optimizer = _read_numbers(folder / OPTIMIZER)
        _expect(optimizer, kind=str, scalars=dict, groups=list)
    with loading(folder, PROGRESS):
        progress = read_object(folder / PROGRESS)
        _expect(progress, schedule=dict, scale=dict)
    with loading(folder, RANDOM):
        randoms = _read_list(folder / RANDOM)
        for state in randoms:
            _check_random(state)
    return {
        "folder": str(folder),
        "files": files,
        "specs": specs,
        "optimizer": optimizer,
        "progress": progress,
        "randoms": randoms,
    }


def _read_numbers(file: Path) -> dict[str, Any]:
    try:
        values = load_plain(file)
    except BadPickle as error:
        raise ValueError(f"it {error}") from error
    if not isinstance(values, dict):
        raise ValueError("it must contain a mapping")
    return values


def _expect(values: Mapping[str, Any], **kinds: type) -> None:
    for name, kind in kinds.items():
        if not isinstance(values.get(name), kind):
            raise ValueError(f"it has no usable `{name}`")


def restore(live: Live, saved: SavedState, *, beginnings: Beginnings) -> str | None:
    """Put a saved state into a run's objects; returns a note where the optimizer begins anew.

    Raises RecipeError with code UNUSABLE, on all processes, where the contents do not fit.
    """
    parameters, states = live.parameters(), live.states()
    wanted = {name: full_shape(parameter) for name, parameter in parameters.items()}
    given = {name: spec.shape for name, spec in saved.weights.items()}
    if given != wanted:
        odd = sorted(name for name in given.keys() | wanted.keys() if given.get(name) != wanted.get(name))
        raise unusable(saved.folder, f"{TRAINED} does not fit what trains: {', '.join(odd[:3])}")
    for name, spec in saved.weights.items():
        states.write_weight(name, saved.read(name, live.device, spec))
    kind, ours = saved.optimizer["kind"], kind_of_optimizer(states.inner)
    note = None if kind == ours else f"the optimizer is now {ours} instead of {kind}: its averages start anew"
    with loading(saved.folder, "the optimizer's state"):
        if note is None:
            _restore_optimizer(live, states, saved)
        states.finish()
    with loading(saved.folder, PROGRESS):
        _restore_schedule(live.scheduler, states, saved.progress["schedule"], beginnings)
        _restore_scale(live, saved.progress["scale"])
    return note


def _restore_optimizer(live: Live, states: OptimizerStates, saved: SavedState) -> None:
    trouble = next(misfits(live.parameters(), saved.tensors), None)
    if trouble is not None:
        raise ValueError(trouble)
    states.begin({name: dict(keys) for name, keys in saved.tensors.items()}, saved.optimizer["scalars"])
    for name, keys in saved.tensors.items():
        for key, spec in keys.items():
            states.write(name, key, saved.read(f"{name}:{key}", live.device, spec))
    groups = states.inner.param_groups
    given = saved.optimizer["groups"]
    for group, values in zip(
        groups, given if len(given) == len(groups) else given[:1] * len(groups), strict=True
    ):
        group.update({key: value for key, value in values.items() if key in group})


def _restore_schedule(
    scheduler: Any, states: OptimizerStates, saved: Mapping[str, Any], beginnings: Beginnings
) -> None:
    inner = getattr(scheduler, "scheduler", scheduler)
    groups, own = states.inner.param_groups, dict(saved["own"])
    if isinstance(inner, torch.optim.lr_scheduler.LambdaLR):
        position = int(own["last_epoch"])
        inner.last_epoch, inner._step_count = position - 1, position
        with warnings.catch_warnings():
            # The optimizer has not stepped yet in this process.
            warnings.simplefilter("ignore")
            inner.step()
    elif saved["kind"] == type(inner).__name__:
        inner.load_state_dict({**inner.state_dict(), **own})
        for group, rate, factor in zip(groups, beginnings.rates, saved["factors"], strict=False):
            group["lr"] = rate * float(factor)
        inner._last_lr = [group["lr"] for group in groups]


def _restore_scale(live: Live, saved: Mapping[str, Any]) -> None:
    of_torch, of_deepspeed = saved.get("torch", {}), saved.get("deepspeed", {})
    scale = of_torch.get("scale", of_deepspeed.get("cur_scale"))
    if live.engine is None:
        if live.scaler is not None and scale is not None:
            given = {"scale": float(scale), "_growth_tracker": int(of_torch.get("_growth_tracker", 0))}
            live.scaler.load_state_dict({**live.scaler.state_dict(), **given})
        return
    kept = _loss_scaler(live.engine)
    if kept is not None and scale is not None:
        for key, value in ({"cur_scale": scale} | of_deepspeed).items():
            if hasattr(kept, key):
                setattr(kept, key, float(value) if key == "cur_scale" else int(value))
    for key, value in saved.get("counters", {}).items():
        if key in _COUNTERS:
            setattr(live.engine, key, int(value))


# ---- randomness --------------------------------------------------------------------------------------------


def restore_random(saved: SavedState, device: torch.device, *, rank: int, seed: int, step: int) -> None:
    """Set the random state of process `rank`; one that the saved run did not have is seeded."""
    if rank < len(saved.randoms):
        _set_random(saved.randoms[rank], device)
        return
    digest = hashlib.sha256(f"{seed}/{step}/{rank}/{num_processes()}".encode()).digest()
    drawn = int.from_bytes(digest[:4], "little")
    random.seed(drawn)
    np.random.seed(drawn)
    torch.manual_seed(drawn)


def _set_random(state: Mapping[str, Any], device: torch.device) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_unpacked(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_unpacked(state["cuda"]), device)


def _unpacked(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b85decode(text)), dtype=torch.uint8)


def _check_random(state: Any) -> None:
    """Raise where a random state cannot be set: tried on generators of its own."""
    version, numbers, gauss = state["python"]
    random.Random().setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.RandomState().set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.Generator().set_state(_unpacked(state["torch"]))


def _read_list(file: Path) -> list[Any]:
    values = json.loads(file.read_text("utf-8"))
    if not isinstance(values, list) or not values:
        raise ValueError("it isn't a list of random states")
    return values
